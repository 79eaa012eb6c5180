//! The folders of the overlay, the wrappers, the bridge and what the library says are one list; and what
//! `supports` answers to questions that are wrong.

use std::collections::BTreeSet;
use std::path::Path;

use mlx::primitives::{
    Ask, Attention, GatherQmmCombine, GatherQmmSwiglu, MoeRouter, Parameters, Precision,
    QkNormRope, RmsNorm, Scoring, Setting, Value, supports,
};
use mlx::quantization::{Mode, Quantization};
use mlx::{Device, Dtype};

const CPU: Setting =
    Setting { device: Device::Cpu, dtype: Dtype::Bf16, precision: Precision::Exact };

/// Primitives of a recorded step, which a CPU has not, and how it says so.
fn is_recorded(ask: &dyn Ask) -> bool {
    ask.primitive().starts_with("recorded_")
}

const NOT_RECORDED: &str = "steps are recorded on CUDA devices alone";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn entries(folder: &str) -> impl Iterator<Item = std::path::PathBuf> {
    std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path())
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

#[test]
fn folders_and_wrappers_and_library_name_the_same_primitives() {
    let folders: BTreeSet<String> = entries("mlx-patch/overlay")
        .filter(|path| path.join("op.cpp").exists())
        .map(|path| stem(&path))
        .collect();
    assert!(!folders.is_empty());
    let compiled: BTreeSet<String> = mlx::build_info().primitives.into_iter().collect();
    assert_eq!(compiled, folders, "the library and mlx-patch/overlay");
    let asked: BTreeSet<String> =
        mlx::primitives::TYPICAL.iter().map(|ask| ask.primitive().to_owned()).collect();
    assert_eq!(asked, folders, "mlx::primitives::TYPICAL and mlx-patch/overlay");
    let files: BTreeSet<String> = entries("crates/mlx/src/primitives")
        .map(|path| stem(&path))
        .filter(|name| !["mod", "ask", "glu"].contains(&name.as_str()))
        .collect();
    assert_eq!(files, folders, "crates/mlx/src/primitives and mlx-patch/overlay");
    let bridge = std::fs::read_to_string(root().join("mlx-sys/src/bridge.rs")).unwrap();
    for name in &folders {
        assert!(bridge.contains(&format!("fn fused_{name}(")), "{name} is not in the bridge");
    }
}

#[test]
fn typical_questions_are_answered_with_yes_on_the_cpu() {
    for ask in mlx::primitives::TYPICAL {
        for precision in [Precision::Exact, Precision::Fast] {
            let answer = supports(*ask, &Setting { precision, ..CPU });
            match is_recorded(*ask) {
                true => assert_eq!(answer, Err(NOT_RECORDED.to_owned()), "{ask:?}"),
                false => assert_eq!(answer, Ok(()), "{ask:?}"),
            }
        }
    }
}

#[test]
fn device_without_kernels_and_type_without_kernels_are_named() {
    for ask in mlx::primitives::TYPICAL {
        let integers = Setting { dtype: Dtype::I32, ..CPU };
        let reason = supports(*ask, &integers).unwrap_err();
        let expected = if is_recorded(*ask) { NOT_RECORDED } else { "int32" };
        assert!(reason.contains(expected), "{reason}");
        if !Device::Gpu.is_available() {
            let reason = supports(*ask, &Setting { device: Device::Gpu, ..CPU }).unwrap_err();
            assert!(reason.contains("gpu") && reason.contains(ask.primitive()), "{reason}");
        }
    }
}

#[derive(Debug)]
struct Misspelt(&'static str, Vec<(&'static str, Value)>);

impl Ask for Misspelt {
    fn primitive(&self) -> &'static str {
        self.0
    }

    fn parameters(&self) -> Parameters {
        self.1.iter().fold(Parameters::new(), |all, (name, value)| all.with(name, *value))
    }
}

#[track_caller]
fn refused(ask: &dyn Ask, words: &[&str]) {
    let reason = supports(ask, &CPU).unwrap_err();
    for word in words {
        assert!(reason.contains(word), "`{word}` is not in: {reason}");
    }
}

#[test]
fn question_with_a_wrong_name_or_value_says_which() {
    let norm = |parameters: &[(&'static str, Value)]| Misspelt("rms_norm", parameters.to_vec());
    let dims = ("dims", Value::Integer(64));
    let weight = ("weight", Value::Flag(true));
    assert_eq!(supports(&norm(&[dims, weight]), &CPU), Ok(()));
    refused(&norm(&[dims]), &["rms_norm", "'weight'"]);
    refused(&norm(&[dims, ("wieght", Value::Flag(true))]), &["'wieght'", "dims, weight"]);
    refused(&norm(&[dims, weight, ("eps", Value::Number(1e-6))]), &["'eps'"]);
    refused(&norm(&[dims, ("weight", Value::Integer(1))]), &["'weight'", "true or false"]);
    refused(&Misspelt("rms_nrom", vec![]), &["'rms_nrom'", "rms_norm"]);
}

#[test]
fn what_no_kernel_does_is_refused_with_the_reason() {
    let q = Quantization::affine(64, 4);
    let swiglu = super::asks::swiglu(q, true);
    for bias in [Dtype::F32, Dtype::F16, Dtype::F64] {
        let bias = Some(bias);
        refused(&GatherQmmSwiglu { bias, ..swiglu }, &["bias", "bfloat16"]);
        refused(&GatherQmmCombine { bias, ..super::asks::combine(q) }, &["bias", "bfloat16"]);
    }
    assert_eq!(supports(&GatherQmmSwiglu { bias: Some(Dtype::Bf16), ..swiglu }, &CPU), Ok(()));
    let seven = Quantization { bits: 7, group_size: 64, mode: Mode::Affine };
    refused(&GatherQmmSwiglu { quantization: seven, ..swiglu }, &["7"]);
    let combine = super::asks::combine(q);
    refused(&GatherQmmCombine { transpose: false, ..combine }, &["transposed"]);
    refused(&RmsNorm { dims: 64, weight: false }, &["weight"]);

    let router = MoeRouter::new(8, 2, Scoring::Sigmoid);
    assert_eq!(supports(&router, &CPU), Ok(()));
    refused(&MoeRouter { top_k: 9, ..router }, &["top_k", "8", "9"]);
    refused(&MoeRouter { num_groups: 3, ..router }, &["groups", "3", "8"]);
    refused(&MoeRouter { num_groups: 8, ..router }, &["groups", "two experts"]);
    refused(&MoeRouter { num_groups: 4, top_k_groups: 5, ..router }, &["top_k_groups", "4", "5"]);
    refused(&MoeRouter { weights: Some(Dtype::F64), ..router }, &["weights", "float64"]);

    let rope = QkNormRope {
        num_heads: 4,
        head_dim: 64,
        norm: false,
        dims: 32,
        traditional: true,
        freqs: true,
        input_scale: 1.5,
    };
    assert_eq!(supports(&rope, &CPU), Ok(()));
    refused(&QkNormRope { dims: 66, ..rope }, &["64", "66"]);

    let attention = Attention {
        num_heads: 8,
        num_kv_heads: 2,
        head_dim: 80,
        value_dim: 40,
        causal: true,
        window: None,
        mask: false,
        sinks: true,
        rope_dim: 64,
    };
    assert_eq!(supports(&attention, &CPU), Ok(()));
    refused(&Attention { num_kv_heads: 3, ..attention }, &["8", "3"]);
    let windowed = Attention { window: Some(128), ..attention };
    assert_eq!(supports(&windowed, &CPU), Ok(()));
    refused(&Attention { causal: false, ..windowed }, &["window", "causal"]);
    refused(&Attention { window: Some(-1), ..attention }, &["window", "-1"]);
    refused(&Attention { rope_dim: -1, ..attention }, &["rope_dim", "-1"]);
    refused(&Attention { mask: true, ..attention }, &["mask"]);
}

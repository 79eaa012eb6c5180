//! Launches of a decode step, on tiny checkpoints whose widths Metal has kernels for.

use std::path::Path;

use mlx::quantization::Quantization;

use crate::launches::{LaunchReport, count};
use crate::synth::{SynthOptions, synthesize};
use crate::{PatchOptions, Patterns};

fn checkpoint(dir: &Path, like: &str, layers: usize) -> std::path::PathBuf {
    let out = dir.join(format!("{like}-{layers}"));
    let options = SynthOptions {
        like: like.to_owned(),
        layers: Some(layers),
        quantization: Some(Quantization::affine(64, 4)),
        seed: 0,
        hollow: true,
    };
    synthesize(&out, &options, &mut |_, _| {}).expect("checkpoint");
    out
}

fn report(like: &str, layers: usize, patterns: Patterns) -> LaunchReport {
    let dir = tempfile::tempdir().expect("tempdir");
    let options = PatchOptions { patterns, ..PatchOptions::default() };
    count(&checkpoint(dir.path(), like, layers), &options).expect("count")
}

/// Every launch of a stock layer of Qwen3-30B-A3B, by hand from mlx-lm's `qwen3_moe.py`.
#[test]
fn stock_layer_of_qwen3_moe_launches_what_its_source_says() {
    let by_hand = [
        ("RMSNorm", 4),         // input_layernorm, q_norm, k_norm, post_attention_layernorm
        ("QuantizedMatmul", 5), // q, k, v, o, gate
        ("RoPE", 2),            // queries, keys
        ("SliceUpdate", 2),     // keys and values into the cache, written in place
        ("ScaledDotProductAttention", 1),
        ("Add", 2),     // residuals
        ("Softmax", 1), // router
        ("ArgPartition", 1),
        ("GatherAxis", 1), // take_along_axis
        ("Sum", 2),        // of the weights, of the experts
        ("Divide", 1),
        ("Arange", 3),    // the indices into x that gather_qmm is not given
        ("GatherQMM", 5), // gate and up copy x: the axes that expand_dims adds have strides of one
        ("Sigmoid", 1),
        ("Multiply", 3), // silu, times up, weights
    ];
    let one = report("qwen3-30b-a3b", 1, Patterns::Off).stock;
    let two = report("qwen3-30b-a3b", 2, Patterns::Off).stock;
    for (name, expected) in by_hand {
        let launches = |r: &mlx::launches::Launches| r.rows.get(name).map_or(0, |row| row.launches);
        assert_eq!(launches(&two) - launches(&one), expected, "{name}: {one:#?}");
    }
    let layer: usize = by_hand.iter().map(|(_, launches)| launches).sum();
    assert_eq!(two.total() - one.total(), layer, "{one:#?} {two:#?}");
    // SwiGLU is one kernel in mlx-lm
    assert_eq!(two.total_compiled() - one.total_compiled(), layer - 2);
    assert!(one.assumed.is_empty(), "{:?}", one.assumed);
}

/// Nothing is added before the first norm; every other one, that behind the layers too, is one launch with its sum.
#[test]
fn sums_of_patched_layers_are_part_of_norms() {
    for layers in [1, 2, 3] {
        let patched = report("qwen3-30b-a3b", layers, Patterns::Auto).patched;
        let launches = |name| patched.rows.get(name).map_or(0, |row| row.launches);
        let got = ["Add", "RMSNorm", "AddRMSNorm"].map(launches);
        assert_eq!(got, [0, 1, 2 * layers], "{layers} layers: {patched:#?}");
    }
}

#[test]
fn layers_of_a_kind_launch_the_same() {
    let total = |layers| report("qwen3-moe-tiny", layers, Patterns::Auto).patched.total();
    assert_eq!(total(3) - total(2), total(2) - total(1));
}

#[test]
fn what_metal_has_no_kernel_for_is_counted_on_stock() {
    let report = report("qwen3-moe-tiny", 1, Patterns::Names(vec!["greedy_token".to_owned()]));
    let (_, reason) = report.patch.fallbacks().next().expect("a fallback");
    assert_eq!(reason, "there is no Metal kernel for greedy_token");
    assert_eq!(report.patched, report.stock);
}

/// The rows of the README's table: name, layers, stock, mlx-lm, patched.
fn readme() -> Vec<(String, [usize; 3])> {
    let text = include_str!("../../../../README.md");
    let table = text.split("| launches per token |").nth(1).expect("the table of launches");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|line| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let name = cells.next().expect(line).trim_matches('`').to_owned();
        let mut number = || cells.next().and_then(|n| n.replace(',', "").parse().ok()).expect(line);
        (name, [number(), number(), number()])
    })
    .collect()
}

#[test]
fn readme_has_the_launches_of_whole_models() {
    let rows = readme();
    assert!(!rows.is_empty());
    let dir = tempfile::tempdir().expect("tempdir");
    for (name, expected) in rows {
        let out = dir.path().join(&name);
        let options = SynthOptions {
            like: name.clone(),
            layers: None,
            quantization: Some(Quantization::affine(64, 4)),
            seed: 0,
            hollow: true,
        };
        synthesize(&out, &options, &mut |_, _| {}).expect("checkpoint");
        let report = count(&out, &PatchOptions::default()).expect("count");
        let got = [report.stock.total(), report.mlx_lm(), report.patched.total()];
        assert_eq!(got, expected, "{name}: stock, mlx-lm, patched; {:#?}", report.patched);
        assert!(report.stock.assumed.is_empty(), "{name}: {:?}", report.stock.assumed);
    }
}

//! Against what mlx-lm returns, recorded by scripts/rope_golden.

use serde_json::{Value, json};

use super::*;
use crate::config::Fields;

#[derive(Debug, Deserialize)]
struct Toy {
    rope_scaling: Option<RopeScaling>,
}

impl Fields for Toy {
    fn check(&self, _: &ModelConfig) -> Result<()> {
        Ok(())
    }
}

fn config(scaling: &Value) -> ModelConfig {
    let fields = json!({"model_type": "toy", "rope_scaling": scaling});
    ModelConfig::from_fields("config.json", fields.as_object().unwrap().clone(), None).unwrap()
}

fn rope_of(
    scaling: &Value,
    dims: i32,
    base: f64,
    traditional: bool,
    max: Option<i32>,
) -> Result<Rope> {
    let config = config(scaling);
    let toy: Toy = config.parse()?;
    let options = RopeOptions {
        dims,
        base: Positive::new(base).unwrap(),
        traditional,
        scaling: toy.rope_scaling.as_ref().map(|scaling| ("rope_scaling", scaling)),
        max_position_embeddings: max.and_then(Size::new),
    };
    Rope::from_config(&config, options)
}

fn golden() -> Vec<Value> {
    let text = include_str!("rope_golden.json");
    let all: Value = serde_json::from_str(text).unwrap();
    all["cases"].as_array().unwrap().clone()
}

fn rope_for(case: &Value) -> Rope {
    let max = case["max_position_embeddings"].as_i64().map(|n| n as i32);
    let (dims, base) = (case["dims"].as_i64().unwrap() as i32, case["base"].as_f64().unwrap());
    rope_of(&case["scaling"], dims, base, case["traditional"].as_bool().unwrap(), max).unwrap()
}

/// Within a few units in the last place: wheels are compiled for other processors.
#[track_caller]
fn near(got: f32, expected: f32, scale: f32, what: &str) {
    let error = (got - expected).abs();
    assert!(got == expected || error <= 4.0 * f32::EPSILON * scale, "{what}: {got} for {expected}");
}

#[test]
fn every_kind_is_recorded() {
    let cases = golden();
    let kinds: Vec<String> = cases
        .iter()
        .filter_map(|case| serde_json::from_value(case["scaling"].clone()).ok())
        .map(|scaling: RopeScaling| scaling.kind().to_owned())
        .collect();
    for kind in RopeScaling::KINDS.iter().filter(|kind| **kind != "su") {
        assert!(kinds.iter().any(|seen| seen == kind), "{kind}");
    }
}

#[test]
fn frequencies_equal_mlx_lm() {
    for case in golden() {
        let rope = rope_for(&case);
        let name = case["name"].as_str().unwrap();
        let Some(expected) = case["freqs"].as_array() else {
            assert!(rope.kernel.freqs.is_none(), "{name}");
            continue;
        };
        let freqs = rope.kernel.freqs.unwrap().to_vec::<f32>().unwrap();
        assert_eq!(freqs.len(), expected.len(), "{name}");
        for (got, bits) in freqs.into_iter().zip(expected) {
            let expected = f32::from_bits(bits.as_u64().unwrap() as u32);
            near(got, expected, expected, name);
        }
    }
}

#[test]
fn rotations_equal_mlx_lm() {
    for case in golden() {
        let rope = rope_for(&case);
        let name = case["name"].as_str().unwrap();
        let width = case["dims"].as_i64().unwrap() as i32 + 4;
        let x: Vec<f32> = (0..2 * width).map(|i| (i * 37 % 101 - 50) as f32 / 50.0).collect();
        let x = Array::from_slice(&x, &[1, 1, 2, width]).unwrap();
        for (dtype, key) in [(Dtype::F32, "float32"), (Dtype::Bf16, "bfloat16")] {
            let x = x.astype(dtype).unwrap();
            let y = rope.forward(&x, &Position::Static(517)).unwrap();
            let y = y.astype(Dtype::F32).unwrap().to_vec::<f32>().unwrap();
            let expected = case[key].as_array().unwrap();
            assert_eq!(y.len(), expected.len());
            for (got, expected) in y.iter().zip(expected) {
                // angles up to 518 rad: their last bit is worth 2^-14
                let scale = if dtype == Dtype::F32 { 512.0 } else { 65536.0 };
                near(*got, expected.as_f64().unwrap() as f32, scale, name);
            }
            if rope.dynamic.is_none() {
                let offset = Array::scalar(517_i32).unwrap();
                let dynamic = rope.forward(&x, &Position::Dynamic(offset)).unwrap();
                let dynamic = dynamic.astype(Dtype::F32).unwrap().to_vec::<f32>().unwrap();
                assert_eq!(y, dynamic, "{name}");
            }
        }
    }
}

#[test]
fn attention_scale_equals_mlx_lm() {
    let mut folded = 0;
    for case in golden() {
        let Ok(scaling) = serde_json::from_value::<RopeScaling>(case["scaling"].clone()) else {
            continue;
        };
        let (got, expected) =
            (scaling.attention_scale(0.125), case["attention_scale"].as_f64().unwrap());
        assert!((got - expected).abs() < 1e-15, "{}: {got} for {expected}", case["name"]);
        folded += usize::from(expected != 0.125);
    }
    assert!(folded >= 2);
}

#[test]
fn base_and_input_scale_are_what_kernels_get() {
    let named = |name: &str| {
        let case = golden().into_iter().find(|case| case["name"] == name).unwrap();
        rope_for(&case)
    };
    let base_at = |rope: &Rope, l, at: i32| {
        rope.kernel_at(l, &Position::Static(at)).map(|kernel| kernel.base)
    };
    for name in ["none", "linear", "llama3", "telechat3-yarn", "proportional", "longrope short"] {
        assert_eq!(named(name).input_scale, None, "{name}");
    }
    for name in ["yarn", "longrope"] {
        let rope = named(name);
        assert!(rope.input_scale.is_some(), "{name}");
        assert_eq!(base_at(&rope, 1, 100_000).unwrap(), rope.kernel.base, "{name}");
    }
    let dynamic = named("dynamic");
    assert_eq!(base_at(&dynamic, 3, 0).unwrap(), dynamic.kernel.base);
    assert!(base_at(&dynamic, 3, 100_000).unwrap() > dynamic.kernel.base);
    assert_eq!(base_at(&dynamic, 1, 99).unwrap(), base_at(&dynamic, 100, 0).unwrap());
    let later = Position::Dynamic(Array::scalar(7).unwrap());
    assert!(dynamic.kernel_at(1, &later).is_err() && named("yarn").kernel_at(1, &later).is_ok());
}

#[test]
fn dynamic_base_at_a_position_unknown_is_refused() {
    let rope = rope_of(&json!({"type": "dynamic", "factor": 2}), 16, 1e4, false, Some(8)).unwrap();
    let x = ops::zeros(&[1, 1, 1, 16], Dtype::F32).unwrap();
    let offset = Array::scalar(3_i32).unwrap();
    let error = rope.forward(&x, &Position::Dynamic(offset)).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
}

#[test]
fn settings_that_do_not_fit_name_file_and_field() {
    let yarn = json!({"type": "yarn", "factor": 4});
    for (scaling, field, words) in [
        (json!({"type": "ntk"}), "rope_scaling.rope_type", "is \"ntk\", expected one of default"),
        (
            json!({"rope_type": "linear"}),
            "rope_scaling.factor",
            "is missing, which rope_type \"linear\"",
        ),
        (json!({"type": "yarn"}), "rope_scaling.factor", "is missing"),
        (
            json!({"type": "linear", "factor": 0}),
            "rope_scaling.factor",
            "is 0, expected a number above",
        ),
        (json!({"type": "linear", "factor": "2"}), "rope_scaling.factor", "is \"2\""),
        (json!({"type": 3}), "rope_scaling.type", "is 3, expected a string"),
        (json!({"type": "yarn", "factor": 4, "mscale": []}), "rope_scaling.mscale", "a number"),
        (
            json!({"type": "mrope", "mrope_section": [8]}),
            "rope_scaling.mrope_section",
            "has 1 parts",
        ),
        (
            json!({"type": "longrope"}),
            "rope_scaling.original_max_position_embeddings",
            "is missing",
        ),
        (
            json!({"type": "longrope", "original_max_position_embeddings": 9, "short_factor": 1, "long_factor": [1, 2]}),
            "rope_scaling.long_factor",
            "has 2 numbers, expected 8",
        ),
        (
            json!({"type": "longrope", "original_max_position_embeddings": 9, "short_factor": 1, "long_factor": [1, -2]}),
            "rope_scaling.long_factor",
            "expected a number above zero or a list of them",
        ),
        (
            json!({"type": "longrope", "original_max_position_embeddings": 9, "short_factor": 1, "long_factor": 1}),
            "max_position_embeddings",
            "is missing",
        ),
        (
            json!({"rope_type": "proportional", "partial_rotary_factor": 1.5}),
            "rope_scaling.partial_rotary_factor",
            "turns 24 of 16",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4}),
            "rope_scaling.high_freq_factor",
            "expected more than low_freq_factor",
        ),
        (json!("linear"), "rope_scaling", "is \"linear\""),
    ] {
        let error = match rope_of(&scaling, 16, 1e4, false, None) {
            Ok(_) => panic!("{scaling} was taken"),
            Err(error) => error,
        };
        let Error::Config { field: at, reason, path } = &error else { panic!("{error}") };
        assert_eq!(at, field, "{error}");
        assert!(reason.contains(words) && path.ends_with("config.json"), "{error}");
    }
    // a base without a logarithm to divide by
    let error = rope_of(&yarn, 16, 1.0, false, None).unwrap_err().to_string();
    assert!(error.contains("`rope_theta` is 1"), "{error}");
    let error = rope_of(&Value::Null, 15, 1e4, false, None).unwrap_err().to_string();
    assert!(error.contains("15 dimensions"), "{error}");
}

//! gpt-oss as it is published, and what its configuration may not say.

use mlx::quantization::{Mode, Quantization};
use mlx::{Array, Dtype, ops};
use serde_json::{Value, json};

use crate::error::Result;
use crate::models::{LoadedModel, load};
use crate::step::Step;
use crate::synth::Draft;

const LAYERS: i32 = 2;
const EXPERTS: i32 = 5;
const INNER: i32 = 96;
const HIDDEN: i32 = 64;

fn config(changes: &Value) -> Value {
    let mut config = json!({
        "model_type": "gpt_oss", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "intermediate_size": INNER, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "num_local_experts": EXPERTS, "num_experts_per_tok": 3,
        "sliding_window": 5, "vocab_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 150_000,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 64, "truncate": false,
        },
        "swiglu_limit": 7.0, "experts_per_token": 3, "initial_context_length": 64,
        "attention_bias": true, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn opened(draft: &Draft) -> Result<LoadedModel> {
    let dir = tempfile::tempdir().unwrap();
    draft.write(dir.path()).unwrap();
    load(dir.path())
}

fn logits(loaded: &LoadedModel) -> Vec<u8> {
    let tokens: Vec<u32> = (0..23).map(|i| (i * 37 + 5) % 96).collect();
    let tokens = Array::from_slice(&tokens, &[1, 23]).unwrap();
    let mut cache = loaded.model.make_cache();
    let step = Step::new(&tokens).all_logits();
    loaded.model.forward(&step, &mut [&mut cache]).unwrap().to_bytes().unwrap()
}

/// `a` and `b` `[E, N, ..]` in turns along the second axis.
fn in_turns(a: &Array, b: &Array) -> Array {
    let shape = [&[EXPERTS, 2 * INNER], &a.shape()[2..]].concat();
    ops::stack([a, b], 2).unwrap().reshape(&shape).unwrap()
}

fn blocks(packed: &Array) -> Array {
    let bytes = ops::view(&ops::contiguous(packed).unwrap(), Dtype::U8).unwrap();
    bytes.reshape(&[EXPERTS, bytes.dim(1), -1, 16]).unwrap()
}

/// As openai/gpt-oss-20b has it: gate and up rows take turns, blocks of 32 numbers are 16 bytes.
#[test]
fn published_names_and_layouts_become_those_of_mlx() {
    let mut ours = Draft::new(config(&json!({})), Dtype::Bf16, 3).unwrap();
    let mxfp4 = Quantization::default_of(Mode::Mxfp4);
    ours.config["quantization"] = json!({"group_size": 32, "bits": 4, "mode": "mxfp4"});
    let mut published = ours.clone();
    published.config = config(&json!({"quantization_config": {
        "quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    }}));
    for layer in 0..LAYERS {
        let experts = format!("model.layers.{layer}.mlp.experts");
        for name in ["gate_proj", "up_proj", "down_proj"] {
            ours.quantize(&format!("{experts}.{name}"), mxfp4).unwrap();
        }
        let mut take = |name: &str| {
            let name = format!("{experts}.{name}");
            published.weights.remove(&name);
            ours.weights[&name].clone()
        };
        let [gate, up] = ["gate_proj", "up_proj"]
            .map(|name| ["weight", "scales", "bias"].map(|part| take(&format!("{name}.{part}"))));
        let down = ["weight", "scales", "bias"].map(|part| take(&format!("down_proj.{part}")));
        let both = |part: usize| in_turns(&gate[part], &up[part]);
        for (name, array) in [
            ("gate_up_proj_blocks", blocks(&both(0))),
            ("gate_up_proj_scales", both(1)),
            ("gate_up_proj_bias", both(2)),
            ("down_proj_blocks", blocks(&down[0])),
            ("down_proj_scales", down[1].clone()),
            ("down_proj_bias", down[2].clone()),
        ] {
            published.weights.insert(format!("{experts}.{name}"), array);
        }
    }
    assert_eq!(published.weights["model.layers.0.mlp.experts.gate_up_proj_blocks"].ndim(), 4);
    let (ours, published) = (opened(&ours).unwrap(), opened(&published).unwrap());
    assert_eq!(published.notes, [""; 0]);
    assert!(logits(&ours) == logits(&published));
}

#[test]
fn configuration_that_does_not_fit_is_refused_by_file_and_field() {
    let good = Draft::new(config(&json!({})), Dtype::Bf16, 3).unwrap();
    for (changes, field) in [
        (json!({"sliding_window": 0}), "sliding_window"),
        (json!({"sliding_window": "128"}), "sliding_window"),
        (json!({"num_hidden_layers": 3}), "layer_types"),
        (json!({"layer_types": ["full_attention"]}), "layer_types"),
        (json!({"layer_types": ["full_attention", "chunked_attention"]}), "layer_types"),
        (json!({"num_experts_per_tok": 6}), "num_experts_per_tok"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"rope_scaling": {"rope_type": "yarn"}}), "rope_scaling.factor"),
        (json!({"rope_scaling": [1]}), "rope_scaling"),
        (json!({"rms_norm_eps": -1}), "rms_norm_eps"),
    ] {
        let draft = Draft { config: config(&changes), ..good.clone() };
        let error = opened(&draft).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("config.json") && error.contains(field), "{changes}: {error}");
    }
    let draft = Draft { config: config(&json!({"rope_parameters": {}, "novel": 1})), ..good };
    let notes = opened(&draft).unwrap().notes.join("\n");
    assert!(notes.contains("`novel`") && notes.contains("`rope_parameters`"), "{notes}");
}

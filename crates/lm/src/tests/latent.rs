//! Latents and grouped experts: names that checkpoints are published under, and caches of latents.

use std::ops::ControlFlow;

use mlx::quantization::Quantization;
use mlx::{Array, Dtype, ops};
use serde_json::{Value, json};

use crate::cache::{Cache, CacheOptions, KvQuantization};
use crate::error::Error;
use crate::generate::{GenerateOptions, generate};
use crate::models::{LoadedModel, Model, load};
use crate::step::Step;
use crate::synth::Draft;

const VOCAB: u32 = 96;

/// A `model_type` and a configuration; widths are multiples of 32, so that every mode can pack them.
type Tiny = (&'static str, fn() -> Value);

const FAMILIES: &[Tiny] = &[
    ("deepseek_v3", || latent(json!({"n_group": 4, "topk_group": 2, "n_shared_experts": 2}))),
    ("deepseek_v32", || latent(json!({"index_n_heads": 3, "index_head_dim": 32, "index_topk": 6}))),
    ("glm4_moe", || {
        json!({
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "partial_rotary_factor": 0.5, "use_qk_norm": true, "attention_bias": true,
            "intermediate_size": 96, "moe_intermediate_size": 32, "n_routed_experts": 8,
            "n_shared_experts": 1, "num_experts_per_tok": 3, "first_k_dense_replace": 1,
            "n_group": 2, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5,
            "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        })
    }),
    ("glm4_moe_lite", || latent(json!({"q_lora_rank": null, "n_group": 1, "topk_group": 1}))),
    ("kimi_k25", || json!({"text_config": latent(json!({"attention_bias": true}))})),
];

fn latent(changes: Value) -> Value {
    let yarn = json!({
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
        "mscale": 0.8, "mscale_all_dim": 1.2,
    });
    let config = json!({
        "num_attention_heads": 3, "q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16, "v_head_dim": 64, "intermediate_size": 96,
        "moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 3, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.7, "rope_scaling": yarn,
    });
    with(config, &changes)
}

fn with(mut config: Value, changes: &Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn draft(model_type: &str, dtype: Dtype) -> Draft {
    let (_, config) = FAMILIES.iter().find(|(name, _)| *name == model_type).unwrap();
    let sizes = json!({
        "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": VOCAB,
        "max_position_embeddings": 512,
    });
    let mut config = config();
    match config.get("text_config").cloned() {
        Some(text) => config["text_config"] = with(text, &sizes),
        None => config = with(config, &sizes),
    }
    config["model_type"] = json!(model_type);
    Draft::new(config, dtype, 7).unwrap()
}

fn loaded(draft: &Draft) -> LoadedModel {
    let dir = tempfile::tempdir().unwrap();
    draft.write(dir.path()).unwrap();
    load(dir.path()).unwrap()
}

fn q4() -> Quantization {
    Quantization::affine(32, 4)
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + 5) % VOCAB).collect()
}

/// The logits of every token.
fn logits(model: &dyn Model, tokens: &[u32], cache: &mut Cache) -> Vec<Vec<f32>> {
    let tokens = Array::from_slice(tokens, &[1, tokens.len() as i32]).unwrap();
    let out = model.forward(&Step::new(&tokens).all_logits(), &mut [cache]).unwrap();
    let flat = out.astype(Dtype::F32).unwrap().to_vec::<f32>().unwrap();
    assert!(flat.iter().all(|x| x.is_finite()));
    flat.chunks(VOCAB as usize).map(<[f32]>::to_vec).collect()
}

fn fresh(model: &dyn Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    logits(model, tokens, &mut model.make_cache())
}

#[track_caller]
fn assert_close(got: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let pairs = || got.iter().flatten().zip(expected.iter().flatten());
    let worst = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = pairs().map(|(_, b)| b.abs()).fold(0.0, f32::max);
    assert!(worst <= 2e-5 * largest, "{what}: {worst} of {largest}");
}

#[test]
fn token_depends_on_every_one_before_it_and_none_after() {
    for (name, _) in FAMILIES {
        let loaded = loaded(&draft(name, Dtype::F32));
        let model = loaded.model.as_ref();
        // fewer than an indexer may choose
        let (mut first, mut last) = (tokens(6), tokens(6));
        first[0] += 1;
        last[5] += 1;
        let (plain, first, last) =
            (fresh(model, &tokens(6)), fresh(model, &first), fresh(model, &last));
        assert_eq!(plain[..5], last[..5], "{name}");
        assert!(plain.iter().zip(&first).all(|(a, b)| a != b), "{name}");
    }
}

/// Rows of different length that start at different positions, each with a cache of its own.
#[test]
fn rows_of_one_cache_equal_single_rows() {
    for (name, _) in FAMILIES {
        let loaded = loaded(&draft(name, Dtype::F32).quantized(q4()).unwrap());
        let model = loaded.model.as_ref();
        let rows = [tokens(12), tokens(24)[12..].to_vec()];
        let mut cache = model.make_cache();
        let mut both = |tokens: &[u32]| {
            let tokens = Array::from_slice(tokens, &[2, tokens.len() as i32 / 2]).unwrap();
            let last = model.forward(&Step::new(&tokens), &mut [&mut cache]).unwrap();
            let flat = last.to_vec::<f32>().unwrap();
            flat.chunks(VOCAB as usize).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        let (first, second) = (both(&rows.concat()), both(&[1, 2]));
        for (i, row) in rows.iter().enumerate() {
            let mut alone = model.make_cache();
            let expected = logits(model, row, &mut alone).pop().unwrap();
            assert_close(&first[i..=i], &[expected], name);
            let expected = logits(model, &[i as u32 + 1], &mut alone);
            assert_close(&second[i..=i], &expected, name);
        }
    }
}

/// `kv_b_proj` in one, experts one by one, a layer more than there are, and what is there for images.
#[test]
fn published_names_become_the_models() {
    for (name, config) in FAMILIES {
        let plain = draft(name, Dtype::F32);
        let mut published = plain.clone();
        let config = config();
        let root = if config.get("text_config").is_some() { "language_model." } else { "" };
        let text = config.get("text_config").unwrap_or(&config);
        for (tensor, array) in &plain.weights {
            if let Some((prefix, rest)) = tensor.split_once("switch_mlp.") {
                published.weights.remove(tensor);
                for e in 0..array.dim(0) {
                    let one = ops::slice_axis(array, 0, e, e + 1).unwrap();
                    let one = ops::squeeze(&one, &[0]).unwrap();
                    published.weights.insert(format!("{prefix}experts.{e}.{rest}"), one);
                }
            } else if let Some((prefix, _)) = tensor.split_once("embed_q.") {
                let values = format!("{prefix}unembed_out.weight");
                let keys = ops::swapaxes(&published.weights.remove(tensor).unwrap(), 1, 2).unwrap();
                let values = published.weights.remove(&values).unwrap();
                let both = ops::concatenate([&keys, &values], 1).unwrap();
                let both = ops::contiguous(&ops::flatten(&both, 0, 1).unwrap()).unwrap();
                assert_eq!(both.dim(1), text["kv_lora_rank"].as_i64().unwrap() as i32);
                published.weights.insert(format!("{prefix}kv_b_proj.weight"), both);
            }
        }
        let extra = Array::from_slice(&[1.0_f32; 4], &[2, 2]).unwrap();
        for more in ["model.layers.3.eh_proj.weight", "model.layers.3.mlp.experts.0.up_proj.weight"]
        {
            published.weights.insert(format!("{root}{more}"), extra.clone());
        }
        if !root.is_empty() {
            published.weights.insert("vision_tower.proj.weight".to_owned(), extra);
        }
        assert!(published.weights.len() > plain.weights.len());
        let run = |draft: &Draft| fresh(loaded(draft).model.as_ref(), &tokens(9));
        assert_eq!(run(&published), run(&plain), "{name}");
    }
}

#[test]
fn latents_are_not_packed() {
    let packing = |start| KvQuantization { bits: 8, group_size: 32, start };
    let mut seen = 0;
    for (name, _) in FAMILIES {
        let loaded = loaded(&draft(name, Dtype::F32));
        let model = loaded.model.as_ref();
        let mut cache = model.make_cache();
        if cache.can_quantize() {
            continue;
        }
        seen += 1;
        logits(model, &tokens(3), &mut cache);
        let before: Vec<_> = cache.arrays().map(Array::dtype).collect();
        cache.quantize(packing(0)).unwrap();
        assert_eq!(cache.arrays().map(Array::dtype).collect::<Vec<_>>(), before, "{name}");
        cache.clear();
        assert!(!cache.can_quantize(), "{name}");
        let limits = CacheOptions { quantized: Some(packing(5000)), max_kv_size: None };
        let options = GenerateOptions { cache: limits, ..GenerateOptions::default() };
        let mut go_on = |_| ControlFlow::Continue(());
        let error = generate(model, &[1, 2], &options, &mut go_on).unwrap_err();
        assert!(matches!(&error, Error::Argument { name: "kv_bits", .. }), "{error}");
    }
    assert!(seen > 0);
}

/// mlx-lm keeps a window of latents too.
#[test]
fn every_family_goes_on_in_a_cache_of_limited_size() {
    for (name, _) in FAMILIES {
        let loaded = loaded(&draft(name, Dtype::Bf16).quantized(q4()).unwrap());
        let limits = CacheOptions { max_kv_size: Some(12), quantized: None };
        let options =
            GenerateOptions { max_tokens: 12, cache: limits, ..GenerateOptions::default() };
        let mut go_on = |_| ControlFlow::Continue(());
        let limited = generate(loaded.model.as_ref(), &tokens(20), &options, &mut go_on).unwrap();
        assert_eq!(limited.token_ids.len(), 12, "{name}");
    }
}

//! Families with recurrent layers: what they compute must not depend on how tokens, rows, weights or names are cut up.

use std::ops::ControlFlow;

use mlx::quantization::{Mode, Quantization};
use mlx::{Array, Dtype, ops};
use serde_json::{Value, json};

use super::fixture::q4;
use crate::cache::{Cache, LayerCache};
use crate::decoder::{Decoder, PromptCache};
use crate::error::Error;
use crate::generate::{GenerateOptions, generate};
use crate::layers::ModuleKind;
use crate::models::{LoadedModel, Model, load};
use crate::patch::{PatchOptions, Patterns, patch};
use crate::step::Step;
use crate::synth::Draft;

const VOCAB: usize = 96;

fn lfm2() -> Value {
    json!({
        "model_type": "lfm2", "hidden_size": 64, "block_dim": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
        "max_position_embeddings": 1024, "norm_eps": 1e-5, "conv_bias": true, "conv_L_cache": 4,
        "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": true, "block_ff_dim": 100, "full_attn_idxs": [1],
    })
}

fn lfm2_moe() -> Value {
    json!({
        "model_type": "lfm2_moe", "hidden_size": 64, "num_hidden_layers": 4, "num_dense_layers": 1,
        "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 6,
        "num_experts_per_tok": 2, "norm_topk_prob": true, "use_expert_bias": true,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCAB,
        "max_position_embeddings": 1024, "norm_eps": 1e-5, "conv_bias": false, "conv_L_cache": 3,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
    })
}

/// What Qwen3-Next and Qwen3.5 both have.
fn delta() -> Value {
    json!({
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 24, "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4, "full_attention_interval": 2, "rms_norm_eps": 1e-6,
        "vocab_size": VOCAB, "max_position_embeddings": 1024,
    })
}

fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn experts() -> Value {
    json!({
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    })
}

fn qwen3_next() -> Value {
    let own = json!({
        "model_type": "qwen3_next", "intermediate_size": 96, "decoder_sparse_step": 2,
        "mlp_only_layers": [], "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
        "norm_topk_prob": true,
    });
    with(with(delta(), experts()), own)
}

fn qwen3_5() -> Value {
    let text = with(delta(), json!({"intermediate_size": 96, "tie_word_embeddings": true}));
    json!({"model_type": "qwen3_5", "text_config": text})
}

fn qwen3_5_moe() -> Value {
    json!({"model_type": "qwen3_5_moe", "text_config": with(delta(), experts())})
}

fn all() -> [Value; 5] {
    [lfm2(), lfm2_moe(), qwen3_next(), qwen3_5(), qwen3_5_moe()]
}

fn loaded(draft: &Draft) -> LoadedModel {
    let dir = tempfile::tempdir().unwrap();
    draft.write(dir.path()).unwrap();
    load(dir.path()).unwrap()
}

fn draft(config: Value, dtype: Dtype) -> Draft {
    Draft::new(config, dtype, 11).unwrap()
}

fn patched(loaded: &mut LoadedModel, patterns: Patterns) {
    patch(loaded, &PatchOptions { patterns, ..PatchOptions::default() }).unwrap();
}

fn tokens(n: usize, from: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 37 + from) % VOCAB) as u32).collect()
}

/// Logits of every position of one row.
fn logits(model: &dyn Model, row: &[u32], cache: &mut Cache) -> Vec<Vec<f32>> {
    let tokens = Array::from_slice(row, &[1, row.len() as i32]).unwrap();
    let out = model.forward(&Step::new(&tokens).all_logits(), &mut [cache]).unwrap();
    let flat = out.astype(Dtype::F32).unwrap().to_vec::<f32>().unwrap();
    assert!(flat.iter().all(|x| x.is_finite()));
    flat.chunks(VOCAB).map(<[f32]>::to_vec).collect()
}

fn fresh(loaded: &LoadedModel, row: &[u32]) -> Vec<Vec<f32>> {
    let model = loaded.model.as_ref();
    logits(model, row, &mut model.make_cache())
}

fn assert_close(got: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    let pairs = || got.iter().flatten().zip(expected.iter().flatten());
    let worst = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = pairs().map(|(_, b)| b.abs()).fold(0.0, f32::max);
    assert!(worst <= 2e-5 * largest, "{what}: {worst} of {largest}");
}

#[test]
fn patched_equals_stock_bit_for_bit() {
    if mlx::build_info().primitives.is_empty() {
        return;
    }
    let (q8, mxfp4) = (Quantization::affine(32, 8), Quantization::default_of(Mode::Mxfp4));
    for config in all() {
        let what = config["model_type"].to_string();
        for (dtype, quantization) in [
            (Dtype::Bf16, Some(q4())),
            (Dtype::Bf16, Some(mxfp4)),
            (Dtype::F16, Some(q8)),
            (Dtype::F32, None),
        ] {
            let mut draft = draft(config.clone(), dtype);
            if let Some(quantization) = quantization {
                draft = draft.quantized(quantization).unwrap();
            }
            let mut loaded = loaded(&draft);
            // attention in float32 has no exact form
            let patterns = match dtype {
                Dtype::F32 => Patterns::Names(vec!["short_conv".into(), "gated_delta".into()]),
                _ => Patterns::Auto,
            };
            let prompts = [tokens(1, 3), tokens(2, 4), tokens(3, 5), tokens(70, 6)];
            let run = |loaded: &LoadedModel| -> Vec<_> {
                let mut cache = loaded.model.make_cache();
                let of = |prompt: &Vec<u32>| logits(loaded.model.as_ref(), prompt, &mut cache);
                prompts.iter().map(of).collect()
            };
            let stock = run(&loaded);
            let options = PatchOptions { patterns, ..PatchOptions::default() };
            let report = patch(&mut loaded, &options).unwrap();
            let own = report.count_fused(ModuleKind::Recurrence);
            let recurrent = loaded.model.make_cache().layers;
            let recurrent = recurrent.iter().filter(|l| matches!(l, LayerCache::State(_))).count();
            let sites = if what.contains("qwen") { 2 * recurrent } else { recurrent };
            assert_eq!(own, sites, "{what} {dtype}");
            assert_eq!(run(&loaded), stock, "{what} {dtype}");
        }
    }
}

#[test]
fn caches_are_merged_and_split_with_their_states() {
    for config in all() {
        let mut loaded = loaded(&draft(config, Dtype::Bf16).quantized(q4()).unwrap());
        patched(&mut loaded, Patterns::Auto);
        let model = loaded.model.as_ref();
        let mut caches = [model.make_cache(), model.make_cache()];
        for (i, cache) in caches.iter_mut().enumerate() {
            logits(model, &tokens(5, 7 * i), cache);
        }
        let merged = Cache::merge(&[&caches[0], &caches[1]]).unwrap();
        let mut parts = merged.split().unwrap();
        for (part, cache) in parts.iter_mut().zip(&caches) {
            assert_eq!(part.len(), 5);
            let next = tokens(2, 50);
            assert_eq!(logits(model, &next, part), logits(model, &next, &mut cache.clone()));
        }
    }
}

/// A state cannot forget: a prompt that parts from what the cache holds begins anew.
#[test]
fn prompt_cache_is_continued_or_begun_anew() {
    for config in all() {
        let mut loaded = loaded(&draft(config, Dtype::Bf16).quantized(q4()).unwrap());
        patched(&mut loaded, Patterns::Auto);
        let model = loaded.model.as_ref();
        assert!(!model.make_cache().can_trim());
        let options = GenerateOptions { max_tokens: 6, ..GenerateOptions::default() };
        let whole = |prompt: &[u32]| {
            generate(model, prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap().token_ids
        };
        let resume = |cache: PromptCache, prompt: &[u32]| {
            let mut decoder = Decoder::resume(model, cache, prompt, &options).unwrap();
            for token in &mut decoder {
                token.unwrap();
            }
            decoder.finish().unwrap()
        };
        let prompt = tokens(9, 2);
        let (first, cache) = resume(PromptCache::new(model.make_cache()), &prompt);
        assert_eq!(first.token_ids, whole(&prompt));
        let held = cache.tokens().len();
        let longer = [&prompt[..], &first.token_ids, &[1, 2, 3]].concat();
        let (second, cache) = resume(cache, &longer);
        assert_eq!((second.reused_tokens, second.token_ids), (held, whole(&longer)));
        let other = [&prompt[..5], &[80, 81]].concat();
        let (third, _) = resume(cache, &other);
        assert_eq!((third.reused_tokens, third.token_ids), (0, whole(&other)));
    }
}

/// A checkpoint as it is published gives the model that mlx-lm's layout gives.
#[test]
fn published_names_and_layouts_are_read() {
    let swapped = |array: &Array| ops::contiguous(&ops::swapaxes(array, 1, 2).unwrap()).unwrap();
    let less_one =
        |array: &Array| ops::subtract(array, &Array::scalar_like(1.0, array).unwrap()).unwrap();
    let one_by_one = |to: &mut Draft, name: &str, array: &Array| {
        let (module, part) = name.split_once("switch_mlp.").unwrap();
        for e in 0..array.dim(0) {
            let one = ops::squeeze(&ops::slice_axis(array, 0, e, e + 1).unwrap(), &[0]).unwrap();
            to.weights.insert(format!("{module}experts.{e}.{part}"), one);
        }
    };
    for config in all() {
        let model_type = config["model_type"].as_str().unwrap().to_owned();
        let is_qwen = model_type.starts_with("qwen");
        let ours = draft(config, Dtype::F32);
        let mut theirs = Draft { weights: Default::default(), ..ours.clone() };
        for (name, array) in &ours.weights {
            let mut name = name.clone();
            let mut array = array.clone();
            if name.ends_with("conv.conv.weight") || name.ends_with("conv1d.weight") {
                array = swapped(&array);
            }
            let shifted =
                ["layernorm.weight", "model.norm.weight", "q_norm.weight", "k_norm.weight"];
            if is_qwen && shifted.iter().any(|end| name.ends_with(end)) {
                array = less_one(&array);
            }
            if model_type == "lfm2_moe" && name.contains(".feed_forward.") {
                for (ours, theirs) in [("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")]
                {
                    name = name.replace(ours, theirs);
                }
            }
            if let Some(rest) = name.strip_prefix("language_model.model.") {
                name = format!("model.language_model.{rest}");
            } else if let Some(rest) = name.strip_prefix("language_model.") {
                name = rest.to_owned();
            }
            match name.split_once(".switch_mlp.") {
                None => drop(theirs.weights.insert(name, array)),
                Some((module, "gate_proj.weight")) if model_type == "qwen3_5_moe" => {
                    let up = name
                        .replace("gate_proj", "up_proj")
                        .replace("model.language_model.", "language_model.model.");
                    let both = ops::concatenate(&[array, ours.weights[&up].clone()], -2).unwrap();
                    theirs.weights.insert(format!("{module}.experts.gate_up_proj"), both);
                }
                Some((_, "up_proj.weight")) if model_type == "qwen3_5_moe" => {}
                Some((module, _)) if model_type == "qwen3_5_moe" => {
                    theirs.weights.insert(format!("{module}.experts.down_proj"), array);
                }
                Some(_) => one_by_one(&mut theirs, &name, &array),
            }
        }
        if is_qwen {
            let odd = ops::zeros(&[3], Dtype::F32).unwrap();
            theirs.weights.insert("mtp.norm.weight".to_owned(), odd.clone());
            if model_type != "qwen3_next" {
                theirs.weights.insert("model.visual.blocks.0.bias".to_owned(), odd);
            }
        }
        assert!(theirs.weights.keys().ne(ours.weights.keys()) || !is_qwen);
        let prompt = tokens(9, 1);
        let (a, b) = (fresh(&loaded(&theirs), &prompt), fresh(&loaded(&ours), &prompt));
        // a norm is rounded when one is taken away, and when it is added
        if is_qwen {
            assert_close(&a, &b, &model_type);
        } else {
            assert_eq!(a, b, "{model_type}");
        }
    }
}

#[test]
fn weights_of_another_type_stay_on_stock_and_say_so() {
    let mut draft = draft(qwen3_5(), Dtype::Bf16).quantized(q4()).unwrap();
    for (name, array) in &mut draft.weights {
        if name.ends_with("conv1d.weight") || name.ends_with("linear_attn.norm.weight") {
            *array = array.astype(Dtype::F32).unwrap();
        }
    }
    let mut loaded = loaded(&draft);
    let stock = fresh(&loaded, &tokens(5, 1));
    let names = ["short_conv", "gated_delta"].map(str::to_owned).to_vec();
    let options = PatchOptions { patterns: Patterns::Names(names), ..PatchOptions::default() };
    let report = patch(&mut loaded, &options).unwrap();
    assert_eq!(report.count_fused(ModuleKind::Recurrence), 0);
    if !mlx::build_info().primitives.is_empty() {
        for (row, reason) in report.fallbacks() {
            assert!(reason.contains(" with activations of bfloat16"), "{}: {reason}", row.module);
        }
    }
    assert_eq!(fresh(&loaded, &tokens(5, 1)), stock);
}

#[test]
fn configurations_that_do_not_fit_are_refused_by_field() {
    let nested = |changes: Value| {
        let mut config = qwen3_5_moe();
        config["text_config"] = with(config["text_config"].clone(), changes);
        config
    };
    for (config, named) in [
        (with(lfm2(), json!({"block_dim": 32})), "block_dim"),
        (with(lfm2(), json!({"block_ff_dim": null})), "block_ff_dim"),
        (with(lfm2(), json!({"conv_L_cache": 1})), "conv_L_cache"),
        (with(lfm2(), json!({"full_attn_idxs": null})), "layer_types"),
        (with(lfm2(), json!({"conv_bias": "no"})), "conv_bias"),
        (with(lfm2(), json!({"block_ffn_dim_multiplier": 1e30})), "block_ffn_dim_multiplier"),
        (with(lfm2(), json!({"full_attn_idxs": [1, -2]})), "full_attn_idxs[1]"),
        (with(lfm2_moe(), json!({"num_experts_per_tok": 7})), "num_experts_per_tok"),
        (with(lfm2_moe(), json!({"layer_types": ["conv", 3]})), "layer_types[1]"),
        (
            with(lfm2_moe(), json!({"rope_parameters": {"rope_theta": 0}})),
            "rope_parameters.rope_theta",
        ),
        (with(qwen3_next(), json!({"linear_num_value_heads": 3})), "linear_num_value_heads"),
        (with(qwen3_next(), json!({"linear_conv_kernel_dim": 1})), "linear_conv_kernel_dim"),
        (with(qwen3_next(), json!({"partial_rotary_factor": 1.5})), "partial_rotary_factor"),
        (with(qwen3_next(), json!({"rope_theta": null})), "rope_theta"),
        (nested(json!({"moe_intermediate_size": null})), "moe_intermediate_size"),
        (
            nested(json!({"linear_num_key_heads": 1 << 30, "linear_num_value_heads": 1 << 30})),
            "linear_num_value_heads",
        ),
        (nested(json!({"num_experts": -1})), "text_config.num_experts"),
        (nested(json!({"rope_parameters": {"rope_type": "spiral"}})), "rope_parameters.rope_type"),
    ] {
        let Err(error) = Draft::new(config.clone(), Dtype::F32, 1) else {
            panic!("{named} was taken: {config}");
        };
        let Error::Config { field, .. } = &error else { panic!("{error}") };
        assert_eq!(field, named, "{error}");
    }
}

#[test]
fn fields_that_nobody_reads_are_told() {
    let mut config = qwen3_5();
    config["text_config"]["layer_types"] = json!(["linear_attention"]);
    config["text_config"]["rope_parameters"] = json!({"rope_type": "default", "surprise": 1});
    config["text_config"]["sliding_window"] = json!(7);
    let notes = loaded(&draft(config, Dtype::F32)).notes;
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("text_config.rope_parameters.surprise"), "{notes:?}");
    assert!(notes[1].contains("text_config.sliding_window"), "{notes:?}");
}

//! A tiny random Qwen3-MoE checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mlx::quantization::{Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops, random};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::models::{LoadedModel, load};

pub(super) const VOCAB: u32 = 96;
pub(super) const EXPERTS: i32 = 6;
pub(super) const PROMPT: &[u32] = &[3, 14, 15, 92, 6, 53, 58];

/// A checkpoint being put together.
pub(super) struct Fixture {
    pub(super) config: Value,
    pub(super) weights: BTreeMap<String, Array>,
}

impl Fixture {
    /// Dense weights of `dtype`: two layers with experts.
    pub(super) fn dense(dtype: Dtype) -> Self {
        Self::with(dtype, json!({}))
    }

    /// Dense weights of `dtype` for the default configuration with `changes`.
    pub(super) fn with(dtype: Dtype, changes: Value) -> Self {
        let mut config = json!({
            "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2,
            "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "num_experts": EXPERTS, "num_experts_per_tok": 2,
            "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 64,
            "rms_norm_eps": 1e-6, "vocab_size": VOCAB, "rope_theta": 10000.0,
            "tie_word_embeddings": false, "max_position_embeddings": 1024,
            "norm_topk_prob": true, "eos_token_id": 1,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let weights = random_weights(&config, dtype);
        Self { config, weights }
    }

    /// Packs every matrix.
    pub(super) fn quantized(mut self, quantization: Quantization) -> Self {
        let Quantization { group_size, bits, mode } = quantization;
        self.config["quantization"] =
            json!({"group_size": group_size, "bits": bits, "mode": mode.name()});
        let matrices: Vec<_> =
            self.weights.iter().filter(|(_, w)| w.ndim() > 1).map(|(n, _)| n.clone()).collect();
        for name in matrices {
            self.quantize(name.strip_suffix(".weight").unwrap(), quantization);
        }
        self
    }

    /// Packs one module's matrix.
    pub(super) fn quantize(&mut self, module: &str, quantization: Quantization) {
        let dense = self.weights.remove(&format!("{module}.weight")).unwrap();
        let packed = QuantizedWeight::quantize(&dense, quantization).unwrap();
        let mut put = |part: &str, array| self.weights.insert(format!("{module}.{part}"), array);
        put("weight", packed.w);
        put("scales", packed.scales);
        if let Some(biases) = packed.biases {
            put("biases", biases);
        }
    }

    /// Writes one file.
    pub(super) fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.write_config(dir.path());
        self.write_part(dir.path(), "model.safetensors", |_| true);
        dir
    }

    /// Writes two shards and their index.
    pub(super) fn write_shards(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.write_config(dir.path());
        let shard = |name: &str| {
            let number = if name.contains("layers.0") { 1 } else { 2 };
            format!("model-0000{number}-of-00002.safetensors")
        };
        let map: BTreeMap<_, _> = self.weights.keys().map(|name| (name, shard(name))).collect();
        for file in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
            self.write_part(dir.path(), file, |name| shard(name) == file);
        }
        let index = json!({"metadata": {}, "weight_map": map});
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        dir
    }

    pub(super) fn write_config(&self, dir: &Path) {
        fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
    }

    pub(super) fn write_part(&self, dir: &Path, file: &str, keep: impl Fn(&str) -> bool) {
        let part = self.weights.iter().filter(|(n, _)| keep(n)).map(|(n, w)| (n.as_str(), w));
        mlx::io::save_safetensors(&dir.join(file), part, []).unwrap();
    }

    /// Writes and loads.
    pub(super) fn load(&self) -> LoadedModel {
        load(self.write().path()).unwrap()
    }
}

/// Four bits in groups of 32.
pub(super) fn q4() -> Quantization {
    Quantization { group_size: 32, bits: 4, mode: Mode::Affine }
}

fn random_weights(config: &Value, dtype: Dtype) -> BTreeMap<String, Array> {
    let mut weights = BTreeMap::new();
    let size = |field: &str| config[field].as_i64().unwrap() as i32;
    let mut key = random::key(7).unwrap();
    let mut put = |name: String, shape: &[i32]| {
        let keys = random::split(&key, 2).unwrap();
        let half = |i| ops::squeeze(&ops::slice_axis(&keys, 0, i, i + 1).unwrap(), &[0]).unwrap();
        key = half(0);
        // lively enough that routing spreads and greedy tokens vary
        let (mean, std) = match shape {
            [_] => (1.0, 0.1),
            _ if name.contains("embed") => (0.0, 0.6),
            [.., width] => (0.0, 2.0 / (*width as f32).sqrt()),
            [] => (0.0, 1.0),
        };
        let array = random::normal(shape, Dtype::F32, mean, std, Some(&half(1))).unwrap();
        weights.insert(name, array.astype(dtype).unwrap());
    };
    let (dim, vocab, head_dim) = (size("hidden_size"), size("vocab_size"), size("head_dim"));
    let (wide, narrow) =
        (size("num_attention_heads") * head_dim, size("num_key_value_heads") * head_dim);
    let (experts, inner, hidden) =
        (size("num_experts"), size("moe_intermediate_size"), size("intermediate_size"));
    put("model.embed_tokens.weight".into(), &[vocab, dim]);
    put("model.norm.weight".into(), &[dim]);
    if !config["tie_word_embeddings"].as_bool().unwrap() {
        put("lm_head.weight".into(), &[vocab, dim]);
    }
    let dense_layers = config["mlp_only_layers"].as_array().unwrap();
    for i in 0..size("num_hidden_layers") {
        let mut put = |name: &str, shape: &[i32]| {
            put(format!("model.layers.{i}.{name}.weight"), shape);
        };
        put("input_layernorm", &[dim]);
        put("post_attention_layernorm", &[dim]);
        put("self_attn.q_proj", &[wide, dim]);
        put("self_attn.k_proj", &[narrow, dim]);
        put("self_attn.v_proj", &[narrow, dim]);
        put("self_attn.o_proj", &[dim, wide]);
        put("self_attn.q_norm", &[head_dim]);
        put("self_attn.k_norm", &[head_dim]);
        if dense_layers.contains(&json!(i)) || (i + 1) % size("decoder_sparse_step") != 0 {
            put("mlp.gate_proj", &[hidden, dim]);
            put("mlp.up_proj", &[hidden, dim]);
            put("mlp.down_proj", &[dim, hidden]);
        } else {
            put("mlp.gate", &[experts, dim]);
            put("mlp.switch_mlp.gate_proj", &[experts, inner, dim]);
            put("mlp.switch_mlp.up_proj", &[experts, inner, dim]);
            put("mlp.switch_mlp.down_proj", &[experts, dim, inner]);
        }
    }
    weights
}

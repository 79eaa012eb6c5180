//! A tiny random Qwen3-MoE checkpoint.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use mlx::Dtype;
use mlx::quantization::{Mode, Quantization};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::models::{LoadedModel, load};
use crate::synth::Draft;

pub(super) const VOCAB: u32 = 96;
pub(super) const EXPERTS: i32 = 6;
pub(super) const PROMPT: &[u32] = &[3, 14, 15, 92, 6, 53, 58];

/// Patterns that have nothing to do on a CPU.
pub(super) const ELSEWHERE: &[&str] = &["recorded_step"];

/// A checkpoint being put together.
pub(super) struct Fixture(Draft);

impl Deref for Fixture {
    type Target = Draft;
    fn deref(&self) -> &Draft {
        &self.0
    }
}

impl DerefMut for Fixture {
    fn deref_mut(&mut self) -> &mut Draft {
        &mut self.0
    }
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
        Self(Draft::new(config, dtype, 7).unwrap())
    }

    /// Packs every matrix.
    pub(super) fn quantized(self, quantization: Quantization) -> Self {
        Self(self.0.quantized(quantization).unwrap())
    }

    /// Packs one module's matrix.
    pub(super) fn quantize(&mut self, module: &str, quantization: Quantization) {
        self.0.quantize(module, quantization).unwrap();
    }

    /// Writes one file.
    pub(super) fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.0.write(dir.path()).unwrap();
        dir
    }

    /// Writes two shards and their index.
    pub(super) fn write_shards(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.0.write_shards(dir.path(), 2).unwrap();
        dir
    }

    pub(super) fn write_config(&self, dir: &Path) {
        self.0.write_config(dir).unwrap();
    }

    pub(super) fn write_part(&self, dir: &Path, file: &str, keep: impl Fn(&str) -> bool) {
        self.0.write_file(dir, file, keep).unwrap();
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

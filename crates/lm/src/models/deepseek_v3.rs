//! DeepSeek-V3 (arXiv:2412.19437), and Kimi-K2 (arXiv:2507.20534) after it: multi-head latent attention, experts in
//! groups behind a sigmoid router with a bias, experts that all tokens share.
//!
//! Reference: mlx-lm 0.32.0, `models/deepseek_v3.py`.

use mlx::Dtype;
use serde::Deserialize;
use serde_json::Value;

use super::Model;
use super::family::{Conversion, Family, Shape};
use super::latent::{self, Epsilons};
use crate::config::{Fields, ModelConfig};
use crate::error::Result;
use crate::rewrite::{Op, Rules};
use crate::weights::Weights;

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Config(pub latent::Config);

/// Rows and columns that share a scale where weights have 8 bits.
pub(super) const FP8_BLOCK: i32 = 128;

/// Whatever `rms_norm_eps` says.
pub(super) const EPSILONS: Epsilons = Epsilons { latent_norm: 1e-6, expert_weights: 0.0 };

impl Fields for Config {
    const DEFAULTS: &'static [(&'static str, &'static str)] = &[
        ("vocab_size", "102400"),
        ("hidden_size", "4096"),
        ("num_hidden_layers", "30"),
        ("rms_norm_eps", "1e-6"),
        ("max_position_embeddings", "2048"),
        ("rope_theta", "10000.0"),
        ("num_attention_heads", "32"),
        ("q_lora_rank", "1536"),
        ("kv_lora_rank", "512"),
        ("qk_nope_head_dim", "128"),
        ("qk_rope_head_dim", "64"),
        ("v_head_dim", "128"),
        ("attention_bias", "false"),
        ("intermediate_size", "11008"),
        ("num_experts_per_tok", "1"),
        ("moe_intermediate_size", "1407"),
        ("first_k_dense_replace", "0"),
        ("moe_layer_freq", "1"),
        ("topk_method", "\"noaux_tc\""),
        ("n_group", "1"),
        ("topk_group", "1"),
        ("norm_topk_prob", "true"),
        ("routed_scaling_factor", "1.0"),
    ];
    const UNUSED: &'static [&'static str] =
        &["aux_loss_alpha", "num_key_value_heads", "num_nextn_predict_layers", "seq_aux"];
    const ASSUMED: &'static [(&'static str, &'static str)] =
        &[("ep_size", "1"), ("hidden_act", "\"silu\""), ("scoring_func", "\"sigmoid\"")];
    const FOREIGN: &'static [&'static str] = latent::INDEXER;

    fn check(&self, config: &ModelConfig) -> Result<()> {
        self.0.check(config)
    }
}

impl Family for Config {
    const CONVERSION: Conversion = latent::CONVERSION;

    fn shape(&self) -> Shape {
        self.0.shape()
    }

    fn is_moe(&self, layer: i32) -> bool {
        self.0.is_moe(layer)
    }

    fn check_heads(&self, config: &ModelConfig) -> Result<()> {
        self.0.check_heads(config)
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        self.0.facts()
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        weights.rewrite(&self.rules(""))?;
        self.0.load(config, &weights.root(), EPSILONS)
    }
}

impl Config {
    /// From published names to this model's, whose names begin with `root`. Numbers of 4 and 8 bits come first: four bits
    /// of compressed-tensors, whose codes stand for -8 to 7, and eight with a scale for each 128 by 128.
    pub(super) fn rules(&self, root: &str) -> Rules {
        let packed = vec![("{m}.weight".to_owned(), vec![Op::View(Dtype::U32)])];
        let scaled = vec![
            ("{m}.scales".to_owned(), Vec::new()),
            ("{m}.biases".to_owned(), vec![Op::Multiply(-8.0)]),
        ];
        let rules = Rules::new()
            .drop("{m*}.weight_shape")
            .become_each("{m*}.weight_packed", packed)
            .become_each("{m*}.weight_scale", scaled)
            .scale_blocks("{m*}.weight_scale_inv", "{m}.weight", FP8_BLOCK)
            .drop("{m*}rotary_emb.inv_freq{rest*}");
        self.0.rules(rules, root)
    }
}

//! GLM-4.7-Flash (arXiv:2508.06471): the experts of GLM-4.5 behind the multi-head latent attention of DeepSeek-V3.
//!
//! Reference: mlx-lm 0.32.0, `models/glm4_moe_lite.py`. It differs from `deepseek_v3` in two epsilons and in what fields
//! are by default.

use serde::Deserialize;
use serde_json::Value;

use super::Model;
use super::family::{Conversion, Family, Shape};
use super::latent::{self, Epsilons};
use crate::config::{Fields, ModelConfig};
use crate::error::Result;
use crate::rewrite::Rules;
use crate::weights::Weights;

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Config(latent::Config);

impl Fields for Config {
    const DEFAULTS: &'static [(&'static str, &'static str)] = &[
        ("vocab_size", "154880"),
        ("hidden_size", "2048"),
        ("num_hidden_layers", "47"),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "202752"),
        ("rope_theta", "1000000.0"),
        ("num_attention_heads", "20"),
        ("q_lora_rank", "768"),
        ("kv_lora_rank", "512"),
        ("qk_nope_head_dim", "192"),
        ("qk_rope_head_dim", "64"),
        ("v_head_dim", "256"),
        ("attention_bias", "false"),
        ("intermediate_size", "10240"),
        ("n_routed_experts", "64"),
        ("n_shared_experts", "1"),
        ("num_experts_per_tok", "4"),
        ("moe_intermediate_size", "1536"),
        ("first_k_dense_replace", "1"),
        ("moe_layer_freq", "1"),
        ("topk_method", "\"noaux_tc\""),
        ("n_group", "1"),
        ("topk_group", "1"),
        ("norm_topk_prob", "true"),
        ("routed_scaling_factor", "1.8"),
    ];
    const UNUSED: &'static [&'static str] = &["num_key_value_heads", "num_nextn_predict_layers"];
    const ASSUMED: &'static [(&'static str, &'static str)] = &[
        ("hidden_act", "\"silu\""),
        ("partial_rotary_factor", "1.0"),
        ("scoring_func", "\"sigmoid\""),
    ];
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
        weights.rewrite(&self.0.rules(Rules::new(), ""))?;
        let eps = Epsilons { latent_norm: self.0.rms_norm_eps.f32(), expert_weights: 1e-20 };
        self.0.load(config, &weights.root(), eps)
    }
}

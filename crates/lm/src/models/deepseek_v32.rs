//! DeepSeek-V3.2 (arXiv:2512.02556): DeepSeek-V3 with an indexer in each layer, which chooses the keys that a query
//! sees.
//!
//! Reference: mlx-lm 0.32.0, `models/deepseek_v32.py`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Model;
use super::deepseek_v3::{self, EPSILONS, FP8_BLOCK};
use super::family::{Conversion, Family, Shape};
use super::latent;
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
        ("index_n_heads", "64"),
        ("index_head_dim", "128"),
        ("index_topk", "2048"),
        ("indexer_rope_interleave", "false"),
    ];
    const UNUSED: &'static [&'static str] = <deepseek_v3::Config as Fields>::UNUSED;
    const ASSUMED: &'static [(&'static str, &'static str)] =
        <deepseek_v3::Config as Fields>::ASSUMED;

    fn check(&self, config: &ModelConfig) -> Result<()> {
        let fields = &self.0;
        for (name, field) in [
            ("q_lora_rank", fields.q_lora_rank),
            ("index_n_heads", fields.index_n_heads),
            ("index_head_dim", fields.index_head_dim),
            ("index_topk", fields.index_topk),
        ] {
            if field.is_none() {
                return Err(config.error(name, "is null, which the indexer cannot do with"));
            }
        }
        let (width, turned) = (fields.index_head_dim, *fields.qk_rope_head_dim);
        if let Some(width) = width.filter(|width| **width < turned) {
            let reason = format!("is {}, less than qk_rope_head_dim ({turned})", *width);
            return Err(config.error("index_head_dim", reason));
        }
        fields.check(config)
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
        let of_index = [
            ("index_n_heads", self.0.index_n_heads),
            ("index_head_dim", self.0.index_head_dim),
            ("index_topk", self.0.index_topk),
        ];
        let of_index = of_index.map(|(name, size)| (name, json!(size.map(|size| *size))));
        self.0.facts().into_iter().chain(of_index).collect()
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        let rules = Rules::new().scale_blocks("{m*}.weight_scale_inv", "{m}.weight", FP8_BLOCK);
        weights.rewrite(&self.0.rules(rules, ""))?;
        self.0.load(config, &weights.root(), EPSILONS)
    }
}

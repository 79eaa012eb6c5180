//! Qwen2-MoE (arXiv:2407.10671) and Qwen1.5-MoE: grouped-query attention with biases of queries, keys and values,
//! feed-forward by a mixture of experts and one that all tokens share, weighed by a gate.
//!
//! Reference: mlx-lm 0.32.0, `models/qwen2_moe.py`. Like it, this file does not apply `norm_topk_prob`,
//! `rope_scaling`, `tie_word_embeddings`, `decoder_sparse_step` and `mlp_only_layers`; a checkpoint that sets one of the
//! first three is told so.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Model;
use super::causal::CausalLm;
use super::family::{Conversion, Experts, Family, Shape};
use crate::config::{Fields, ModelConfig, Positive, Size, whole};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, Choice, DecoderLayer, Heads, MoeBlock, MoeOptions, Rope,
    RopeOptions, Routing, SharedOptions,
};
use crate::rewrite::Rules;
use crate::weights::{Scope, Weights};

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub hidden_size: Size,
    pub num_hidden_layers: Size,
    pub num_attention_heads: Size,
    /// As many as query heads by default.
    pub num_key_value_heads: Option<Size>,
    pub num_experts: Size,
    pub num_experts_per_tok: Size,
    pub moe_intermediate_size: Size,
    pub shared_expert_intermediate_size: Size,
    pub rms_norm_eps: Positive,
    pub vocab_size: Size,
    pub max_position_embeddings: Option<Size>,
    #[serde(default = "whole::<1_000_000>")]
    pub rope_theta: Positive,
    #[serde(default)]
    pub rope_traditional: bool,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &[
        "decoder_sparse_step",
        "hidden_act",
        "intermediate_size",
        "max_window_layers",
        "mlp_only_layers",
        "sliding_window",
    ];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        self.experts().check(config, "num_experts_per_tok", "num_experts")
    }
}

impl Config {
    fn experts(&self) -> Experts {
        Experts {
            num_experts: *self.num_experts,
            top_k: *self.num_experts_per_tok,
            intermediate_size: *self.moe_intermediate_size,
        }
    }
}

impl Family for Config {
    const CONVERSION: Conversion = Conversion {
        order: &[
            ("layers", &["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"]),
            ("shared_expert", &["gate_proj", "down_proj", "up_proj"]),
        ],
        ..Conversion::DEFAULT
    };

    fn shape(&self) -> Shape {
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: None,
            heads: Heads::new(
                self.hidden_size,
                self.num_attention_heads,
                self.num_key_value_heads,
                None,
            ),
            experts: Some(self.experts()),
            vocab_size: *self.vocab_size,
            max_position_embeddings: self.max_position_embeddings.map(|n| *n),
            norm_eps: self.rms_norm_eps.f32(),
            tied: false,
        }
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let size = *self.shared_expert_intermediate_size;
        vec![("shared_expert_intermediate_size", json!(size))]
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        // from Hugging Face names: single experts become stacks
        weights.rewrite(&Rules::new().stack(
            "model.layers.{l#}.mlp.experts.{e#}.{p:up_proj|down_proj|gate_proj}.{part:weight|scales|biases}",
            "e",
            *self.num_experts,
            "model.layers.{l}.mlp.switch_mlp.{p}.{part}",
        ))?;
        let shape = self.shape();
        let rope = RopeOptions {
            dims: shape.heads.head_dim,
            base: self.rope_theta,
            traditional: self.rope_traditional,
            scaling: None,
            max_position_embeddings: self.max_position_embeddings,
        };
        let attention = AttentionOptions {
            qkv_bias: true,
            rope: Some(Rope::from_config(config, rope)?),
            ..AttentionOptions::new(shape.hidden_size, shape.heads)
        };
        let experts = self.experts();
        let routing =
            Routing { choice: Choice::FirstOfDescending, ..Routing::softmax(experts.top_k) };
        let shared =
            SharedOptions { intermediate_size: *self.shared_expert_intermediate_size, gated: true };
        let moe = MoeOptions { shared: Some(shared), ..experts.options(&shape, routing) };
        let model = CausalLm::load(&weights.root(), &shape, |_, layer| {
            let attention = |scope: &Scope<'_>| Attention::load(scope, attention.clone());
            let moe = |scope: &Scope<'_>| MoeBlock::load(scope, moe.clone());
            DecoderLayer::load(&layer, shape.layer(), attention, moe)
        })?;
        Ok(Box::new(model))
    }
}

//! Qwen3-MoE (arXiv:2505.09388): grouped-query attention with normalised queries and keys, feed-forward by a
//! mixture of experts without shared ones.
//!
//! Reference: mlx-lm 0.32.0, `models/qwen3_moe.py`. Like it, this file does not apply `rope_scaling`,
//! `attention_bias` and `sliding_window`; a checkpoint that sets one is told so.

use serde::Deserialize;

use super::Model;
use super::causal::CausalLm;
use super::family::{Conversion, Experts, Family, Shape};
use crate::config::{Count, Fields, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, DecoderLayer, FeedForward, Heads, Mlp, MoeBlock, QkNorm, Rope,
    Routing,
};
use crate::rewrite::Rules;
use crate::weights::{Scope, Weights};

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub hidden_size: Size,
    pub num_hidden_layers: Size,
    pub intermediate_size: Size,
    pub num_attention_heads: Size,
    pub num_key_value_heads: Size,
    /// `hidden_size / num_attention_heads` by default.
    pub head_dim: Option<Size>,
    pub num_experts: Count,
    pub num_experts_per_tok: Count,
    pub decoder_sparse_step: Size,
    pub mlp_only_layers: Vec<Count>,
    pub moe_intermediate_size: Size,
    pub norm_topk_prob: bool,
    pub rms_norm_eps: Positive,
    pub rope_theta: Positive,
    pub vocab_size: Size,
    pub max_position_embeddings: Size,
    pub tie_word_embeddings: bool,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &["hidden_act", "max_window_layers"];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        match self.experts() {
            Some(experts) => experts.check(config, "num_experts_per_tok", "num_experts"),
            None => Ok(()),
        }
    }
}

impl Config {
    fn experts(&self) -> Option<Experts> {
        let experts = Experts {
            num_experts: *self.num_experts,
            top_k: *self.num_experts_per_tok,
            intermediate_size: *self.moe_intermediate_size,
        };
        Some(experts).filter(|experts| experts.num_experts > 0)
    }

    fn load_feed_forward(&self, layer: i32, scope: &Scope<'_>) -> Result<FeedForward> {
        let shape = self.shape();
        let Some(experts) = shape.experts.filter(|_| self.is_moe(layer)) else {
            return Ok(Mlp::load(scope, shape.hidden_size, *self.intermediate_size)?.into());
        };
        let routing =
            Routing { norm_topk_prob: self.norm_topk_prob, ..Routing::softmax(experts.top_k) };
        Ok(MoeBlock::load(scope, experts.options(&shape, routing))?.into())
    }
}

impl Family for Config {
    const CONVERSION: Conversion = Conversion {
        precise: &["mlp.gate"],
        order: &[
            ("layers", &["self_attn", "input_layernorm", "post_attention_layernorm", "mlp"]),
            ("mlp", &["gate_proj", "down_proj", "up_proj"]),
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
                Some(self.num_key_value_heads),
                self.head_dim,
            ),
            experts: self.experts(),
            vocab_size: *self.vocab_size,
            max_position_embeddings: Some(*self.max_position_embeddings),
            norm_eps: self.rms_norm_eps.f32(),
            tied: self.tie_word_embeddings,
        }
    }

    fn is_moe(&self, layer: i32) -> bool {
        *self.num_experts > 0
            && !self.mlp_only_layers.iter().any(|dense| **dense == layer)
            && (layer + 1) % *self.decoder_sparse_step == 0
    }

    fn load(&self, _: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        // from Hugging Face names: single experts become stacks
        weights.rewrite(&Rules::new().stack(
            "model.layers.{l#}.mlp.experts.{e#}.{p:up_proj|down_proj|gate_proj}.weight",
            "e",
            *self.num_experts,
            "model.layers.{l}.mlp.switch_mlp.{p}.weight",
        ))?;
        let shape = self.shape();
        let attention = AttentionOptions {
            qk_norm: Some(QkNorm::Heads(shape.norm_eps)),
            rope: Some(Rope::new(shape.heads.head_dim, self.rope_theta.f32())),
            ..AttentionOptions::new(shape.hidden_size, shape.heads)
        };
        let model = CausalLm::load(&weights.root(), &shape, |i, layer| {
            let attention = |scope: &Scope<'_>| Attention::load(scope, attention.clone());
            let feed_forward = |scope: &Scope<'_>| self.load_feed_forward(i, scope);
            DecoderLayer::load(&layer, shape.layer(), attention, feed_forward)
        })?;
        Ok(Box::new(model))
    }
}

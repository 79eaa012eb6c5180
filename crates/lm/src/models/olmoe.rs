//! OLMoE (arXiv:2409.02060): attention with queries and keys normalised over all heads together, feed-forward by a
//! mixture of experts without shared ones.
//!
//! Reference: mlx-lm 0.32.0, `models/olmoe.py`.

use serde::Deserialize;

use super::Model;
use super::causal::CausalLm;
use super::family::{Experts, Family, Shape};
use crate::config::{Fields, ModelConfig, Positive, Size, whole, yes};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, Choice, DecoderLayer, GluOptions, Heads, MoeBlock, MoeOptions,
    QkNorm, Rope, RopeOptions, RopeScaling, Routing,
};
use crate::rewrite::Rules;
use crate::weights::{Scope, Weights};

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub hidden_size: Size,
    pub num_hidden_layers: Size,
    /// Inner width of an expert.
    pub intermediate_size: Size,
    pub num_attention_heads: Size,
    /// As many as query heads by default.
    pub num_key_value_heads: Option<Size>,
    /// `hidden_size / num_attention_heads` by default.
    pub head_dim: Option<Size>,
    pub num_experts: Size,
    pub num_experts_per_tok: Size,
    #[serde(default)]
    pub norm_topk_prob: bool,
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub mlp_bias: bool,
    pub rms_norm_eps: Positive,
    pub vocab_size: Size,
    pub max_position_embeddings: Option<Size>,
    #[serde(default = "whole::<10_000>")]
    pub rope_theta: Positive,
    #[serde(default)]
    pub rope_traditional: bool,
    pub rope_scaling: Option<RopeScaling>,
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &["hidden_act"];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        self.experts().check(config, "num_experts_per_tok", "num_experts")
    }
}

impl Config {
    fn experts(&self) -> Experts {
        Experts {
            num_experts: *self.num_experts,
            top_k: *self.num_experts_per_tok,
            intermediate_size: *self.intermediate_size,
        }
    }
}

impl Family for Config {
    fn shape(&self) -> Shape {
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: None,
            heads: Heads::new(
                self.hidden_size,
                self.num_attention_heads,
                self.num_key_value_heads,
                self.head_dim,
            ),
            experts: Some(self.experts()),
            vocab_size: *self.vocab_size,
            max_position_embeddings: self.max_position_embeddings.map(|n| *n),
            norm_eps: self.rms_norm_eps.f32(),
            tied: self.tie_word_embeddings,
        }
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
            scaling: self.rope_scaling.as_ref().map(|scaling| ("rope_scaling", scaling)),
            max_position_embeddings: self.max_position_embeddings,
        };
        let attention = AttentionOptions {
            qkv_bias: self.attention_bias,
            output_bias: self.attention_bias,
            qk_norm: Some(QkNorm::Whole(shape.norm_eps)),
            rope: Some(Rope::from_config(config, rope)?),
            ..AttentionOptions::new(shape.hidden_size, shape.heads)
        };
        let experts = self.experts();
        let routing = Routing {
            choice: Choice::FirstOfDescending,
            norm_topk_prob: self.norm_topk_prob,
            ..Routing::softmax(experts.top_k)
        };
        let glu = GluOptions { bias: self.mlp_bias, ..GluOptions::default() };
        let moe = MoeOptions { glu, ..experts.options(&shape, routing) };
        let model = CausalLm::load(&weights.root(), &shape, |_, layer| {
            let attention = |scope: &Scope<'_>| Attention::load(scope, attention.clone());
            let moe = |scope: &Scope<'_>| MoeBlock::load(scope, moe.clone());
            DecoderLayer::load(&layer, shape.layer(), attention, moe)
        })?;
        Ok(Box::new(model))
    }
}

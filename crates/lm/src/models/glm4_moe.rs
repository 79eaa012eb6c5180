//! GLM-4.5 (arXiv:2508.06471): grouped-query attention that turns a part of each head, and the experts of DeepSeek-V3.
//!
//! Reference: mlx-lm 0.32.0, `models/glm4_moe.py`. Like it, this file does not apply `rope_scaling`, and has an output
//! projection of its own whatever `tie_word_embeddings` says; a checkpoint that sets one is told so.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Model;
use super::causal::CausalLm;
use super::family::{Conversion, Experts, Family, Shape};
use super::latent::{self, check_topk_method, with_stacked_experts};
use crate::config::{Count, Fields, Finite, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, DecoderLayer, FeedForward, GroupedExperts, Groups, Heads, Mlp,
    QkNorm, Rope, RopeOptions,
};
use crate::rewrite::Rules;
use crate::weights::{Scope, Weights};

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub vocab_size: Size,
    pub hidden_size: Size,
    pub num_hidden_layers: Size,
    pub rms_norm_eps: Positive,
    pub max_position_embeddings: Size,
    pub num_attention_heads: Size,
    pub num_key_value_heads: Size,
    pub head_dim: Size,
    pub attention_bias: bool,
    pub use_qk_norm: bool,
    pub rope_theta: Positive,
    pub partial_rotary_factor: Positive,
    /// That of dense layers.
    pub intermediate_size: Size,
    /// `null`: all layers are dense.
    pub n_routed_experts: Option<Size>,
    /// `null`: none.
    pub n_shared_experts: Option<Size>,
    pub num_experts_per_tok: Size,
    pub moe_intermediate_size: Size,
    pub first_k_dense_replace: Count,
    pub topk_method: String,
    pub n_group: Size,
    pub topk_group: Size,
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: Finite,
}

impl Fields for Config {
    const DEFAULTS: &'static [(&'static str, &'static str)] = &[("topk_method", "\"noaux_tc\"")];
    const UNUSED: &'static [&'static str] = &["num_nextn_predict_layers"];
    const ASSUMED: &'static [(&'static str, &'static str)] =
        &[("hidden_act", "\"silu\""), ("scoring_func", "\"sigmoid\"")];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        check_topk_method(config, &self.topk_method)?;
        self.experts().map_or(Ok(()), |experts| experts.check(config))
    }
}

impl Config {
    fn experts(&self) -> Option<GroupedExperts> {
        Some(GroupedExperts {
            num_experts: *self.n_routed_experts?,
            top_k: *self.num_experts_per_tok,
            intermediate_size: *self.moe_intermediate_size,
            num_shared: self.n_shared_experts.map_or(0, |shared| *shared),
            groups: Groups { num_groups: *self.n_group, top_k: *self.topk_group },
            norm_topk_prob: self.norm_topk_prob,
            norm_eps: 0.0,
            scale: self.routed_scaling_factor.f64() as f32,
        })
    }

    fn rope(&self, config: &ModelConfig) -> Result<Rope> {
        let options = RopeOptions {
            dims: (f64::from(*self.head_dim) * self.partial_rotary_factor.f64()) as i32,
            base: self.rope_theta,
            traditional: false,
            scaling: None,
            max_position_embeddings: None,
        };
        Rope::from_config(config, options)
    }

    fn feed_forward(&self, layer: i32, scope: &Scope<'_>) -> Result<FeedForward> {
        let dim = *self.hidden_size;
        Ok(match self.experts().filter(|_| self.is_moe(layer)) {
            Some(experts) => experts.load(scope, dim)?.into(),
            None => Mlp::load(scope, dim, *self.intermediate_size)?.into(),
        })
    }
}

impl Family for Config {
    const CONVERSION: Conversion = latent::CONVERSION;

    fn shape(&self) -> Shape {
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: Some(*self.intermediate_size),
            heads: Heads {
                num_heads: *self.num_attention_heads,
                num_kv_heads: *self.num_key_value_heads,
                head_dim: *self.head_dim,
            },
            experts: self.n_routed_experts.map(|num_experts| Experts {
                num_experts: *num_experts,
                top_k: *self.num_experts_per_tok,
                intermediate_size: *self.moe_intermediate_size,
            }),
            vocab_size: *self.vocab_size,
            max_position_embeddings: Some(*self.max_position_embeddings),
            norm_eps: self.rms_norm_eps.f32(),
            tied: false,
        }
    }

    fn is_moe(&self, layer: i32) -> bool {
        self.n_routed_experts.is_some() && layer >= *self.first_k_dense_replace
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        vec![("n_shared_experts", json!(self.n_shared_experts.map(|shared| *shared)))]
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        let (layers, experts) = (self.num_hidden_layers, self.n_routed_experts);
        weights.rewrite(&with_stacked_experts(Rules::new(), "", layers, experts))?;
        let shape = self.shape();
        let attention = AttentionOptions {
            qkv_bias: self.attention_bias,
            qk_norm: self.use_qk_norm.then_some(QkNorm::Heads(shape.norm_eps)),
            rope: Some(self.rope(config)?),
            ..AttentionOptions::new(shape.hidden_size, shape.heads)
        };
        let model = CausalLm::load(&weights.root(), &shape, |i, layer| {
            let attention = |scope: &Scope<'_>| Attention::load(scope, attention.clone());
            let feed_forward = |scope: &Scope<'_>| self.feed_forward(i, scope);
            DecoderLayer::load(&layer, shape.layer(), attention, feed_forward)
        })?;
        Ok(Box::new(model))
    }
}

//! Qwen3 (arXiv:2505.09388), the dense family: grouped-query attention with normalised queries and keys, one
//! feed-forward.
//!
//! Reference: mlx-lm 0.32.0, `models/qwen3.py`. Unlike its sibling `qwen3_moe` it applies `rope_scaling`.

use serde::Deserialize;

use super::Model;
use super::causal::CausalLm;
use super::family::{Family, Shape};
use crate::config::{Fields, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, DecoderLayer, Heads, Mlp, QkNorm, Rope, RopeOptions, RopeScaling,
};
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
    pub head_dim: Size,
    pub rms_norm_eps: Positive,
    pub vocab_size: Size,
    pub max_position_embeddings: Size,
    pub rope_theta: Option<Positive>,
    pub rope_scaling: Option<RopeScaling>,
    pub rope_parameters: Option<RopeScaling>,
    pub tie_word_embeddings: bool,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &["hidden_act", "max_window_layers"];
}

impl Config {
    /// `rope_theta` and `rope_scaling`, or what newer files nest under `rope_parameters` in their place.
    fn rope(&self, config: &ModelConfig) -> Result<Rope> {
        let nested = self.rope_parameters.as_ref();
        let base = self.rope_theta.or(nested.and_then(|nested| nested.rope_theta));
        let scaling = self.rope_scaling.as_ref().map(|scaling| ("rope_scaling", scaling));
        let options = RopeOptions {
            dims: *self.head_dim,
            base: base.ok_or_else(|| config.error("rope_theta", "is missing"))?,
            traditional: false,
            scaling: scaling.or(nested.map(|nested| ("rope_parameters", nested))),
            max_position_embeddings: Some(self.max_position_embeddings),
        };
        Rope::from_config(config, options)
    }
}

impl Family for Config {
    fn shape(&self) -> Shape {
        Shape {
            hidden_size: *self.hidden_size,
            num_layers: *self.num_hidden_layers,
            intermediate_size: Some(*self.intermediate_size),
            heads: Heads::new(
                self.hidden_size,
                self.num_attention_heads,
                Some(self.num_key_value_heads),
                Some(self.head_dim),
            ),
            experts: None,
            vocab_size: *self.vocab_size,
            max_position_embeddings: Some(*self.max_position_embeddings),
            norm_eps: self.rms_norm_eps.f32(),
            tied: self.tie_word_embeddings,
        }
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        let (shape, width) = (self.shape(), *self.intermediate_size);
        let attention = AttentionOptions {
            qk_norm: Some(QkNorm::Heads(shape.norm_eps)),
            rope: Some(self.rope(config)?),
            ..AttentionOptions::new(shape.hidden_size, shape.heads)
        };
        let model = CausalLm::load(&weights.root(), &shape, |_, layer| {
            let attention = |scope: &Scope<'_>| Attention::load(scope, attention.clone());
            let mlp = |scope: &Scope<'_>| Mlp::load(scope, shape.hidden_size, width);
            DecoderLayer::load(&layer, shape.layer(), attention, mlp)
        })?;
        Ok(Box::new(model))
    }
}

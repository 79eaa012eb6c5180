//! Qwen2 and Qwen2.5 (arXiv:2407.10671, arXiv:2412.15115), the dense family: grouped-query attention with biases of
//! queries, keys and values, one feed-forward.
//!
//! Reference: mlx-lm 0.32.0, `models/qwen2.py`. Like it, this file slides no window.

use serde::Deserialize;

use super::Model;
use super::causal::CausalLm;
use super::family::{Family, Shape};
use crate::config::{Fields, ModelConfig, Positive, Size, size, whole, yes};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, DecoderLayer, Heads, Mlp, Rope, RopeOptions, RopeScaling,
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
    pub rms_norm_eps: Positive,
    pub vocab_size: Size,
    #[serde(default = "size::<32_768>")]
    pub max_position_embeddings: Size,
    #[serde(default = "whole::<1_000_000>")]
    pub rope_theta: Positive,
    #[serde(default)]
    pub rope_traditional: bool,
    pub rope_scaling: Option<RopeScaling>,
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &["hidden_act", "max_window_layers", "sliding_window"];
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
                None,
            ),
            experts: None,
            vocab_size: *self.vocab_size,
            max_position_embeddings: Some(*self.max_position_embeddings),
            norm_eps: self.rms_norm_eps.f32(),
            tied: self.tie_word_embeddings,
        }
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        let unused = Rules::new().drop("{module*}self_attn.rotary_emb.inv_freq{rest*}");
        weights.rewrite(&unused)?;
        let (shape, width) = (self.shape(), *self.intermediate_size);
        let rope = RopeOptions {
            dims: shape.heads.head_dim,
            base: self.rope_theta,
            traditional: self.rope_traditional,
            scaling: self.rope_scaling.as_ref().map(|scaling| ("rope_scaling", scaling)),
            max_position_embeddings: Some(self.max_position_embeddings),
        };
        let options = AttentionOptions {
            qkv_bias: true,
            rope: Some(Rope::from_config(config, rope)?),
            ..AttentionOptions::new(shape.hidden_size, shape.heads)
        };
        let model = CausalLm::load(&weights.root(), &shape, |_, layer| {
            let attention = |scope: &Scope<'_>| Attention::load(scope, options.clone());
            let mlp = |scope: &Scope<'_>| Mlp::load(scope, shape.hidden_size, width);
            DecoderLayer::load(&layer, shape.layer(), attention, mlp)
        })?;
        Ok(Box::new(model))
    }
}

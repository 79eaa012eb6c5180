//! LLaMA (arXiv:2302.13971, arXiv:2407.21783) and what is built like it, Mistral (arXiv:2310.06825) among others:
//! grouped-query attention, all of it or that of some layers over a sliding window, and one feed-forward.
//!
//! Reference: mlx-lm 0.32.0, `models/llama.py`. Like it, this file slides a window only where `layer_types` say so.

use serde::Deserialize;

use super::Model;
use super::causal::CausalLm;
use super::family::{Family, LayerType, Shape, Windows};
use crate::config::{Fields, ModelConfig, Positive, Size, whole};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, DecoderLayer, GluOptions, Heads, Mlp, Rope, RopeOptions,
    RopeScaling,
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
    /// As many as query heads by default.
    pub num_key_value_heads: Option<Size>,
    /// `hidden_size / num_attention_heads` by default.
    pub head_dim: Option<Size>,
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
    /// True by default.
    pub tie_word_embeddings: Option<bool>,
    pub layer_types: Option<Vec<LayerType>>,
    pub sliding_window: Option<Size>,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &["hidden_act"];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        self.windows().check(config, *self.num_hidden_layers)
    }
}

impl Config {
    fn windows(&self) -> Windows<'_> {
        let layer_types = self.layer_types.as_deref();
        Windows { layer_types, sliding_window: self.sliding_window }
    }

    /// Takes the weights below `root`.
    ///
    /// # Errors
    /// `Config`, and those of taking weights.
    pub fn load_below(&self, config: &ModelConfig, root: &Scope<'_>) -> Result<Box<dyn Model>> {
        root.rewrite(Rules::new().drop("{module*}self_attn.rotary_emb.inv_freq{rest*}"))?;
        let (shape, windows) = (self.shape(), self.windows());
        let rope = RopeOptions {
            dims: shape.heads.head_dim,
            base: self.rope_theta,
            traditional: self.rope_traditional,
            scaling: self.rope_scaling.as_ref().map(|scaling| ("rope_scaling", scaling)),
            max_position_embeddings: self.max_position_embeddings,
        };
        let options = AttentionOptions {
            qkv_bias: self.attention_bias,
            output_bias: self.attention_bias,
            rope: Some(Rope::from_config(config, rope)?),
            ..AttentionOptions::new(shape.hidden_size, shape.heads)
        };
        let glu = GluOptions { bias: self.mlp_bias, ..GluOptions::default() };
        let width = *self.intermediate_size;
        let model = CausalLm::load(root, &shape, |i, layer| {
            let options = AttentionOptions { window: windows.of(i), ..options.clone() };
            let attention = |scope: &Scope<'_>| Attention::load(scope, options);
            let mlp = |scope: &Scope<'_>| Mlp::load_with(scope, shape.hidden_size, width, glu);
            DecoderLayer::load(&layer, shape.layer(), attention, mlp)
        })?;
        Ok(Box::new(model))
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
                self.num_key_value_heads,
                self.head_dim,
            ),
            experts: None,
            vocab_size: *self.vocab_size,
            max_position_embeddings: self.max_position_embeddings.map(|n| *n),
            norm_eps: self.rms_norm_eps.f32(),
            tied: self.tie_word_embeddings.unwrap_or(true),
        }
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        self.load_below(config, &weights.root())
    }
}

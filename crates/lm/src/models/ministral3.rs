//! Ministral 3 (arXiv:2601.08584): grouped-query attention with stretched rotations and queries whose scale grows
//! with their position, all of it or that of some layers over a sliding window; one feed-forward.
//!
//! Reference: mlx-lm 0.32.0, `models/ministral3.py`.

use serde::Deserialize;

use super::Model;
use super::causal::CausalLm;
use super::family::{Family, LayerType, Shape, Windows};
use crate::config::{Fields, Finite, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, DecoderLayer, Heads, Mlp, QueryScale, Rope, RopeOptions,
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
    pub rms_norm_eps: Positive,
    pub vocab_size: Size,
    pub max_position_embeddings: Option<Size>,
    pub rope_parameters: RopeScaling,
    /// True by default.
    pub tie_word_embeddings: Option<bool>,
    pub layer_types: Option<Vec<LayerType>>,
    pub sliding_window: Option<Size>,
}

impl Fields for Config {
    const UNUSED: &'static [&'static str] = &["attention_bias", "hidden_act", "mlp_bias"];

    fn check(&self, config: &ModelConfig) -> Result<()> {
        self.windows().check(config, *self.num_hidden_layers)
    }
}

impl Config {
    fn windows(&self) -> Windows<'_> {
        let layer_types = self.layer_types.as_deref();
        Windows { layer_types, sliding_window: self.sliding_window }
    }

    /// Rotation and scale of queries; both stand in `rope_parameters`.
    fn positions(&self, config: &ModelConfig) -> Result<(Rope, QueryScale)> {
        const FIELD: &str = "rope_parameters";
        let missing = |key: &str| config.error(&format!("{FIELD}.{key}"), "is missing");
        let RopeScaling {
            rope_theta, llama_4_scaling_beta, original_max_position_embeddings, ..
        } = &self.rope_parameters;
        let rope = RopeOptions {
            dims: self.shape().heads.head_dim,
            base: rope_theta.ok_or_else(|| missing("rope_theta"))?,
            traditional: false,
            scaling: Some((FIELD, &self.rope_parameters)),
            max_position_embeddings: self.max_position_embeddings,
        };
        let beta = llama_4_scaling_beta.ok_or_else(|| missing("llama_4_scaling_beta"))?;
        let length = original_max_position_embeddings
            .ok_or_else(|| missing("original_max_position_embeddings"))?;
        let scale = QueryScale { beta: Finite::f64(beta) as f32, length: *length };
        Ok((Rope::from_config(config, rope)?, scale))
    }

    /// Takes the weights below `root`.
    ///
    /// # Errors
    /// `Config`, and those of taking weights.
    pub fn load_below(&self, config: &ModelConfig, root: &Scope<'_>) -> Result<Box<dyn Model>> {
        root.rewrite(
            Rules::new()
                .drop("{module*}self_attn.rotary_emb.inv_freq{rest*}")
                .drop("{module*}activation_scale{rest*}")
                .scale("{module*}.weight_scale_inv", "{module}.weight"),
        )?;
        let (shape, windows, width) = (self.shape(), self.windows(), *self.intermediate_size);
        let (rope, query_scale) = self.positions(config)?;
        let options = AttentionOptions {
            rope: Some(rope),
            query_scale: Some(query_scale),
            ..AttentionOptions::new(shape.hidden_size, shape.heads)
        };
        let model = CausalLm::load(root, &shape, |i, layer| {
            let options = AttentionOptions { window: windows.of(i), ..options.clone() };
            let attention = |scope: &Scope<'_>| Attention::load(scope, options);
            let mlp = |scope: &Scope<'_>| Mlp::load(scope, shape.hidden_size, width);
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

//! Qwen3 (arXiv:2505.09388), the dense family: grouped-query attention with normalised queries and keys, one
//! feed-forward.
//!
//! Reference: mlx-lm 0.32.0, `models/qwen3.py`. Unlike its sibling `qwen3_moe` it applies `rope_scaling`.

use mlx::{Array, ops};
use serde::Deserialize;
use serde_json::json;

use super::causal::{Block, CausalLm, Shape};
use super::{Description, Model, facts};
use crate::config::{Fields, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, Fusable, Heads, Mlp, ModulePath, RmsNorm, Rope, RopeOptions,
    RopeScaling, Site,
};
use crate::rewrite::Rules;
use crate::step::LayerRows;
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

    fn check(&self, config: &ModelConfig) -> Result<()> {
        self.heads().check(config)
    }
}

impl Config {
    fn heads(&self) -> Heads {
        Heads {
            num_heads: *self.num_attention_heads,
            num_kv_heads: *self.num_key_value_heads,
            head_dim: *self.head_dim,
        }
    }

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

struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl DecoderLayer {
    fn load(config: &Config, rope: Rope, scope: &Scope<'_>) -> Result<Self> {
        let (dim, eps) = (*config.hidden_size, config.rms_norm_eps.f32());
        let norm = |name: &str| RmsNorm::load(&scope.pp(name), dim, eps);
        let attention = AttentionOptions {
            qk_norm: Some(eps),
            rope: Some(rope),
            ..AttentionOptions::new(dim, config.heads())
        };
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(&scope.pp("self_attn"), attention)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(&scope.pp("mlp"), dim, *config.intermediate_size)?,
        })
    }
}

impl Block for DecoderLayer {
    fn forward(&self, x: &Array, rows: LayerRows<'_, '_>) -> Result<Array> {
        let r = self.self_attn.forward(&self.input_layernorm.forward(x)?, rows)?;
        let h = ops::add(x, &r)?;
        let r = self.mlp.forward(&self.post_attention_layernorm.forward(&h)?)?;
        Ok(ops::add(&h, &r)?)
    }
}

impl Fusable for DecoderLayer {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.input_layernorm.sites(&at.pp("input_layernorm"), sites);
        self.self_attn.sites(&at.pp("self_attn"), sites);
        self.post_attention_layernorm.sites(&at.pp("post_attention_layernorm"), sites);
        self.mlp.sites(&at.pp("mlp"), sites);
    }
}

/// Reads the configuration and takes the weights.
///
/// # Errors
/// `Config`, and those of taking weights.
pub fn load(model: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
    let config: Config = model.parse()?;
    let tied = config.tie_word_embeddings;
    if tied {
        weights.rewrite(&Rules::new().drop("lm_head.weight"))?;
    }
    let shape = Shape {
        hidden_size: *config.hidden_size,
        num_layers: *config.num_hidden_layers,
        vocab_size: *config.vocab_size,
        norm_eps: config.rms_norm_eps.f32(),
        tied,
    };
    let rope = config.rope(model)?;
    let load = |_, scope: Scope<'_>| DecoderLayer::load(&config, rope.clone(), &scope);
    Ok(Box::new(CausalLm::load(weights, shape, load)?))
}

/// Reads the configuration and describes the model.
///
/// # Errors
/// `Config`.
pub fn describe(config: &ModelConfig) -> Result<Description> {
    let config: Config = config.parse()?;
    Ok(Description {
        num_experts_per_tok: 0,
        tie_word_embeddings: config.tie_word_embeddings,
        facts: facts([
            ("num_layers", json!(*config.num_hidden_layers)),
            ("hidden_size", json!(*config.hidden_size)),
            ("intermediate_size", json!(*config.intermediate_size)),
            ("num_heads", json!(*config.num_attention_heads)),
            ("num_kv_heads", json!(*config.num_key_value_heads)),
            ("head_dim", json!(*config.head_dim)),
            ("vocab_size", json!(*config.vocab_size)),
            ("max_position_embeddings", json!(*config.max_position_embeddings)),
            ("tie_word_embeddings", json!(config.tie_word_embeddings)),
        ]),
    })
}

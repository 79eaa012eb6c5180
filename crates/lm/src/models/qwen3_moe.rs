//! Qwen3-MoE (arXiv:2505.09388): grouped-query attention with normalised queries and keys, feed-forward by a
//! mixture of experts without shared ones.
//!
//! Reference: mlx-lm 0.32.0, `models/qwen3_moe.py`. Like it, this file does not apply `rope_scaling`,
//! `attention_bias` and `sliding_window`; a checkpoint that sets one is told so.

use mlx::{Array, ops};
use serde::Deserialize;
use serde_json::json;

use super::causal::{Block, CausalLm, Shape};
use super::{Description, Model, facts};
use crate::config::{Count, Fields, ModelConfig, Positive, Size};
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, Fusable, Heads, Linear, Mlp, ModulePath, MoeBlock, RmsNorm, Rope,
    Routing, Site, SwitchGlu,
};
use crate::rewrite::Rules;
use crate::step::LayerRows;
use crate::weights::{Role, Scope, Weights};

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
        let (top_k, experts) = (*self.num_experts_per_tok, *self.num_experts);
        if experts > 0 && !(1..=experts).contains(&top_k) {
            let reason = format!("is {top_k}, expected 1 to num_experts ({experts})");
            return Err(config.error("num_experts_per_tok", reason));
        }
        self.heads().check(config)
    }
}

impl Config {
    fn heads(&self) -> Heads {
        Heads {
            num_heads: *self.num_attention_heads,
            num_kv_heads: *self.num_key_value_heads,
            head_dim: match self.head_dim {
                Some(head_dim) => *head_dim,
                None => *self.hidden_size / *self.num_attention_heads,
            },
        }
    }

    fn is_moe(&self, layer: i32) -> bool {
        *self.num_experts > 0
            && !self.mlp_only_layers.iter().any(|dense| **dense == layer)
            && (layer + 1) % *self.decoder_sparse_step == 0
    }
}

fn load_attention(config: &Config, scope: &Scope<'_>) -> Result<Attention> {
    let heads = config.heads();
    let options = AttentionOptions {
        qk_norm: Some(config.rms_norm_eps.f32()),
        rope: Some(Rope::new(heads.head_dim, config.rope_theta.f32())),
        ..AttentionOptions::new(*config.hidden_size, heads)
    };
    Attention::load(scope, options)
}

fn load_moe(config: &Config, scope: &Scope<'_>) -> Result<MoeBlock> {
    let (dim, num_experts) = (*config.hidden_size, *config.num_experts);
    let routing = Routing {
        norm_topk_prob: config.norm_topk_prob,
        ..Routing::softmax(*config.num_experts_per_tok)
    };
    Ok(MoeBlock::new(
        Linear::load(&scope.pp("gate").role(Role::Router), dim, num_experts)?,
        routing,
        SwitchGlu::load(&scope.pp("switch_mlp"), num_experts, dim, *config.moe_intermediate_size)?,
    ))
}

enum FeedForward {
    Dense(Box<Mlp>),
    Moe(Box<MoeBlock>),
}

impl FeedForward {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Dense(mlp) => mlp.forward(x),
            Self::Moe(moe) => moe.forward(x),
        }
    }
}

struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

impl DecoderLayer {
    fn load(config: &Config, layer: i32, scope: &Scope<'_>) -> Result<Self> {
        let (dim, eps) = (*config.hidden_size, config.rms_norm_eps.f32());
        let norm = |name: &str| RmsNorm::load(&scope.pp(name), dim, eps);
        let mlp = scope.pp("mlp");
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: load_attention(config, &scope.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: if config.is_moe(layer) {
                FeedForward::Moe(Box::new(load_moe(config, &mlp)?))
            } else {
                FeedForward::Dense(Box::new(Mlp::load(&mlp, dim, *config.intermediate_size)?))
            },
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
        match &mut self.mlp {
            FeedForward::Moe(moe) => moe.sites(&at.pp("mlp"), sites),
            FeedForward::Dense(mlp) => mlp.sites(&at.pp("mlp"), sites),
        }
    }
}

/// Reads the configuration and takes the weights.
///
/// # Errors
/// `Config`, and those of taking weights.
pub fn load(config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
    let config: Config = config.parse()?;
    weights.rewrite(&rules(&config))?;
    let shape = Shape {
        hidden_size: *config.hidden_size,
        num_layers: *config.num_hidden_layers,
        vocab_size: *config.vocab_size,
        norm_eps: config.rms_norm_eps.f32(),
        tied: config.tie_word_embeddings,
    };
    let model = CausalLm::load(weights, shape, |i, scope| DecoderLayer::load(&config, i, &scope))?;
    Ok(Box::new(model))
}

/// From Hugging Face names to this model's: the head of tied weights goes, single experts become stacks.
fn rules(config: &Config) -> Rules {
    let rules = Rules::new().stack(
        "model.layers.{l#}.mlp.experts.{e#}.{p:up_proj|down_proj|gate_proj}.weight",
        "e",
        *config.num_experts,
        "model.layers.{l}.mlp.switch_mlp.{p}.weight",
    );
    if config.tie_word_embeddings { rules.drop("lm_head.weight") } else { rules }
}

/// Reads the configuration and describes the model.
///
/// # Errors
/// `Config`.
pub fn describe(config: &ModelConfig) -> Result<Description> {
    let config: Config = config.parse()?;
    let Heads { num_heads, num_kv_heads, head_dim } = config.heads();
    let num_layers = *config.num_hidden_layers;
    let num_moe_layers = (0..num_layers).filter(|i| config.is_moe(*i)).count();
    Ok(Description {
        num_experts_per_tok: *config.num_experts_per_tok,
        tie_word_embeddings: config.tie_word_embeddings,
        facts: facts([
            ("num_layers", json!(num_layers)),
            ("num_moe_layers", json!(num_moe_layers)),
            ("num_experts", json!(*config.num_experts)),
            ("top_k", json!(*config.num_experts_per_tok)),
            ("hidden_size", json!(*config.hidden_size)),
            ("moe_intermediate_size", json!(*config.moe_intermediate_size)),
            ("num_heads", json!(num_heads)),
            ("num_kv_heads", json!(num_kv_heads)),
            ("head_dim", json!(head_dim)),
            ("vocab_size", json!(*config.vocab_size)),
            ("max_position_embeddings", json!(*config.max_position_embeddings)),
            ("tie_word_embeddings", json!(config.tie_word_embeddings)),
        ]),
    })
}

//! Qwen3-MoE (arXiv:2505.09388): grouped-query attention with normalised queries and keys, feed-forward by a
//! mixture of experts without shared ones.
//!
//! Reference: mlx-lm 0.32.0, `models/qwen3_moe.py`. Like it, this file ignores `rope_scaling` and
//! `attention_bias`.

use mlx::{Array, ops};

use super::{Architecture, Model};
use crate::cache::Cache;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::{
    Attention, AttentionOptions, Embedding, Fusable, Head, Heads, Linear, Mlp, ModulePath,
    MoeBlock, RmsNorm, Rope, Routing, Site, SwitchGlu,
};
use crate::step::{LayerRows, Rows, Step};
use crate::weights::{Scope, Weights};

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct Config {
    pub hidden_size: i32,
    pub num_hidden_layers: i32,
    pub intermediate_size: i32,
    pub num_attention_heads: i32,
    pub num_key_value_heads: i32,
    pub head_dim: i32,
    pub num_experts: i32,
    pub num_experts_per_tok: i32,
    pub decoder_sparse_step: i32,
    pub mlp_only_layers: Vec<i32>,
    pub moe_intermediate_size: i32,
    pub norm_topk_prob: bool,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    pub vocab_size: i32,
    pub max_position_embeddings: i32,
    pub tie_word_embeddings: bool,
}

impl Config {
    /// Reads and checks the fields.
    ///
    /// # Errors
    /// `Config` with file, field, what arrived and what is allowed.
    pub fn read(config: &ModelConfig) -> Result<Self> {
        let read = Self {
            hidden_size: config.count("hidden_size", 1)?,
            num_hidden_layers: config.count("num_hidden_layers", 1)?,
            intermediate_size: config.count("intermediate_size", 1)?,
            num_attention_heads: config.count("num_attention_heads", 1)?,
            num_key_value_heads: config.count("num_key_value_heads", 1)?,
            head_dim: match config.get("head_dim") {
                Some(_) => config.count("head_dim", 1)?,
                None => config.count("hidden_size", 1)? / config.count("num_attention_heads", 1)?,
            },
            num_experts: config.count("num_experts", 0)?,
            num_experts_per_tok: config.count("num_experts_per_tok", 0)?,
            decoder_sparse_step: config.count("decoder_sparse_step", 1)?,
            mlp_only_layers: config.counts("mlp_only_layers")?,
            moe_intermediate_size: config.count("moe_intermediate_size", 1)?,
            norm_topk_prob: config.flag("norm_topk_prob")?,
            rms_norm_eps: config.positive("rms_norm_eps")?,
            rope_theta: config.positive("rope_theta")?,
            vocab_size: config.count("vocab_size", 1)?,
            max_position_embeddings: config.count("max_position_embeddings", 1)?,
            tie_word_embeddings: config.flag("tie_word_embeddings")?,
        };
        read.check(config)?;
        Ok(read)
    }

    fn check(&self, config: &ModelConfig) -> Result<()> {
        let (top_k, experts) = (self.num_experts_per_tok, self.num_experts);
        if experts > 0 && !(1..=experts).contains(&top_k) {
            let reason = format!("is {top_k}, expected 1 to num_experts ({experts})");
            return Err(config.error("num_experts_per_tok", reason));
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if heads % kv_heads != 0 {
            let reason =
                format!("is {kv_heads}, which does not divide num_attention_heads ({heads})");
            return Err(config.error("num_key_value_heads", reason));
        }
        if self.head_dim == 0 || self.head_dim % 2 != 0 {
            let reason = format!("is {}, expected an even number from 2", self.head_dim);
            return Err(config.error("head_dim", reason));
        }
        if heads.checked_mul(self.head_dim).is_none() {
            let reason = format!("is {heads}, too large with head_dim {}", self.head_dim);
            return Err(config.error("num_attention_heads", reason));
        }
        Ok(())
    }

    fn heads(&self) -> Heads {
        Heads {
            num_heads: self.num_attention_heads,
            num_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
    }

    fn is_moe(&self, layer: i32) -> bool {
        self.num_experts > 0
            && !self.mlp_only_layers.contains(&layer)
            && (layer + 1) % self.decoder_sparse_step == 0
    }
}

fn load_attention(config: &Config, scope: &Scope<'_>) -> Result<Attention> {
    let options = AttentionOptions {
        qk_norm: Some(config.rms_norm_eps),
        rope: Some(Rope::new(config.head_dim, config.rope_theta)),
        ..AttentionOptions::new(config.hidden_size, config.heads())
    };
    Attention::load(scope, options)
}

fn load_moe(config: &Config, scope: &Scope<'_>) -> Result<MoeBlock> {
    let (dim, num_experts) = (config.hidden_size, config.num_experts);
    let routing = Routing {
        norm_topk_prob: config.norm_topk_prob,
        ..Routing::softmax(config.num_experts_per_tok)
    };
    Ok(MoeBlock::new(
        Linear::load(&scope.pp("gate"), dim, num_experts)?,
        routing,
        SwitchGlu::load(&scope.pp("switch_mlp"), num_experts, dim, config.moe_intermediate_size)?,
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
        let norm =
            |name: &str| RmsNorm::load(&scope.pp(name), config.hidden_size, config.rms_norm_eps);
        let mlp = scope.pp("mlp");
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: load_attention(config, &scope.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: if config.is_moe(layer) {
                FeedForward::Moe(Box::new(load_moe(config, &mlp)?))
            } else {
                FeedForward::Dense(Box::new(Mlp::load(
                    &mlp,
                    config.hidden_size,
                    config.intermediate_size,
                )?))
            },
        })
    }

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

/// The model.
pub struct Qwen3Moe {
    embed_tokens: Embedding,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    head: Head,
    vocab_size: i32,
}

impl Model for Qwen3Moe {
    fn forward(&self, step: &Step<'_>, caches: &mut [&mut Cache]) -> Result<Array> {
        let mut rows = Rows::new(step, caches);
        let mut h = self.embed_tokens.forward(step.tokens)?; // [B, L, D]
        for (i, layer) in self.layers.iter().enumerate() {
            h = layer.forward(&h, rows.layer(i))?;
        }
        let h = self.norm.forward(&step.wanted(&h)?)?;
        self.head.forward(&h, &self.embed_tokens)
    }

    fn make_cache(&self) -> Cache {
        Cache::new(self.layers.len())
    }

    fn vocab_size(&self) -> u32 {
        self.vocab_size as u32
    }

    fn activation_dtype(&self) -> Result<mlx::Dtype> {
        let h = self.embed_tokens.forward(&Array::from_slice(&[0_u32], &[1, 1])?)?;
        Ok(self.norm.forward(&h)?.dtype())
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn sites<'a>(&'a mut self, sites: &mut Vec<Site<'a>>) {
        let model = ModulePath::default().pp("model");
        let layers = model.pp("layers");
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.sites(&layers.layer(i), sites);
        }
        self.norm.sites(&model.pp("norm"), sites);
        let embedding = (&model.pp("embed_tokens"), &mut self.embed_tokens);
        self.head.sites_with(&ModulePath::default().pp("lm_head"), embedding, sites);
    }
}

/// Reads the configuration and takes the weights.
///
/// # Errors
/// `Config`, and those of taking weights.
pub fn load(config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    sanitize(&config, weights)?;
    let root = weights.root();
    let model = root.pp("model");
    let (vocab_size, dim) = (config.vocab_size, config.hidden_size);
    Ok(Box::new(Qwen3Moe {
        embed_tokens: Embedding::load(&model.pp("embed_tokens"), vocab_size, dim)?,
        layers: (0..config.num_hidden_layers)
            .map(|i| DecoderLayer::load(&config, i, &model.pp("layers").pp(i)))
            .collect::<Result<_>>()?,
        norm: RmsNorm::load(&model.pp("norm"), dim, config.rms_norm_eps)?,
        head: Head::load(&root.pp("lm_head"), dim, vocab_size, config.tie_word_embeddings)?,
        vocab_size,
    }))
}

/// Brings Hugging Face names to this model's: drops the head of tied weights, stacks single experts.
fn sanitize(config: &Config, weights: &Weights) -> Result<()> {
    if config.tie_word_embeddings {
        weights.discard("lm_head.weight");
    }
    const FIRST: &str = ".mlp.experts.0.up_proj.weight";
    for name in weights.names() {
        let Some(layer) = name.strip_suffix(FIRST).filter(|l| l.starts_with("model.layers."))
        else {
            continue;
        };
        for projection in ["up_proj", "down_proj", "gate_proj"] {
            let experts: Vec<_> = (0..config.num_experts)
                .map(|e| format!("{layer}.mlp.experts.{e}.{projection}.weight"))
                .collect();
            weights.stack(&experts, &format!("{layer}.mlp.switch_mlp.{projection}.weight"))?;
        }
    }
    Ok(())
}

/// Reads the configuration and describes the model.
///
/// # Errors
/// `Config`.
pub fn describe(config: &ModelConfig) -> Result<Architecture> {
    let config = Config::read(config)?;
    Ok(Architecture {
        num_layers: config.num_hidden_layers as usize,
        num_moe_layers: (0..config.num_hidden_layers).filter(|i| config.is_moe(*i)).count(),
        num_experts: config.num_experts,
        top_k: config.num_experts_per_tok,
        hidden_size: config.hidden_size,
        moe_intermediate_size: config.moe_intermediate_size,
        num_heads: config.num_attention_heads,
        num_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
    })
}

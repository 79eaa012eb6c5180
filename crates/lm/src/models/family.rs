//! What every family states about itself, and what follows from it.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Description, Model};
use crate::config::{Fields, ModelConfig, Size};
use crate::error::Result;
use crate::layers::{Heads, LayerNames, LayerOptions, MoeOptions, Routing};
use crate::weights::Weights;

/// A family: the fields of its `config.json`, and what they make.
pub trait Family: Fields {
    /// What a conversion to MLX's layout has to know.
    const CONVERSION: Conversion = Conversion::DEFAULT;

    /// The sizes that the fields say.
    fn shape(&self) -> Shape;

    /// Whether a layer has experts. By default all have, if any.
    fn is_moe(&self, _layer: i32) -> bool {
        self.shape().experts.is_some()
    }

    /// Whether the heads fit together; by default as grouped-query attention that turns whole heads has them.
    ///
    /// # Errors
    /// `Config`.
    fn check_heads(&self, config: &ModelConfig) -> Result<()> {
        self.shape().heads.check(config)
    }

    /// What else to show to people, behind what [`shape`](Self::shape) says.
    fn facts(&self) -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    /// Takes the weights.
    ///
    /// # Errors
    /// `Config`, and those of taking weights.
    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>>;
}

/// What mlx-lm does with a family's weights when it converts a checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Conversion {
    /// Modules that are quantised at 8 bits in groups of 64 whatever the rest has, by the ends of their paths.
    pub precise: &'static [&'static str],
    /// Weights that keep their own type, by the ends of their names.
    pub own_dtype: &'static [&'static str],
    /// The order of what is in a module: for the last part of its path that is no number, the names in it. Others come
    /// as they are loaded. Tells which file of several a tensor is in.
    pub order: &'static [(&'static str, &'static [&'static str])],
}

impl Conversion {
    /// Everything alike, layers as LLaMA's: their norms behind what they normalise for.
    pub const DEFAULT: Self = Self {
        precise: &[],
        own_dtype: &[],
        order: &[
            ("layers", &["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"]),
            ("mlp", &["gate_proj", "down_proj", "up_proj"]),
        ],
    };
}

/// The sizes of a causal language model.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// Decoder layers.
    pub num_layers: i32,
    /// Inner width of dense feed-forwards, where layers have them.
    pub intermediate_size: Option<i32>,
    /// Attention heads.
    pub heads: Heads,
    /// Experts, where there are any.
    pub experts: Option<Experts>,
    /// Token ids.
    pub vocab_size: i32,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: Option<i32>,
    /// Epsilon of the norms of the residual stream.
    pub norm_eps: f32,
    /// Whether the embedding is also the output projection.
    pub tied: bool,
}

/// The sizes of a mixture of experts.
#[derive(Debug, Clone, Copy)]
pub struct Experts {
    /// Routed experts.
    pub num_experts: i32,
    /// Of which each token goes through this many.
    pub top_k: i32,
    /// Inner width of one.
    pub intermediate_size: i32,
}

impl Shape {
    /// What a decoder layer is made of around its mixer and feed-forward.
    pub fn layer(&self) -> LayerOptions {
        let Self { hidden_size, norm_eps, .. } = *self;
        LayerOptions { hidden_size, norm_eps, names: LayerNames::default() }
    }
}

impl Experts {
    /// A mixture of them in a model as wide as `shape`.
    pub fn options(&self, shape: &Shape, routing: Routing) -> MoeOptions {
        MoeOptions::new(shape.hidden_size, self.num_experts, self.intermediate_size, routing)
    }

    /// Whether as many experts can be chosen; `config` and the two fields are named in errors.
    ///
    /// # Errors
    /// `Config`.
    pub fn check(&self, config: &ModelConfig, top_k: &str, num_experts: &str) -> Result<()> {
        if (1..=self.num_experts).contains(&self.top_k) {
            return Ok(());
        }
        let reason =
            format!("is {}, expected 1 to {num_experts} ({})", self.top_k, self.num_experts);
        Err(config.error(top_k, reason))
    }
}

/// A row's `load`: reads the configuration and takes the weights.
pub(super) fn load<F: Family>(config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
    parse::<F>(config)?.load(config, weights)
}

/// A row's `describe`: reads the configuration and says what it makes.
pub(super) fn describe<F: Family>(config: &ModelConfig) -> Result<Description> {
    Ok(description(&parse::<F>(config)?))
}

/// What a family's fields make.
pub(super) fn description(family: &impl Family) -> Description {
    let shape = family.shape();
    let Heads { num_heads, num_kv_heads, head_dim } = shape.heads;
    let num_moe_layers = (0..shape.num_layers).filter(|i| family.is_moe(*i)).count();
    let experts = shape.experts;
    let of_experts = |size: fn(&Experts) -> i32| experts.as_ref().map(size);
    let facts = [
        ("num_layers", Some(shape.num_layers)),
        ("num_moe_layers", experts.map(|_| num_moe_layers as i32)),
        ("num_experts", of_experts(|e| e.num_experts)),
        ("top_k", of_experts(|e| e.top_k)),
        ("hidden_size", Some(shape.hidden_size)),
        ("intermediate_size", shape.intermediate_size),
        ("moe_intermediate_size", of_experts(|e| e.intermediate_size)),
        ("num_heads", Some(num_heads)),
        ("num_kv_heads", Some(num_kv_heads)),
        ("head_dim", Some(head_dim)),
        ("vocab_size", Some(shape.vocab_size)),
        ("max_position_embeddings", shape.max_position_embeddings),
    ];
    let facts = facts.into_iter().filter_map(|(name, size)| Some((name, json!(size?))));
    let facts = facts.chain([("tie_word_embeddings", json!(shape.tied))]).chain(family.facts());
    Description {
        facts: facts.map(|(name, value)| (name.to_owned(), value)).collect(),
        num_experts_per_tok: of_experts(|e| e.top_k).unwrap_or(0),
        tie_word_embeddings: shape.tied,
    }
}

/// Reads and checks a family's fields.
pub(super) fn parse<F: Family>(config: &ModelConfig) -> Result<F> {
    parse_or(config, &[])
}

/// The same with values for fields that are absent.
pub(super) fn parse_or<F: Family>(config: &ModelConfig, defaults: &[(&str, Value)]) -> Result<F> {
    let family: F = config.parse_or(defaults)?;
    family.check_heads(config)?;
    Ok(family)
}

/// What a query sees: an entry of `layer_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// Every token before it.
    FullAttention,
    /// The last `sliding_window` tokens.
    SlidingAttention,
}

/// The windows of layers, each `None` where its queries see every token before them.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    /// One for each layer; `None`: full attention everywhere.
    pub layer_types: Option<&'a [LayerType]>,
    /// Tokens that a query sees in those layers that slide.
    pub sliding_window: Option<Size>,
}

impl Windows<'_> {
    /// Whether there is a type for each layer, and a window where one is needed.
    ///
    /// # Errors
    /// `Config`.
    pub fn check(&self, config: &ModelConfig, num_layers: i32) -> Result<()> {
        let Some(types) = self.layer_types else { return Ok(()) };
        if i32::try_from(types.len()) != Ok(num_layers) {
            let reason = format!("has {} entries for {num_layers} layers", types.len());
            return Err(config.error("layer_types", reason));
        }
        if types.contains(&LayerType::SlidingAttention) && self.sliding_window.is_none() {
            return Err(config.error("sliding_window", "is missing, which layer_types ask for"));
        }
        Ok(())
    }

    /// That of one layer.
    pub fn of(&self, layer: i32) -> Option<i32> {
        let kind = *self.layer_types?.get(usize::try_from(layer).ok()?)?;
        self.sliding_window.filter(|_| kind == LayerType::SlidingAttention).map(|window| *window)
    }
}

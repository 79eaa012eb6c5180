//! The models, one file each, named after `model_type` in `config.json`.

pub mod qwen3_moe;

use std::path::Path as FilePath;

use mlx::Array;

use crate::cache::Cache;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layers::{AttentionPlan, Embedding, Linear, MoeBlock, Path, RmsNorm};
use crate::weights::{Taken, Weights};

/// A causal language model.
pub trait Model {
    /// Logits `[B, L, vocab_size]` for `tokens` `[B, L]` u32 that follow what `cache` holds.
    ///
    /// # Errors
    /// `Mlx`.
    fn forward(&self, tokens: &Array, cache: &mut Cache) -> Result<Array>;

    /// Number of decoder layers, each with its own cache.
    fn num_layers(&self) -> usize;

    /// Number of token ids.
    fn vocab_size(&self) -> u32;

    /// Dtype of the activations that reach the layers' projections.
    ///
    /// # Errors
    /// `Mlx`.
    fn activation_dtype(&self) -> Result<mlx::Dtype>;

    /// Which implementation turns logits into the likeliest token.
    fn greedy(&self) -> Path;

    /// The modules that patterns may rewrite, with their paths, in order of execution.
    fn modules(&mut self) -> Vec<(String, Module<'_>)>;
}

/// A module that patterns may rewrite.
pub enum Module<'a> {
    /// A mixture of experts.
    Moe(&'a mut MoeBlock),
    /// A linear layer.
    Linear(&'a mut Linear),
    /// An embedding that is also the output projection.
    TiedEmbedding(&'a mut Embedding),
    /// What attention does besides its projections.
    Attention(&'a mut AttentionPlan),
    /// A norm of the residual stream.
    Norm(&'a mut RmsNorm),
    /// From logits to the likeliest token.
    Greedy(&'a mut Path),
}

/// What kind of module a report row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleKind {
    /// A mixture of experts.
    Moe,
    /// A linear layer or an output projection.
    Linear,
    /// Attention without its projections.
    Attention,
    /// A norm of the residual stream.
    Norm,
    /// From logits to the likeliest token.
    Greedy,
}

impl Module<'_> {
    /// Its kind.
    pub fn kind(&self) -> ModuleKind {
        match self {
            Self::Moe(_) => ModuleKind::Moe,
            Self::Linear(_) | Self::TiedEmbedding(_) => ModuleKind::Linear,
            Self::Attention(_) => ModuleKind::Attention,
            Self::Norm(_) => ModuleKind::Norm,
            Self::Greedy(_) => ModuleKind::Greedy,
        }
    }
}

/// A row of [`MODELS`].
pub struct ModelRow {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Checks the configuration and takes the weights.
    pub load: fn(&ModelConfig, &Weights) -> Result<Box<dyn Model>>,
    /// Checks the configuration and describes the model.
    pub describe: fn(&ModelConfig) -> Result<Architecture>,
}

/// Every model there is.
pub const MODELS: &[ModelRow] =
    &[ModelRow { model_type: "qwen3_moe", load: qwen3_moe::load, describe: qwen3_moe::describe }];

/// What a configuration says about a model, for people.
#[derive(Debug, Clone)]
pub struct Architecture {
    /// Decoder layers.
    pub num_layers: usize,
    /// Those with a mixture of experts.
    pub num_moe_layers: usize,
    /// Experts per mixture; 0 without.
    pub num_experts: i32,
    /// Experts per token.
    pub top_k: i32,
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// Width inside one expert.
    pub moe_intermediate_size: i32,
    /// Query heads.
    pub num_heads: i32,
    /// Key and value heads.
    pub num_kv_heads: i32,
    /// Width of one head.
    pub head_dim: i32,
    /// Token ids.
    pub vocab_size: i32,
    /// Longest sequence it was made for.
    pub max_position_embeddings: i32,
    /// Whether the embedding is also the output projection.
    pub tie_word_embeddings: bool,
}

/// A model in memory with what it was loaded from.
pub struct LoadedModel {
    /// The model, on stock ops.
    pub model: Box<dyn Model>,
    /// Its configuration.
    pub config: ModelConfig,
    /// Its weight files.
    pub checkpoint: Checkpoint,
}

/// The table's row for a `model_type`.
///
/// # Errors
/// `UnknownModel`.
pub fn find(model_type: &str) -> Result<&'static ModelRow> {
    MODELS.iter().find(|row| row.model_type == model_type).ok_or_else(|| Error::UnknownModel {
        model_type: model_type.to_owned(),
        known: MODELS.iter().map(|row| row.model_type).collect(),
    })
}

/// Loads a checkpoint folder in mlx-community layout.
///
/// # Errors
/// Whatever is wrong with its configuration or weights, by file and name.
pub fn load(dir: &FilePath) -> Result<LoadedModel> {
    let config = ModelConfig::load(dir)?;
    let row = find(&config.model_type)?;
    (row.describe)(&config)?;
    let checkpoint = Checkpoint::open(dir)?;
    let (model, taken) = open(row, &config, &checkpoint)?;
    taken.read()?;
    Ok(LoadedModel { model, config, checkpoint })
}

/// A model whose weights are still in their files.
pub(crate) fn open(
    row: &ModelRow,
    config: &ModelConfig,
    checkpoint: &Checkpoint,
) -> Result<(Box<dyn Model>, Taken)> {
    let weights = Weights::new(checkpoint.clone(), config.quantization.clone())?;
    let model = (row.load)(config, &weights)?;
    Ok((model, weights.finish()?))
}

//! The models, one file each, named after `model_type` in `config.json`.

pub mod qwen3_moe;

use std::path::Path as FilePath;

use mlx::Array;

use crate::cache::Cache;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layers::{Head, Site};
use crate::step::Step;
use crate::weights::{Taken, Weights};

/// A causal language model.
pub trait Model {
    /// Logits of the positions that `step` asks for: `[B, 1, vocab_size]` or `[B, L, vocab_size]`.
    ///
    /// - `caches`: one for each row of the step, or a single one that holds all rows; extended by the step's tokens.
    ///   With one for each, a row's result does not depend on the others.
    ///
    /// # Errors
    /// `Mlx`.
    fn forward(&self, step: &Step<'_>, caches: &mut [&mut Cache]) -> Result<Array>;

    /// An empty cache, of the kinds that the layers need.
    fn make_cache(&self) -> Cache;

    /// Number of token ids.
    fn vocab_size(&self) -> u32;

    /// Dtype of the activations that reach the layers' projections.
    ///
    /// # Errors
    /// `Mlx`.
    fn activation_dtype(&self) -> Result<mlx::Dtype>;

    /// From hidden states to tokens.
    fn head(&self) -> &Head;

    /// The places that patterns may rewrite, in order of execution.
    fn sites<'a>(&'a mut self, sites: &mut Vec<Site<'a>>);
}

/// Which of the device's default patterns a family takes.
#[derive(Debug, Clone, Copy)]
pub enum Preset {
    /// All of them.
    Device,
    /// All but these, each with the reason.
    Without(&'static [(&'static str, &'static str)]),
    /// None, for this reason.
    None(&'static str),
}

/// A row of [`MODELS`].
pub struct ModelRow {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Checks the configuration and takes the weights.
    pub load: fn(&ModelConfig, &Weights) -> Result<Box<dyn Model>>,
    /// Checks the configuration and describes the model.
    pub describe: fn(&ModelConfig) -> Result<Architecture>,
    /// What `auto` fuses.
    pub preset: Preset,
}

/// Every model there is.
pub const MODELS: &[ModelRow] = &[ModelRow {
    model_type: "qwen3_moe",
    load: qwen3_moe::load,
    describe: qwen3_moe::describe,
    preset: Preset::Device,
}];

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
    let (loaded, taken) = open(dir)?;
    taken.read()?;
    Ok(loaded)
}

/// A model whose weights are still in their files.
pub(crate) fn open(dir: &FilePath) -> Result<(LoadedModel, Taken)> {
    let config = ModelConfig::load(dir)?;
    let row = find(&config.model_type)?;
    (row.describe)(&config)?;
    let checkpoint = Checkpoint::open(dir)?;
    let weights = Weights::new(checkpoint.clone(), config.quantization.clone())?;
    let model = (row.load)(&config, &weights)?;
    Ok((LoadedModel { model, config, checkpoint }, weights.finish()?))
}

//! The models, one file each, named after `model_type` in `config.json`.

pub mod causal;
pub mod deepseek_v3;
pub mod deepseek_v32;
pub mod family;
pub mod gemma4;
pub mod glm4_moe;
pub mod glm4_moe_lite;
pub mod gpt_oss;
pub mod kimi_k25;
pub mod latent;
pub mod lfm2;
pub mod lfm2_moe;
pub mod llama;
pub mod minimax;
pub mod ministral3;
pub mod mistral3;
pub mod mixtral;
pub mod olmoe;
pub mod qwen2;
pub mod qwen2_moe;
pub mod qwen3;
pub mod qwen3_5;
pub mod qwen3_5_moe;
pub mod qwen3_moe;
pub mod qwen3_next;

use std::path::Path as FilePath;

use family::{Conversion, Family};
use mlx::Array;
use serde_json::{Map, Value};

use crate::cache::Cache;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layers::{Head, Site};
use crate::placement::Placement;
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
    /// Checks the configuration and describes the model. Asked of checkpoints whose weights fit.
    pub describe: fn(&ModelConfig) -> Result<Description>,
    /// What `auto` fuses.
    pub preset: Preset,
    /// What a conversion has to know of it.
    pub conversion: Conversion,
}

impl ModelRow {
    const fn new<F: Family>(model_type: &'static str, preset: Preset) -> Self {
        let conversion = F::CONVERSION;
        let (load, describe) = (family::load::<F>, family::describe::<F>);
        Self { model_type, load, describe, preset, conversion }
    }

    /// A model whose configuration is one of several families', that are converted as LLaMA's.
    const fn of(
        model_type: &'static str,
        load: fn(&ModelConfig, &Weights) -> Result<Box<dyn Model>>,
        describe: fn(&ModelConfig) -> Result<Description>,
        preset: Preset,
    ) -> Self {
        Self { model_type, load, describe, preset, conversion: Conversion::DEFAULT }
    }
}

/// Every model there is.
pub const MODELS: &[ModelRow] = &[
    ModelRow::new::<deepseek_v3::Config>("deepseek_v3", Preset::Device),
    ModelRow::new::<deepseek_v32::Config>("deepseek_v32", Preset::Device),
    ModelRow::new::<gemma4::Config>("gemma4", Preset::Device),
    ModelRow::new::<glm4_moe::Config>("glm4_moe", Preset::Device),
    ModelRow::new::<glm4_moe_lite::Config>("glm4_moe_lite", Preset::Device),
    ModelRow::new::<gpt_oss::Config>("gpt_oss", Preset::Device),
    ModelRow::new::<kimi_k25::Config>("kimi_k25", Preset::Device),
    ModelRow::new::<lfm2::Config>("lfm2", Preset::Device),
    ModelRow::new::<lfm2_moe::Config>("lfm2_moe", Preset::Device),
    ModelRow::new::<llama::Config>("llama", Preset::Device),
    ModelRow::new::<minimax::Config>("minimax", Preset::Device),
    ModelRow::new::<ministral3::Config>("ministral3", Preset::Device),
    ModelRow::of("mistral3", mistral3::load, mistral3::describe, Preset::Device),
    ModelRow::new::<mixtral::Config>("mixtral", Preset::Device),
    ModelRow::new::<olmoe::Config>("olmoe", Preset::Device),
    ModelRow::new::<qwen2::Config>("qwen2", Preset::Device),
    ModelRow::new::<qwen2_moe::Config>("qwen2_moe", Preset::Device),
    ModelRow::new::<qwen3::Config>("qwen3", Preset::Device),
    ModelRow::new::<qwen3_5::Config>("qwen3_5", Preset::Device),
    ModelRow::new::<qwen3_5_moe::Config>("qwen3_5_moe", Preset::Device),
    ModelRow::new::<qwen3_moe::Config>("qwen3_moe", Preset::Device),
    ModelRow::new::<qwen3_next::Config>("qwen3_next", Preset::Device),
];

/// Other names that configurations give to models of [`MODELS`].
///
/// # Source
/// mlx-lm `utils.py` (`MODEL_REMAPPING`).
pub const ALIASES: &[(&str, &str)] = &[
    ("gemma4_text", "gemma4"),
    ("gemma4_unified", "gemma4"),
    ("iquestcoder", "llama"),
    ("joyai_llm_flash", "deepseek_v3"),
    ("kimi_k2", "deepseek_v3"),
    ("llava", "mistral3"),
    ("minimax_m2", "minimax"),
    ("mistral", "llama"),
    ("xverse", "llama"),
];

/// What a configuration says about a model.
#[derive(Debug, Clone)]
pub struct Description {
    /// Names and values for people, in the order in which to show them.
    pub facts: Map<String, Value>,
    /// Experts that one token goes through, of those that share a stack; 0 without.
    pub num_experts_per_tok: i32,
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
    /// What the user ought to know about the checkpoint, such as settings that nothing uses.
    pub notes: Vec<String>,
}

/// The table's row for a `model_type`, or for what it is another name of.
///
/// # Errors
/// `UnknownModel`.
pub fn find(model_type: &str) -> Result<&'static ModelRow> {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == model_type);
    let name = alias.map_or(model_type, |(_, name)| *name);
    MODELS.iter().find(|row| row.model_type == name).ok_or_else(|| {
        let names = MODELS.iter().map(|row| row.model_type);
        let mut known: Vec<_> = names.chain(ALIASES.iter().map(|(alias, _)| *alias)).collect();
        known.sort_unstable();
        Error::UnknownModel { model_type: model_type.to_owned(), known }
    })
}

/// Loads a checkpoint folder in mlx-community layout.
///
/// # Errors
/// Whatever is wrong with its configuration or weights, by file and name; an MLX of another version
/// than zmlx was compiled for.
pub fn load(dir: &FilePath) -> Result<LoadedModel> {
    load_placed(dir, Placement::default())
}

/// Loads the part of a model that a placement says. Layers outside its range are neither required nor read; of the
/// matrices that ranks share, this rank's part is kept. Running such a part takes what joins it to the others, which
/// is the caller's.
///
/// # Errors
/// As [`load`]; `Argument` when the placement does not fit the model, `Checkpoint` when a matrix cannot be shared.
pub fn load_placed(dir: &FilePath, placement: Placement) -> Result<LoadedModel> {
    load_with(dir, placement, &mut |_, _| {})
}

/// [`load_placed`] for whoever watches.
///
/// - `on_progress`: told after each tensor how many bytes are in memory, and how many there will be
///
/// # Errors
/// As [`load_placed`].
pub fn load_with(
    dir: &FilePath,
    placement: Placement,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<LoadedModel> {
    mlx::check_linked()?;
    let (loaded, taken) = open(dir, placement)?;
    taken.read(on_progress)?;
    Ok(loaded)
}

/// A model whose weights are still in their files.
pub(crate) fn open(dir: &FilePath, placement: Placement) -> Result<(LoadedModel, Taken)> {
    let config = ModelConfig::load(dir)?;
    let row = find(&config.model_type)?;
    let checkpoint = match placement.layers {
        None => Checkpoint::open(dir)?,
        // of other layers not even the files have to be there
        Some(_) => Checkpoint::open_present(dir)?,
    };
    let weights = Weights::new(checkpoint.clone(), config.quantization.clone(), placement)?;
    let model = (row.load)(&config, &weights)?;
    let taken = weights.finish()?;
    let notes = config.unknown_fields().iter().map(|field| {
        let path = config.path().display();
        format!("{path}: field `{field}` is not used by {}", config.model_type)
    });
    let notes = checkpoint.warnings().iter().cloned().chain(notes).collect();
    Ok((LoadedModel { model, config, checkpoint, notes }, taken))
}

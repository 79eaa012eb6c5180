//! What a checkpoint is and what patching would do to it.

use std::collections::BTreeMap;
use std::path::Path;

use mlx::quantization::Quantization;
use mlx::{Dtype, ops};

use crate::cache::GROW_STEP;
use crate::error::Result;
use crate::models::{self, Description, LoadedModel, Model};
use crate::patch::{PatchOptions, PatchReport, plan};
use crate::placement::Placement;
use crate::step::Step;
use crate::weights::{Role, WeightRecord};

/// A checkpoint described.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// `model_type` in `config.json`.
    pub model_type: String,
    /// What its configuration says.
    pub description: Description,
    /// Numbers the weights stand for, packed ones unpacked.
    pub num_parameters: u64,
    /// Parameters that one token touches.
    pub num_active_parameters: u64,
    /// The global quantisation setting.
    pub quantization: Option<Quantization>,
    /// Settings in use and how many weights have each; dense ones under their dtype.
    pub weight_formats: BTreeMap<String, usize>,
    /// Memory needed.
    pub memory: MemoryEstimate,
    /// Weight files.
    pub num_files: usize,
    /// What patching would do, module by module.
    pub patch: PatchReport,
    /// What the user ought to know about the checkpoint.
    pub notes: Vec<String>,
}

/// Bytes a model needs.
#[derive(Debug, Clone, Copy)]
pub struct MemoryEstimate {
    /// All weights.
    pub weights_bytes: u64,
    /// Weights that decoding one token reads.
    pub decode_read_bytes: u64,
    /// What a long sequence's caches grow by with each token.
    pub kv_bytes_per_token: u64,
    /// The caches of the shortest sequence; they grow in steps.
    pub kv_bytes_at_least: u64,
}

/// Describes a checkpoint folder. Weights are opened, not read.
///
/// # Errors
/// Those of [`models::load`].
pub fn inspect(dir: &Path, options: &PatchOptions) -> Result<Inspection> {
    let (mut loaded, taken) = models::open(dir, Placement::default())?;
    let patch = plan(&mut loaded, options)?;
    let LoadedModel { model, config, checkpoint, notes } = loaded;
    let description = (models::find(&config.model_type)?.describe)(&config)?;
    let tally = Tally::of(&taken.records, &description);
    let at_least = cache_bytes(model.as_ref(), 1)?;
    let grown = cache_bytes(model.as_ref(), 1 + GROW_STEP)?;
    Ok(Inspection {
        model_type: config.model_type.clone(),
        num_parameters: tally.parameters,
        num_active_parameters: tally.active_parameters,
        quantization: config.quantization.as_ref().map(|q| q.default),
        weight_formats: tally.formats,
        memory: MemoryEstimate {
            weights_bytes: tally.bytes,
            decode_read_bytes: tally.active_bytes,
            kv_bytes_per_token: (grown - at_least) / GROW_STEP as u64,
            kv_bytes_at_least: at_least,
        },
        num_files: checkpoint.files().len(),
        patch,
        description,
        notes,
    })
}

/// Bytes of the cache after a step of `num_tokens`: the step's graph is built, and nothing is computed.
fn cache_bytes(model: &dyn Model, num_tokens: i32) -> Result<u64> {
    let mut cache = model.make_cache();
    model.forward(&Step::new(&ops::zeros(&[1, num_tokens], Dtype::U32)?), &mut [&mut cache])?;
    Ok(cache.arrays().map(|array| array.nbytes() as u64).sum())
}

#[derive(Default)]
struct Tally {
    parameters: u64,
    active_parameters: u64,
    bytes: u64,
    active_bytes: u64,
    formats: BTreeMap<String, usize>,
}

impl Tally {
    fn of(records: &[WeightRecord], description: &Description) -> Self {
        let mut tally = Self::default();
        for record in records {
            let active = |all: u64| match (record.role, record.shape.first()) {
                (Role::Experts, Some(experts)) => {
                    all * description.num_experts_per_tok as u64 / (*experts).max(1) as u64
                }
                _ => all,
            };
            tally.parameters += record.parameters;
            tally.active_parameters += active(record.parameters);
            tally.bytes += record.bytes;
            // of an embedding that is not the output projection too, a token reads one row
            if record.role != Role::Embedding || description.tie_word_embeddings {
                tally.active_bytes += active(record.bytes);
            }
            *tally.formats.entry(record.format.clone()).or_default() += 1;
        }
        tally
    }
}

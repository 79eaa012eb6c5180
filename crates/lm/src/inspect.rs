//! What a checkpoint is and what patching would do to it.

use std::collections::BTreeMap;
use std::path::Path;

use mlx::quantization::Quantization;

use crate::cache::GROW_STEP;
use crate::error::Result;
use crate::models::{self, Architecture, LoadedModel};
use crate::patch::{PatchOptions, PatchReport, plan};
use crate::weights::WeightRecord;

/// A checkpoint described.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// `model_type` in `config.json`.
    pub model_type: String,
    /// Sizes of the model.
    pub architecture: Architecture,
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
}

/// Bytes a model needs.
#[derive(Debug, Clone, Copy)]
pub struct MemoryEstimate {
    /// All weights.
    pub weights_bytes: u64,
    /// Weights that decoding one token reads.
    pub decode_read_bytes: u64,
    /// Keys and values of one token in all layers.
    pub kv_bytes_per_token: u64,
    /// Keys and values of the shortest sequence, since caches grow in steps.
    pub kv_bytes_at_least: u64,
}

/// Describes a checkpoint folder. Weights are opened, not read.
///
/// # Errors
/// Those of [`models::load`].
pub fn inspect(dir: &Path, options: &PatchOptions) -> Result<Inspection> {
    let (mut loaded, taken) = models::open(dir)?;
    let patch = plan(&mut loaded, options)?;
    let dtype_bytes = loaded.model.activation_dtype()?.size() as u64;
    let LoadedModel { config, checkpoint, .. } = loaded;
    let architecture = (models::find(&config.model_type)?.describe)(&config)?;
    let tally = Tally::of(&taken.records, &architecture);
    let kv_bytes_per_token = 2
        * dtype_bytes
        * architecture.num_layers as u64
        * architecture.num_kv_heads as u64
        * architecture.head_dim as u64;
    Ok(Inspection {
        model_type: config.model_type.clone(),
        num_parameters: tally.parameters,
        num_active_parameters: tally.active_parameters,
        quantization: config.quantization.as_ref().map(|q| q.default),
        weight_formats: tally.formats,
        memory: MemoryEstimate {
            weights_bytes: tally.bytes,
            decode_read_bytes: tally.active_bytes,
            kv_bytes_per_token,
            kv_bytes_at_least: kv_bytes_per_token * GROW_STEP as u64,
        },
        num_files: checkpoint.files().len(),
        patch,
        architecture,
    })
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
    fn of(records: &[WeightRecord], architecture: &Architecture) -> Self {
        let mut tally = Self::default();
        let (top_k, experts) = (architecture.top_k as u64, architecture.num_experts.max(1) as u64);
        for record in records {
            let active = |all: u64| if record.per_expert { all * top_k / experts } else { all };
            tally.parameters += record.parameters;
            tally.active_parameters += active(record.parameters);
            tally.bytes += record.bytes;
            // of an embedding that is not the output projection too, a token reads one row
            let is_table = record.module.ends_with("embed_tokens");
            if !is_table || architecture.tie_word_embeddings {
                tally.active_bytes += active(record.bytes);
            }
            *tally.formats.entry(record.format.clone()).or_default() += 1;
        }
        tally
    }
}

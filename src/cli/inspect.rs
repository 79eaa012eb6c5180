//! `zmlx inspect`

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use zmlx::lm::{self, Inspection, PatchOptions, Patterns};

use super::options::{ComputeOptions, ModelOptions, OutputOptions, parse_patterns};
use super::render::{Report, Ui};
use super::{CommandArgs, Exit};

/// Arguments of `zmlx inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    model: ModelOptions,
    /// Fused patterns to plan: auto, off, or names separated by commas
    #[arg(long, value_name = "PATTERNS", default_value = "auto", value_parser = parse_patterns)]
    patch: Patterns,
    #[command(flatten)]
    compute: ComputeOptions,
    #[command(flatten)]
    _output: OutputOptions,
}

#[derive(Debug, Serialize)]
struct Begin {
    model: String,
}

/// What came out.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) model: String,
    pub(super) model_type: String,
    /// What the model says of itself: names and values.
    pub(super) architecture: Map<String, Value>,
    /// `None` for a dense checkpoint.
    pub(super) quantization: Option<Quantization>,
    /// Ways in which weights are stored, and how many weights each has.
    pub(super) weight_formats: BTreeMap<String, usize>,
    pub(super) num_parameters: u64,
    pub(super) num_active_parameters: u64,
    pub(super) num_files: usize,
    pub(super) memory: Memory,
    pub(super) device: String,
    pub(super) patterns: Vec<&'static str>,
    pub(super) moe_modules: usize,
    pub(super) patched_modules: usize,
    pub(super) modules: Vec<Module>,
}

#[derive(Debug, Serialize)]
pub(super) struct Quantization {
    pub(super) mode: &'static str,
    pub(super) bits: i32,
    pub(super) group_size: i32,
}

#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) weights_bytes: u64,
    pub(super) decode_read_bytes: u64,
    pub(super) kv_bytes_per_token: u64,
    pub(super) kv_bytes_at_least: u64,
}

/// What one pattern does to one module.
#[derive(Debug, Serialize)]
pub(super) struct Module {
    pub(super) module: String,
    pub(super) pattern: &'static str,
    pub(super) fused: bool,
    /// Why not.
    pub(super) reason: Option<String>,
}

impl CommandArgs for Inspect {
    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let device = self.compute.apply()?;
        let folder = self.model.folder(ui)?;
        let options = PatchOptions {
            patterns: self.patch,
            precision: self.compute.precision(),
            ..PatchOptions::default()
        };
        let model = folder.display().to_string();
        ui.begin("inspect", &Begin { model: model.clone() })?;
        let inspection = lm::inspect(&folder, &options)?;
        ui.notes(&inspection.notes);
        ui.finish(&Report::Inspect(summary(model, device, inspection)))?;
        Ok(Exit::Done)
    }
}

fn summary(model: String, device: mlx::Device, inspection: Inspection) -> Summary {
    Summary {
        model,
        model_type: inspection.model_type,
        architecture: inspection.description.facts,
        quantization: inspection.quantization.map(|q| Quantization {
            mode: q.mode.name(),
            bits: q.bits,
            group_size: q.group_size,
        }),
        weight_formats: inspection.weight_formats,
        num_parameters: inspection.num_parameters,
        num_active_parameters: inspection.num_active_parameters,
        num_files: inspection.num_files,
        memory: Memory {
            weights_bytes: inspection.memory.weights_bytes,
            decode_read_bytes: inspection.memory.decode_read_bytes,
            kv_bytes_per_token: inspection.memory.kv_bytes_per_token,
            kv_bytes_at_least: inspection.memory.kv_bytes_at_least,
        },
        device: device.to_string(),
        patterns: inspection.patch.patterns.clone(),
        moe_modules: inspection.patch.num_moe_modules,
        patched_modules: inspection.patch.patched_modules(),
        modules: inspection
            .patch
            .modules
            .into_iter()
            .map(|row| Module {
                module: row.module,
                pattern: row.pattern,
                fused: row.fallback.is_none(),
                reason: row.fallback,
            })
            .collect(),
    }
}

//! `zmlx inspect`

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use zmlx::lm::{self, Inspection};

use super::fold::fold;
use super::options::{ComputeOptions, ModelOptions, OutputOptions};
use super::patching::PatchingOptions;
use super::render::{Answer, Rows, Ui, bytes, count, list};
use super::{CommandArgs, Examples, Exit};

/// Arguments of `zmlx inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    patching: PatchingOptions,
    #[command(flatten)]
    compute: ComputeOptions,
    /// List every module, instead of equal layers in one line
    #[arg(long, help_heading = "Output")]
    all: bool,
    #[command(flatten)]
    _output: OutputOptions,
}

#[derive(Debug, Serialize)]
struct Begin {
    model: String,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Summary {
    model: String,
    model_type: String,
    /// What the model says of itself: names and values.
    architecture: Map<String, Value>,
    /// `None` for a dense checkpoint.
    quantization: Option<Quantization>,
    /// Ways in which weights are stored, and how many weights each has.
    weight_formats: BTreeMap<String, usize>,
    num_parameters: u64,
    num_active_parameters: u64,
    num_files: usize,
    memory: Memory,
    device: String,
    patterns: Vec<&'static str>,
    /// What the family's preset leaves out, and why.
    preset_note: Option<String>,
    moe_modules: usize,
    patched_modules: usize,
    modules: Vec<Module>,
    /// Whether people see every module.
    #[serde(skip)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct Quantization {
    mode: &'static str,
    bits: i32,
    group_size: i32,
}

#[derive(Debug, Serialize)]
struct Memory {
    weights_bytes: u64,
    decode_read_bytes: u64,
    kv_bytes_per_token: u64,
    kv_bytes_at_least: u64,
}

/// What one pattern does to one module.
#[derive(Debug, Serialize)]
struct Module {
    module: String,
    pattern: &'static str,
    fused: bool,
    /// Why not.
    reason: Option<String>,
    /// Whether the user wants it so.
    left_out: bool,
}

impl CommandArgs for Inspect {
    const ABOUT: &'static str = "Show a model's sizes and what patching does to each layer";
    const EXAMPLES: Examples = &[
        ("The demo model", "zmlx inspect"),
        ("What fast precision would fuse", "zmlx inspect /models/qwen3 --precision fast"),
        (
            "Modules on stock ops",
            "zmlx inspect --json | jq '.modules[]? | select(.fused == false)'",
        ),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let device = self.compute.apply()?;
        let folder = self.model.folder(ui)?;
        let options = self.patching.options(self.compute.precision());
        let model = folder.display().to_string();
        ui.begin("inspect", &Begin { model: model.clone() })?;
        let inspection = lm::inspect(&folder, &options)?;
        ui.notes(&inspection.notes);
        self.patching.targets.explain(&inspection.patch, ui);
        ui.finish(&summary(model, device, inspection, self.all))?;
        Ok(Exit::Done)
    }
}

fn summary(model: String, device: mlx::Device, inspection: Inspection, all: bool) -> Summary {
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
        preset_note: inspection.patch.note.clone(),
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
                left_out: row.left_out,
            })
            .collect(),
        all,
    }
}

impl Answer for Summary {
    fn text(&self) -> String {
        let memory = &self.memory;
        let mut rows = Rows::new(23);
        rows.row("model", &self.model);
        rows.row("type", &self.model_type);
        for (name, value) in &self.architecture {
            rows.row(&name.replace('_', " "), value);
        }
        rows.row(
            "parameters",
            format!(
                "{}, {} per token",
                count(self.num_parameters),
                count(self.num_active_parameters)
            ),
        );
        rows.row(
            "quantization",
            self.quantization.as_ref().map_or_else(
                || "none".to_owned(),
                |q| format!("{} {} bits, group size {}", q.mode, q.bits, q.group_size),
            ),
        );
        for (format, weights) in &self.weight_formats {
            rows.row("", format!("{weights} weights {format}"));
        }
        rows.row("weights", format!("{} in {} files", bytes(memory.weights_bytes), self.num_files));
        rows.row("read per token", bytes(memory.decode_read_bytes));
        rows.row("kv cache", format!("{} per token", bytes(memory.kv_bytes_per_token)));
        rows.row(
            "patch",
            format!(
                "{} of {} MoE modules on {} ({})",
                self.patched_modules,
                self.moe_modules,
                self.device,
                list(&self.patterns, "no pattern"),
            ),
        );
        for line in self.module_lines() {
            rows.line(&line);
        }
        rows.into_text()
    }
}

impl Summary {
    fn module_lines(&self) -> Vec<String> {
        let modules = self.modules.iter().map(|m| (m.module.as_str(), (m.pattern, &m.reason)));
        let rows: Vec<(String, (&str, &Option<String>))> = if self.all {
            modules.map(|(path, rest)| (path.to_owned(), rest)).collect()
        } else {
            fold(modules)
        };
        let width = rows.iter().map(|(path, _)| path.len()).max().unwrap_or_default();
        rows.into_iter()
            .map(|(path, (pattern, reason))| {
                let outcome = reason
                    .as_ref()
                    .map_or_else(|| "fused".to_owned(), |reason| format!("stock: {reason}"));
                format!("  {path:<width$}  {pattern:<16}  {outcome}")
            })
            .collect()
    }
}

//! `zmlx inspect`

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value};
use zmlx::lm::launches::LaunchReport;
use zmlx::lm::patch::ModuleReport;
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
    /// Count what one decode token launches on a Mac, on any machine
    #[arg(long, help_heading = "Output")]
    launches: bool,
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
    /// What one decode token launches on a Mac.
    #[serde(skip_serializing_if = "Option::is_none")]
    launches: Option<Launches>,
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

/// Kernels that one decode token launches.
#[derive(Debug, Serialize)]
struct Launches {
    backend: &'static str,
    context: i32,
    stock: usize,
    /// Stock, where the functions that mlx-lm compiles are one kernel.
    mlx_lm: usize,
    patched: usize,
    patterns: Vec<&'static str>,
    primitives: Vec<PrimitiveLaunches>,
    fallbacks: Vec<Module>,
    /// Primitives without a rule, counted as one launch each.
    assumed: Vec<String>,
}

/// Those of one primitive.
#[derive(Debug, Serialize)]
struct PrimitiveLaunches {
    primitive: String,
    stock: usize,
    patched: usize,
}

impl CommandArgs for Inspect {
    const ABOUT: &'static str = "Show a model's sizes and what patching does to each layer";
    const EXAMPLES: Examples = &[
        ("The demo model", "zmlx inspect"),
        ("What fast precision would fuse", "zmlx inspect /models/qwen3 --precision fast"),
        ("What a decode token launches on a Mac", "zmlx inspect --launches"),
        (
            "Modules on stock ops",
            "zmlx inspect --json | jq '.modules[]? | select(.fused == false)'",
        ),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let device = self.compute.apply()?;
        let folder = self.model.folder(ui)?;
        let options = self.patching.options(self.compute.precision())?;
        let model = folder.display().to_string();
        ui.begin("inspect", &Begin { model: model.clone() })?;
        let inspection = lm::inspect(&folder, &options)?;
        ui.notes(&inspection.notes);
        self.patching.targets.explain(&inspection.patch, ui);
        let launches = match self.launches {
            true => Some(Launches::of(&lm::launches::count(&folder, &options)?)),
            false => None,
        };
        ui.finish(&Summary { launches, ..summary(model, device, inspection, self.all) })?;
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
        modules: inspection.patch.modules.into_iter().map(Module::from).collect(),
        launches: None,
        all,
    }
}

impl From<ModuleReport> for Module {
    fn from(row: ModuleReport) -> Self {
        Self {
            module: row.module,
            pattern: row.pattern,
            fused: row.fallback.is_none(),
            reason: row.fallback,
            left_out: row.left_out,
        }
    }
}

impl Launches {
    fn of(report: &LaunchReport) -> Self {
        let LaunchReport { context, stock, patched, patch } = report;
        let names: BTreeSet<&String> = stock.rows.keys().chain(patched.rows.keys()).collect();
        let of = |launches: &mlx::launches::Launches, name| {
            launches.rows.get(name).map_or(0, |row| row.launches)
        };
        let primitives = names.into_iter().map(|name| PrimitiveLaunches {
            primitive: name.clone(),
            stock: of(stock, name),
            patched: of(patched, name),
        });
        let fallbacks = patch.fallbacks().map(|(row, _)| Module::from(row.clone()));
        Self {
            backend: "metal",
            context: *context,
            stock: stock.total(),
            mlx_lm: report.mlx_lm(),
            patched: patched.total(),
            patterns: patch.patterns.clone(),
            primitives: primitives.filter(|row| row.stock + row.patched > 0).collect(),
            fallbacks: fallbacks.collect(),
            assumed: stock.assumed.union(&patched.assumed).cloned().collect(),
        }
    }

    fn add_rows(&self, rows: &mut Rows) {
        let share = 100.0 * self.patched as f64 / self.mlx_lm.max(1) as f64;
        rows.row(
            "launches per token",
            format!(
                "{} stock, {} mlx-lm, {} patched ({share:.0} % of mlx-lm; {}, after {} tokens)",
                self.stock, self.mlx_lm, self.patched, self.backend, self.context
            ),
        );
        rows.line(&format!("  {:<28}  {:>6}  {:>7}", "primitive", "stock", "patched"));
        for row in &self.primitives {
            let PrimitiveLaunches { primitive, stock, patched } = row;
            rows.line(&format!("  {primitive:<28}  {stock:>6}  {patched:>7}"));
        }
        for line in module_lines(&self.fallbacks, false) {
            rows.line(&line);
        }
        if !self.assumed.is_empty() {
            rows.row("counted as one each", self.assumed.join(", "));
        }
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
        for line in module_lines(&self.modules, self.all) {
            rows.line(&line);
        }
        if let Some(launches) = &self.launches {
            launches.add_rows(&mut rows);
        }
        rows.into_text()
    }
}

fn module_lines(modules: &[Module], all: bool) -> Vec<String> {
    let modules = modules.iter().map(|m| (m.module.as_str(), (m.pattern, &m.reason)));
    let rows: Vec<(String, (&str, &Option<String>))> = if all {
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

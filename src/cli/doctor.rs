//! `zmlx doctor`

use mlx::primitives::{self, Precision, Setting, supports};
use mlx::{Device, Dtype};
use serde::Serialize;
use zmlx::lm;

use super::options::OutputOptions;
use super::render::{Answer, Rows, Ui, list};
use super::{CommandArgs, Examples, Exit, place};

/// Arguments of `zmlx doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    _output: OutputOptions,
}

#[derive(Debug, Serialize)]
struct Begin {}

/// What there is.
#[derive(Debug, Serialize)]
struct Summary {
    version: &'static str,
    git_hash: &'static str,
    /// What "stock" means here: the MLX that is linked.
    stock: String,
    mlx_version: String,
    /// Version of the headers that zmlx was compiled with.
    compiled_mlx_version: &'static str,
    /// Why models are not going to load with this MLX, or what is known to be wrong with it.
    mlx_problem: Option<String>,
    /// Version of mlx-lm whose tokens are the reference on this MLX.
    mlx_lm_version: &'static str,
    pinned_mlx_version: &'static str,
    pin: &'static str,
    /// `source` or `prebuilt`.
    mode: &'static str,
    /// Where MLX came from.
    source: &'static str,
    patches: Vec<&'static str>,
    backends: Vec<&'static str>,
    devices: Vec<DeviceRow>,
    cpu_isa: String,
    threads: i32,
    models: Vec<&'static str>,
    patterns: Vec<&'static str>,
    primitives: Vec<PrimitiveRow>,
    hub_cache: Option<String>,
    /// Folder of the demo model; `None` when it is not here.
    demo_model: Option<String>,
}

#[derive(Debug, Serialize)]
struct DeviceRow {
    device: String,
    available: bool,
    name: Option<String>,
    default: bool,
}

/// Whether a primitive runs fused on a device, at the shapes of a common model.
#[derive(Debug, Serialize)]
struct PrimitiveRow {
    primitive: &'static str,
    device: String,
    dtype: String,
    /// What was asked.
    parameters: String,
    fused: bool,
    /// Why not.
    reason: Option<String>,
}

impl CommandArgs for Doctor {
    const ABOUT: &'static str = "Show what this build and this machine offer";
    const EXAMPLES: Examples = &[
        ("Which primitives run fused here, and why others do not", "zmlx doctor"),
        ("The same for a program", "zmlx doctor --json | tail -n 1 | jq .primitives"),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        ui.begin("doctor", &Begin {})?;
        ui.finish(&summary())?;
        Ok(Exit::Done)
    }
}

fn summary() -> Summary {
    let build = mlx::build_info();
    let defect = build.known_defect();
    Summary {
        version: env!("CARGO_PKG_VERSION"),
        git_hash: env!("ZMLX_GIT_HASH"),
        stock: build.stock(),
        mlx_version: build.mlx_version,
        compiled_mlx_version: build.compiled_version,
        mlx_problem: mlx::check_linked().err().map(|error| error.to_string()).or(defect),
        mlx_lm_version: build.mlx_lm_version,
        pinned_mlx_version: build.pinned_version,
        pin: build.pin,
        mode: build.mode,
        source: build.source,
        patches: build.patches,
        backends: build.backends,
        devices: [Device::Cpu, Device::Gpu].map(device_row).into(),
        cpu_isa: mlx::cpu_isa(),
        threads: mlx::num_threads(),
        models: lm::models::MODELS.iter().map(|row| row.model_type).collect(),
        patterns: lm::patterns::names(),
        primitives: primitive_rows(),
        hub_cache: place::hub_cache().ok().map(|path| path.display().to_string()),
        demo_model: place::demo_model().ok().map(|path| path.display().to_string()),
    }
}

fn device_row(device: Device) -> DeviceRow {
    let available = device.is_available();
    DeviceRow {
        device: device.to_string(),
        available,
        name: if available { device.hardware_name().ok() } else { None },
        default: device == mlx::default_device(),
    }
}

fn primitive_rows() -> Vec<PrimitiveRow> {
    let (dtype, precision) = (Dtype::Bf16, Precision::Exact);
    let mut rows = Vec::new();
    for &ask in primitives::TYPICAL {
        for device in [Device::Cpu, Device::Gpu] {
            let reason = if device.is_available() {
                supports(ask, &Setting { device, dtype, precision }).err()
            } else {
                Some("this build or this machine has no such device".to_owned())
            };
            rows.push(PrimitiveRow {
                primitive: ask.primitive(),
                device: device.to_string(),
                dtype: dtype.to_string(),
                parameters: ask.parameters().to_string(),
                fused: reason.is_none(),
                reason,
            });
        }
    }
    rows
}

impl Answer for Summary {
    fn text(&self) -> String {
        let list = |items: &[&str]| list(items, "none");
        let found = |path: &Option<String>| path.clone().unwrap_or_else(|| "not found".to_owned());
        let mut rows = Rows::new(11);
        rows.row("zmlx", format!("{} ({})", self.version, self.git_hash));
        rows.row("stock", format!("{}, {}", self.stock, self.source));
        if let Some(problem) = &self.mlx_problem {
            rows.row("problem", problem);
        }
        rows.row("pin", format!("MLX {} {}", self.pinned_mlx_version, self.pin));
        rows.row("patches", list(&self.patches));
        rows.row("backends", list(&self.backends));
        for device in &self.devices {
            let name = device.name.as_deref().unwrap_or("yes");
            let default = if device.default { " (default)" } else { "" };
            let state =
                if device.available { format!("{name}{default}") } else { "not here".into() };
            rows.row(&device.device, state);
        }
        rows.row("kernels", format!("{} instructions, {} threads", self.cpu_isa, self.threads));
        rows.row("models", list(&self.models));
        rows.row("patterns", list(&self.patterns));
        rows.row("hub cache", found(&self.hub_cache));
        rows.row("demo model", found(&self.demo_model));
        rows.line("primitives");
        for p in &self.primitives {
            let outcome = p.reason.as_ref().map_or_else(
                || format!("fused ({}, {})", p.dtype, p.parameters),
                |reason| format!("stock: {reason}"),
            );
            rows.line(&format!("  {:<20} {:<4} {outcome}", p.primitive, p.device));
        }
        rows.into_text()
    }
}

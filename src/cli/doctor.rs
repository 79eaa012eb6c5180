//! `zmlx doctor`

use mlx::primitives::{self, Precision, Setting, supports};
use mlx::{Device, Dtype};
use serde::Serialize;
use zmlx::lm;

use super::options::OutputOptions;
use super::render::{Report, Ui};
use super::{CommandArgs, Exit, place};

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
pub(super) struct Summary {
    pub(super) version: &'static str,
    pub(super) git_hash: &'static str,
    /// What "stock" means here: the MLX that is linked.
    pub(super) stock: String,
    pub(super) mlx_version: String,
    /// Version of the headers that zmlx was compiled with.
    pub(super) compiled_mlx_version: &'static str,
    /// Why models are not going to load with this MLX.
    pub(super) mlx_problem: Option<String>,
    /// Version of mlx-lm whose tokens are the reference on this MLX.
    pub(super) mlx_lm_version: &'static str,
    pub(super) pinned_mlx_version: &'static str,
    pub(super) pin: &'static str,
    /// `source` or `prebuilt`.
    pub(super) mode: &'static str,
    /// Where MLX came from.
    pub(super) source: &'static str,
    pub(super) patches: Vec<&'static str>,
    pub(super) backends: Vec<&'static str>,
    pub(super) devices: Vec<DeviceRow>,
    pub(super) cpu_isa: String,
    pub(super) threads: i32,
    pub(super) models: Vec<&'static str>,
    pub(super) patterns: Vec<&'static str>,
    pub(super) primitives: Vec<PrimitiveRow>,
    pub(super) hub_cache: Option<String>,
    /// Folder of the demo model; `None` when it is not here.
    pub(super) demo_model: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct DeviceRow {
    pub(super) device: String,
    pub(super) available: bool,
    pub(super) name: Option<String>,
    pub(super) default: bool,
}

/// Whether a primitive runs fused on a device, at the shapes of a common model.
#[derive(Debug, Serialize)]
pub(super) struct PrimitiveRow {
    pub(super) primitive: &'static str,
    pub(super) device: String,
    pub(super) dtype: String,
    /// What was asked.
    pub(super) parameters: String,
    pub(super) fused: bool,
    /// Why not.
    pub(super) reason: Option<String>,
}

impl CommandArgs for Doctor {
    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        ui.begin("doctor", &Begin {})?;
        ui.finish(&Report::Doctor(summary()))?;
        Ok(Exit::Done)
    }
}

fn summary() -> Summary {
    let build = mlx::build_info();
    Summary {
        version: env!("CARGO_PKG_VERSION"),
        git_hash: env!("ZMLX_GIT_HASH"),
        stock: build.stock(),
        mlx_version: build.mlx_version,
        compiled_mlx_version: build.compiled_version,
        mlx_problem: mlx::check_linked().err().map(|error| error.to_string()),
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

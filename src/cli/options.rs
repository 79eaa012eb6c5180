//! Options that several commands share.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::ValueEnum;
use mlx::Device;
use mlx::primitives::Precision;
use mlx::quantization::Mode;

use super::place;
use super::render::Ui;

/// Which model.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelOptions {
    /// Hugging Face repo id or local folder [default: the demo model]
    #[arg(value_name = "MODEL", help_heading = None)]
    model: Option<String>,
    /// Branch, tag or commit of a Hugging Face repo
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
}

impl ModelOptions {
    /// Whether the user named no model.
    pub(super) fn is_demo(&self) -> bool {
        self.model.is_none()
    }

    /// What the user calls the model, whose folder this is.
    pub(super) fn name(&self, folder: &Path) -> String {
        self.model.clone().unwrap_or_else(|| folder.display().to_string())
    }

    /// The repo that the model came from; `None` for a folder of the user's.
    pub(super) fn repo(&self, folder: &Path) -> Option<String> {
        self.model.clone().filter(|model| Path::new(model) != folder && !Path::new(model).exists())
    }

    /// The model's folder, downloaded if need be.
    pub(super) fn folder(&self, ui: &mut Ui) -> anyhow::Result<PathBuf> {
        let Some(model) = &self.model else { return place::demo_model() };
        let hub = place::hub_options(self.revision.as_deref())?;
        let mut bar = ui.bytes_bar("downloading");
        let mut listener =
            |progress: zmlx::lm::hub::Progress| bar.set(progress.bytes, progress.total_bytes);
        Ok(zmlx::lm::hub::resolve(model, &hub, Some(&mut listener))?)
    }
}

/// How to answer.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputOptions {
    /// Print JSON Lines
    // Looked up before parsing, which can fail and then has to say so in JSON too.
    #[arg(long = "json")]
    _json: bool,
}

/// Where and how to compute.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Compute")]
pub(super) struct ComputeOptions {
    /// Where to compute; auto takes a GPU when there is one
    #[arg(long, value_enum, default_value_t, value_name = "DEVICE")]
    device: DeviceChoice,
    /// Threads of the CPU primitives [default: what the process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=4096))]
    threads: Option<i32>,
    /// exact gives the bits that stock MLX gives, fast may add in another order
    #[arg(long, value_enum, default_value_t, value_name = "PRECISION")]
    precision: PrecisionChoice,
}

impl ComputeOptions {
    /// Sets up the process; returns the device.
    pub(super) fn apply(&self) -> anyhow::Result<Device> {
        if let Some(threads) = self.threads {
            mlx::set_num_threads(threads)?;
        }
        let device = match self.device {
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Auto if !Device::Gpu.is_available() => Device::Cpu,
            DeviceChoice::Auto => Device::Gpu,
            DeviceChoice::Gpu => {
                let backends = mlx::build_info().backends.join(", ");
                ensure!(
                    Device::Gpu.is_available(),
                    "--device gpu: there is no GPU that this build (backends: {backends}) can use"
                );
                Device::Gpu
            }
        };
        mlx::set_default_device(device)?;
        Ok(device)
    }

    pub(super) fn precision(&self) -> Precision {
        match self.precision {
            PrecisionChoice::Exact => Precision::Exact,
            PrecisionChoice::Fast => Precision::Fast,
        }
    }
}

/// How weights are quantised, as users spell it.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum ModeChoice {
    #[default]
    Affine,
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

impl From<ModeChoice> for Mode {
    fn from(choice: ModeChoice) -> Self {
        match choice {
            ModeChoice::Affine => Self::Affine,
            ModeChoice::Mxfp4 => Self::Mxfp4,
            ModeChoice::Mxfp8 => Self::Mxfp8,
            ModeChoice::Nvfp4 => Self::Nvfp4,
        }
    }
}

/// As users and reports spell it.
pub(super) fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::Fast => "fast",
        _ => "exact",
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum DeviceChoice {
    #[default]
    Auto,
    Cpu,
    Gpu,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum PrecisionChoice {
    #[default]
    Exact,
    Fast,
}

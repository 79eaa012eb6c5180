//! `zmlx convert`

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use mlx::Dtype;
use mlx::quantization::{Mode, Quantization};
use serde::Serialize;
use zmlx::lm::convert::{self, ConvertOptions, Mixed, Override, Recipe};

use super::options::{ModeChoice, ModelOptions, OutputOptions};
use super::render::{Answer, Ui, bytes, count};
use super::{CommandArgs, Examples, Exit};

/// Arguments of `zmlx convert`.
#[derive(Debug, clap::Args)]
pub(super) struct Convert {
    #[command(flatten)]
    model: ModelOptions,
    /// Quantise; so does every option below it
    #[arg(short, long, help_heading = QUANTIZATION)]
    quantize: bool,
    /// Bits per weight [default: the mode's own, 4 for affine]
    #[arg(long, value_name = "B", help_heading = QUANTIZATION)]
    bits: Option<i32>,
    /// Weights per scale [default: the mode's own, 64 for affine]
    #[arg(long, value_name = "G", help_heading = QUANTIZATION)]
    group_size: Option<i32>,
    /// How weights are quantised [default: affine]
    #[arg(long, value_enum, value_name = "MODE", help_heading = QUANTIZATION)]
    mode: Option<ModeChoice>,
    /// More bits for some modules than for others
    #[arg(
        long,
        value_name = "RECIPE",
        value_parser = clap::builder::PossibleValuesParser::new(Mixed::ALL.iter().map(|m| m.name)),
        conflicts_with = "bits",
        help_heading = QUANTIZATION
    )]
    recipe: Option<String>,
    /// Modules that get something else, such as '*.lm_head=8/64', '*.mlp.*=mxfp4', '*.gate=dense';
    /// may be repeated, the last that matches counts
    #[arg(
        long = "override",
        value_name = "GLOB=SETTING",
        value_parser = parse_override,
        help_heading = QUANTIZATION
    )]
    overrides: Vec<Override>,
    /// Unpack what is quantised
    #[arg(
        short,
        long,
        conflicts_with_all = ["quantize", "bits", "group_size", "mode", "recipe", "overrides"],
        help_heading = QUANTIZATION
    )]
    dequantize: bool,
    /// Type of what is not quantised [default: the one that config.json names]
    #[arg(long, value_enum, value_name = "DTYPE", help_heading = "Output")]
    dtype: Option<DtypeChoice>,
    /// Largest weight file: 5GiB, 500MB or a number of bytes
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "5GiB",
        value_parser = parse_size,
        help_heading = "Output"
    )]
    max_shard_size: u64,
    /// Folder to write: new, empty, or left behind by the same command when it was killed
    #[arg(short, long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    _output: OutputOptions,
}

const QUANTIZATION: &str = "Quantization";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DtypeChoice {
    Float16,
    Bfloat16,
    Float32,
}

#[derive(Debug, Serialize)]
struct Begin {
    model: String,
    quantization: Option<String>,
    recipe: Option<String>,
    dequantize: bool,
    out: String,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Summary {
    out: String,
    num_files: usize,
    bytes: u64,
    resumed_bytes: u64,
    num_parameters: u64,
    bits_per_weight: f64,
}

impl CommandArgs for Convert {
    const ABOUT: &'static str =
        "Bring a Hugging Face checkpoint into MLX's layout, and quantise it";
    const EXAMPLES: Examples = &[
        ("In 4 bits", "zmlx convert Qwen/Qwen3-30B-A3B -q --out qwen3-4bit"),
        ("As MXFP4", "zmlx convert /models/qwen3 --mode mxfp4 --out qwen3-mxfp4"),
        (
            "4 bits, 6 where it matters most, experts of the first layer in 8",
            "zmlx convert /models/qwen3 --recipe mixed_4_6 --override \"*.layers.0.mlp.*=8/64\" -o out",
        ),
        ("Dense, in another type", "zmlx convert /models/qwen3 --dtype float16 --out qwen3-f16"),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let folder = self.model.folder(ui)?;
        let options = self.options();
        let out = self.out.display().to_string();
        ui.begin(
            "convert",
            &Begin {
                model: folder.display().to_string(),
                quantization: options.quantize.as_ref().map(|q| q.default().to_string()),
                recipe: self.recipe.clone(),
                dequantize: self.dequantize,
                out: out.clone(),
            },
        )?;
        let mut bar = ui.bytes_bar("converting");
        let mut on_bytes = |done, total| bar.set(done, total);
        let report = convert::convert(&folder, &self.out, &options, &mut on_bytes)?;
        drop(bar);
        ui.notes(&report.notes);
        if report.resumed_bytes > 0 {
            ui.note(&format!("continued after {}", bytes(report.resumed_bytes)));
        }
        ui.finish(&Summary {
            out,
            num_files: report.num_files,
            bytes: report.bytes,
            resumed_bytes: report.resumed_bytes,
            num_parameters: report.num_parameters,
            bits_per_weight: report.bits_per_weight,
        })?;
        Ok(Exit::Done)
    }
}

impl Convert {
    fn options(&self) -> ConvertOptions {
        let is_quantized = self.quantize
            || self.bits.is_some()
            || self.group_size.is_some()
            || self.mode.is_some()
            || self.recipe.is_some()
            || !self.overrides.is_empty();
        let recipe = Recipe {
            mode: self.mode.unwrap_or_default().into(),
            bits: self.bits,
            group_size: self.group_size,
            mixed: self.recipe.as_deref().and_then(Mixed::from_name),
            overrides: self.overrides.clone(),
        };
        ConvertOptions {
            quantize: is_quantized.then_some(recipe),
            dequantize: self.dequantize,
            dtype: self.dtype.map(|dtype| match dtype {
                DtypeChoice::Float16 => Dtype::F16,
                DtypeChoice::Bfloat16 => Dtype::Bf16,
                DtypeChoice::Float32 => Dtype::F32,
            }),
            max_shard_bytes: self.max_shard_size,
        }
    }
}

/// `GLOB=SETTING`: `8`, `8/64`, a mode with fixed bits, or `dense`.
fn parse_override(text: &str) -> anyhow::Result<Override> {
    const EXPECTED: &str = "expected GLOB=SETTING with 8, 8/64, mxfp4, mxfp8, nvfp4 or dense";
    let (modules, setting) = text.rsplit_once('=').context(EXPECTED)?;
    let modules = glob::Pattern::new(modules).context(EXPECTED)?;
    let number = |text: &str| text.parse::<i32>().with_context(|| format!("`{text}`: {EXPECTED}"));
    let setting = match (setting, Mode::from_name(setting)) {
        ("dense", _) => None,
        (_, Some(mode)) => Some(Quantization::default_of(mode)),
        _ => {
            let (bits, group_size) = setting.split_once('/').unwrap_or((setting, "64"));
            Some(Quantization::affine(number(group_size)?, number(bits)?))
        }
    };
    Ok(Override { modules, setting })
}

/// A number of bytes, with a unit or without.
fn parse_size(text: &str) -> anyhow::Result<u64> {
    const UNITS: &[(&str, u64)] = &[
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("kB", 1_000),
        ("", 1),
    ];
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = UNITS.iter().find(|(name, _)| *name == text[digits.len()..].trim());
    let Some((_, unit)) = unit else { bail!("expected a size such as 5GiB, 500MB or 100000") };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(*unit));
    let size = size.context("expected a size such as 5GiB, 500MB or 100000")?;
    ensure!(size > 0, "expected at least one byte");
    Ok(size)
}

impl Answer for Summary {
    fn text(&self) -> String {
        format!(
            "{}: {} parameters at {:.3} bits, {} in {} files\n",
            self.out,
            count(self.num_parameters),
            self.bits_per_weight,
            bytes(self.bytes),
            self.num_files,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_name_modules_and_what_they_get() {
        let setting = |text: &str| parse_override(text).unwrap().setting;
        assert_eq!(setting("*.gate=dense"), None);
        assert_eq!(setting("*=8"), Some(Quantization::affine(64, 8)));
        assert_eq!(setting("*=6/32"), Some(Quantization::affine(32, 6)));
        assert_eq!(setting("*=mxfp8"), Some(Quantization::default_of(Mode::Mxfp8)));
        for wrong in ["gate", "*=", "*=8/x", "*=8bit", "a[=8"] {
            let error = parse_override(wrong).unwrap_err();
            assert!(format!("{error:#}").contains("GLOB=SETTING"), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units() {
        let size = |text: &str| parse_size(text).ok();
        assert_eq!(size("5GiB"), Some(5 << 30));
        assert_eq!(size("500 MB"), Some(500_000_000));
        assert_eq!(size("4096"), Some(4096));
        for wrong in ["", "GB", "5XB", "-1", "0", "1.5GB", "99999999999GiB"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }
}

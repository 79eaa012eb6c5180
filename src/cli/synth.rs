//! `zmlx synth`

use std::path::PathBuf;

use mlx::quantization::{Mode, Quantization};
use serde::Serialize;
use zmlx::lm::synth::{self, SynthOptions};

use super::options::{ModeChoice, OutputOptions};
use super::render::{Answer, Ui, bytes, count};
use super::{CommandArgs, Examples, Exit};

/// What `--bits` says for weights that are not quantised.
const DENSE_BITS: i32 = 16;

/// Arguments of `zmlx synth`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(super) struct Synth {
    /// Model to imitate
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(synth::names()))]
    like: String,
    /// Decoder layers [default: as many as the model has]
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Seed of the random numbers; same seed, same bytes
    #[arg(short, long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Bits per weight; 16 writes bf16 [default: the mode's own, 4 for affine]
    #[arg(long, value_name = "B", help_heading = "Quantization")]
    bits: Option<i32>,
    /// Weights per scale [default: the mode's own, 64 for affine]
    #[arg(long, value_name = "G", help_heading = "Quantization")]
    group_size: Option<i32>,
    /// How weights are quantised
    #[arg(long, value_enum, default_value_t, value_name = "MODE", help_heading = "Quantization")]
    mode: ModeChoice,
    /// Zeros that take no room on the disk, for `inspect`, which reads no weights
    #[arg(long, help_heading = "Output")]
    hollow: bool,
    /// Folder to write, which must be new or empty
    #[arg(short, long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    _output: OutputOptions,
}

#[derive(Debug, Serialize)]
struct Begin<'a> {
    like: &'a str,
    quantization: Option<String>,
    seed: u64,
    out: String,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Summary {
    out: String,
    num_files: usize,
    bytes: u64,
    num_parameters: u64,
    num_layers: usize,
}

impl CommandArgs for Synth {
    const ABOUT: &'static str = "Write a checkpoint with random weights";
    const EXAMPLES: Examples = &[
        (
            "One layer of Qwen3-30B-A3B in 4 bits, to measure with",
            "zmlx synth --like qwen3-30b-a3b --layers 1 --out /tmp/q1",
        ),
        (
            "A tiny model in another format",
            "zmlx synth --like qwen3-moe-tiny --mode mxfp4 --out /tmp/tiny",
        ),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let quantization = self.quantization();
        let out = self.out.display().to_string();
        ui.begin(
            "synth",
            &Begin {
                like: &self.like,
                quantization: quantization.map(|q| q.to_string()),
                seed: self.seed,
                out: out.clone(),
            },
        )?;
        let options = SynthOptions {
            like: self.like.clone(),
            layers: self.layers,
            quantization,
            seed: self.seed,
            hollow: self.hollow,
        };
        let mut bar = ui.bytes_bar("writing");
        let report =
            synth::synthesize(&self.out, &options, &mut |done, total| bar.set(done, total))?;
        drop(bar);
        ui.finish(&Summary {
            out,
            num_files: report.num_files,
            bytes: report.bytes,
            num_parameters: report.num_parameters,
            num_layers: report.num_layers,
        })?;
        Ok(Exit::Done)
    }
}

impl Synth {
    fn quantization(&self) -> Option<Quantization> {
        if self.bits == Some(DENSE_BITS) {
            return None;
        }
        let mode = Mode::from(self.mode);
        let default = Quantization::default_of(mode);
        Some(Quantization {
            bits: self.bits.unwrap_or(default.bits),
            group_size: self.group_size.unwrap_or(default.group_size),
            mode,
        })
    }
}

impl Answer for Summary {
    fn text(&self) -> String {
        format!(
            "{}: {} layers, {} parameters, {} in {} files\n",
            self.out,
            self.num_layers,
            count(self.num_parameters),
            bytes(self.bytes),
            self.num_files,
        )
    }
}

//! The schema, version 1. `docs/capsules.md` is its description for people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Metric;

/// What `schema` says.
pub const SCHEMA: &str = "zmlx.capsule";
/// What `version` says. A field that changes its meaning, or that a reader cannot do without, raises it.
pub const VERSION: u32 = 1;

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capsule {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`VERSION`].
    pub version: u32,
    /// When it began: RFC 3339, UTC.
    pub created: String,
    /// What measured: `bench`, `primitives`, `accuracy`.
    pub program: String,
    /// zmlx itself.
    pub zmlx: Software,
    /// The MLX that is linked: what "stock" means.
    pub mlx: MlxBuild,
    /// Where it ran.
    pub machine: Machine,
    /// What ran; absent where no model did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// How it was measured.
    pub protocol: Protocol,
    /// The ways to do the work. The first one is the reference that others are held to.
    pub variants: Vec<Variant>,
    /// The pieces of work.
    pub cases: Vec<Case>,
    /// Every timed run, in the order measured.
    pub samples: Vec<Sample>,
    /// The tokens of the reference for each case, and those of variants where they are others.
    #[serde(default)]
    pub outputs: Vec<Output>,
    /// Whether the variants said what the reference says.
    #[serde(default)]
    pub fidelity: Vec<Fidelity>,
    /// How far the logits of variants are from the reference's, where it was asked.
    #[serde(default)]
    pub logits: Vec<LogitDistance>,
    /// Which experts were chosen while decoding, where it was asked.
    #[serde(default)]
    pub routing: Vec<LayerRouting>,
    /// Memory bandwidth, measured between the runs.
    #[serde(default)]
    pub bandwidth: Vec<Bandwidth>,
    /// Whether it was stopped before its end; `bench --resume` goes on with it.
    pub interrupted: bool,
    /// What a reader ought to know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A program by version and commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Software {
    /// Its version.
    pub version: String,
    /// The commit it was built from; `unknown` outside of a repository.
    pub commit: String,
}

/// The MLX that is linked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlxBuild {
    /// As it says itself.
    pub version: String,
    /// `source` or `prebuilt`.
    pub mode: String,
    /// The commit that zmlx is pinned to.
    pub pin: String,
    /// Patches applied to it.
    pub patches: Vec<String>,
    /// Backends compiled in.
    pub backends: Vec<String>,
}

/// The machine and what the process had of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Processor, as the system names it.
    pub cpu: String,
    /// Processors that the process may use.
    pub cores: usize,
    /// Bytes of memory, where the system says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Operating system and release.
    pub os: String,
    /// Architecture.
    pub arch: String,
    /// Where the model ran: `cpu` or `gpu`.
    pub device: String,
    /// The device's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_name: Option<String>,
    /// Instruction set of the CPU primitives.
    pub isa: String,
    /// Threads of the CPU primitives.
    pub threads: i32,
    /// Clock, heat and load when the measurement began and ended.
    #[serde(default)]
    pub hints: Vec<Hints>,
}

/// What the system said about itself at one moment; whatever it does not say is absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hints {
    /// `start` or `end`.
    pub when: String,
    /// Processes that wanted to run, over the last minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_average: Option<f64>,
    /// Clock of the processors, median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_mhz: Option<f64>,
    /// The hottest sensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<f64>,
    /// What sets the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governor: Option<String>,
}

/// The checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Repo id, or the name of the folder.
    pub name: String,
    /// Commit of the repo, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// `model_type` of `config.json`.
    pub model_type: String,
    /// The global setting, such as `affine 4b gs64`; `none` for a dense checkpoint.
    pub quantization: String,
    /// Numbers the weights stand for.
    pub num_parameters: u64,
    /// Bytes of all weights.
    pub weights_bytes: u64,
    /// Bytes of weights that decoding one token reads.
    pub decode_read_bytes: u64,
    /// Bytes by which a token grows the caches.
    pub kv_bytes_per_token: u64,
    /// SHA-256 of `config.json` and of the names, types, shapes and places of all tensors.
    pub fingerprint: String,
}

/// How it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Timed runs of each case and variant.
    pub runs: usize,
    /// Runs of each variant before, which are not timed.
    pub warmup: usize,
    /// Milliseconds between two runs.
    pub cooldown_ms: u64,
    /// Who goes first: `abba` turns the order around from run to run.
    pub order: String,
    /// Whether each variant had a process of its own.
    pub isolate: bool,
}

/// What measures a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// This program.
    Zmlx,
    /// mlx-lm in a Python of the user's.
    MlxLm,
    /// llama.cpp's `llama-bench`, which reports speeds and no tokens.
    LlamaBench,
    /// A call of a benchmark program, no model.
    Call,
}

/// One way to do the work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// How tables call it.
    pub name: String,
    /// What runs it.
    pub engine: EngineKind,
    /// Version of that, where it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// As it was asked for: `auto,fast`.
    pub settings: String,
    /// Whether other tokens than the reference's are what is expected of it.
    pub lossy: bool,
    /// The patterns in force.
    #[serde(default)]
    pub patterns: Vec<String>,
    /// Modules that stay on stock ops under these patterns, with the reason.
    #[serde(default)]
    pub fallbacks: Vec<String>,
}

/// What a case times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaseKind {
    /// A prompt is read and answered.
    Generate,
    /// `prompt_tokens` are read behind `depth` others (`pp`).
    Prefill,
    /// `generate_tokens` are decoded behind `depth` others (`tg`).
    Decode,
    /// A call.
    Call,
}

/// One piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// How tables call it; no two cases have one name.
    pub name: String,
    /// What is timed.
    pub kind: CaseKind,
    /// Name of the prompt, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Tokens that are read.
    #[serde(default)]
    pub prompt_tokens: usize,
    /// Tokens that are generated, by each row.
    #[serde(default)]
    pub generate_tokens: usize,
    /// Tokens in the cache before.
    #[serde(default)]
    pub depth: usize,
    /// Sequences at once.
    #[serde(default = "one")]
    pub batch: usize,
    /// SHA-256 of the prompt's token ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_sha256: Option<String>,
    /// Bytes that the call reads at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<f64>,
    /// Multiplications and additions of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops: Option<f64>,
}

fn one() -> usize {
    1
}

/// One timed run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Number of the variant.
    pub variant: usize,
    /// Number of the case.
    pub case: usize,
    /// Number of the run. Samples of one case and run stand side by side in time.
    pub run: usize,
    /// What was measured.
    pub metrics: BTreeMap<Metric, f64>,
    /// Tokens generated by all rows; fewer than the case's where the variant is capped.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tokens: usize,
    /// SHA-256 of the generated token ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_sha256: Option<String>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// What a variant generated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Number of the variant.
    pub variant: usize,
    /// Number of the case.
    pub case: usize,
    /// The run it was first seen in.
    pub run: usize,
    /// Token ids of each row.
    pub rows: Vec<Vec<u32>>,
}

/// Whether a variant said what the reference says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fidelity {
    /// Number of the variant.
    pub variant: usize,
    /// Number of the case.
    pub case: usize,
    /// Tokens looked at, over all runs.
    pub tokens_compared: usize,
    /// The first difference; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_divergence: Option<Divergence>,
}

/// Where tokens part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Divergence {
    /// Number of the run.
    pub run: usize,
    /// Number of the row.
    pub row: usize,
    /// Number of the token.
    pub index: usize,
    /// What the reference says; `null` where it has ended.
    pub expected: Option<u32>,
    /// What the variant says; `null` where it has ended.
    pub got: Option<u32>,
}

/// How far logits are from the reference's, after the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogitDistance {
    /// Number of the variant.
    pub variant: usize,
    /// Number of the case.
    pub case: usize,
    /// Positions compared.
    pub positions: usize,
    /// Largest absolute difference of any logit.
    pub max_abs: f64,
    /// Mean absolute difference.
    pub mean_abs: f64,
    /// Mean Kullback-Leibler divergence of the variant's distribution from the reference's, in nats.
    pub mean_kl: f64,
    /// How many likeliest tokens were looked at.
    pub top_k: usize,
    /// Share of the reference's `top_k` likeliest tokens that are the variant's too.
    pub top_k_agreement: f64,
    /// Share of positions with the same likeliest token.
    pub top_1_agreement: f64,
    /// Positions where the reference's two likeliest are no further apart than one rounding of their type.
    pub near_ties: usize,
}

/// Which experts one layer chose while decoding one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRouting {
    /// Number of the case.
    pub case: usize,
    /// Number of the decoder layer.
    pub layer: usize,
    /// Tokens routed.
    pub tokens: usize,
    /// How often each expert was chosen.
    pub counts: Vec<u64>,
    /// Sum of the weights that each expert got.
    pub weights: Vec<f64>,
    /// Entropy of the counts, in bits; the logarithm of the number of experts when all are chosen alike.
    pub entropy_bits: f64,
}

/// Bytes per second that memory gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// Copying, counting bytes read and bytes written.
    pub copy_bytes_per_s: f64,
    /// Reading only.
    pub read_bytes_per_s: f64,
}

//! Prefill and decode speed of a whole model: stock ops, exact patches and fast patches in turns, and
//! llama.cpp on the same shape where a `llama-bench` and a GGUF file are given.
//!
//! Greedy tokens of the exact path must equal stock's before anything is timed. Memory bandwidth is
//! measured in the same rounds, as the ceiling of decode.
//! `cargo run --release -p zmlx-benchmarks --bin model -- --help`

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use mlx::primitives::Precision;
use serde::Serialize;
use zmlx_benchmarks::{Bandwidth, Machine, Memory, Raw, median};
use zmlx_lm::patch::{Fused, PatchOptions, Patterns};
use zmlx_lm::{GenerateOptions, Generation, LoadedModel, generate, load, patch};

#[derive(Parser)]
#[command(about = "Times prefill and decode of a model on the CPU, variants in turns")]
struct Args {
    /// Folder of the checkpoint (`zmlx synth` writes one).
    model: PathBuf,
    /// Tokens of the prompt whose prefill is timed.
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Tokens decoded per round.
    #[arg(long, default_value_t = 48)]
    decode: usize,
    /// Tokens in the cache before those whose decode is timed; 0: those of the prompt.
    #[arg(long, default_value_t = 0)]
    depth: usize,
    /// Tokens decoded, and of the prompt, by stock ops, which can be very slow; 0 leaves stock out.
    #[arg(long, default_value_t = 2)]
    stock_decode: usize,
    /// Leave out the exact variant, which takes most of the time.
    #[arg(long)]
    fast_only: bool,
    /// Rounds; medians are printed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Threads (0: all cores).
    #[arg(long, default_value_t = 0)]
    threads: i32,
    /// llama.cpp's `llama-bench`, to run in turns with the others.
    #[arg(long, requires = "gguf")]
    llama_bench: Option<PathBuf>,
    /// Model of the same shape for llama.cpp.
    #[arg(long)]
    gguf: Option<PathBuf>,
    /// Folder for the raw results (JSON Lines).
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What one round measured of a variant.
#[derive(Serialize)]
struct Round {
    variant: &'static str,
    prompt_tokens: usize,
    prompt_tok_per_s: f64,
    decode_tokens: usize,
    decode_depth: usize,
    decode_tok_per_s: f64,
}

/// What is timed of a variant.
#[derive(Clone, Copy)]
struct Load {
    prompt: usize,
    depth: usize,
    decode: usize,
}

/// A line of the raw results.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Machine(&'a Machine),
    Model { model: &'a str, decode_read_bytes: u64 },
    Round(&'a Round),
    Bandwidth(Bandwidth),
}

fn main() -> Result<()> {
    let args = Args::parse();
    mlx::set_default_device(mlx::Device::Cpu)?;
    mlx::set_num_threads(args.threads)?;
    let machine = Machine::probe();
    let mut loaded = load(&args.model).with_context(|| args.model.display().to_string())?;
    let inspection = zmlx_lm::inspect(&args.model, &PatchOptions::default())?;
    let vocab = loaded.model.vocab_size();
    let read_bytes = inspection.memory.decode_read_bytes;
    let name = args.model.file_name().unwrap_or_default().display().to_string();
    let mut raw = Raw::create(args.out.as_deref(), "model.jsonl")?;
    raw.write(&Line::Machine(&machine))?;
    raw.write(&Line::Model { model: &name, decode_read_bytes: read_bytes })?;

    if args.stock_decode > 0 {
        check(&mut loaded, vocab, args.stock_decode + 1)?;
    }
    let depth = if args.depth > 0 { args.depth } else { args.prompt };
    let timed = Load { prompt: args.prompt, depth, decode: args.decode };
    let mut memory = Memory::new();
    let mut bandwidth = Vec::new();
    let mut rounds: Vec<Round> = Vec::new();
    for round in 0..args.rounds {
        let first = rounds.len();
        bandwidth.push(memory.measure());
        raw.write(&Line::Bandwidth(bandwidth[round]))?;
        // Stock does the same work every time and is slow: one round of it is enough.
        if round == 0 && args.stock_decode > 0 {
            let little = Load { prompt: 4, depth: 4, decode: args.stock_decode };
            rounds.push(measure(&mut loaded, "stock", None, vocab, little)?);
        }
        for (name, precision) in [("exact", Precision::Exact), ("fast", Precision::Fast)] {
            if args.fast_only && precision == Precision::Exact {
                continue;
            }
            rounds.push(measure(&mut loaded, name, Some(precision), vocab, timed)?);
        }
        if let (Some(bench), Some(gguf)) = (&args.llama_bench, &args.gguf) {
            rounds.push(llama_cpp(bench, gguf, timed)?);
        }
        for r in &rounds[first..] {
            raw.write(&Line::Round(r))?;
        }
        eprintln!("round {} of {}", round + 1, args.rounds);
    }
    println!("{machine}");
    println!(
        "{name}: prompt {} tokens, decode {} tokens at depth {depth}",
        args.prompt, args.decode
    );
    print_table(&rounds, &bandwidth, read_bytes as f64);
    Ok(())
}

fn prompt(tokens: usize, vocab: u32) -> Vec<u32> {
    (0..tokens as u32).map(|i| (i * 7919 + 13) % vocab).collect()
}

fn set(loaded: &mut LoadedModel, precision: Option<Precision>) -> Result<()> {
    let options = PatchOptions {
        patterns: if precision.is_some() { Patterns::Auto } else { Patterns::Off },
        precision: precision.unwrap_or_default(),
        fused: if precision.is_some() { Fused::Require } else { Fused::Auto },
        ..PatchOptions::default()
    };
    patch(loaded, &options)?;
    Ok(())
}

fn run(loaded: &LoadedModel, prompt: &[u32], tokens: usize) -> Result<Generation> {
    let options =
        GenerateOptions { max_tokens: tokens, ignore_eos: true, ..GenerateOptions::default() };
    Ok(generate(loaded.model.as_ref(), prompt, &options, &mut |_| ControlFlow::Continue(()))?)
}

fn check(loaded: &mut LoadedModel, vocab: u32, tokens: usize) -> Result<()> {
    let prompt = prompt(3, vocab);
    set(loaded, None)?;
    let stock = run(loaded, &prompt, tokens)?.token_ids;
    set(loaded, Some(Precision::Exact))?;
    let exact = run(loaded, &prompt, tokens)?.token_ids;
    ensure!(stock == exact, "exact says {exact:?}, stock says {stock:?}");
    Ok(())
}

fn measure(
    loaded: &mut LoadedModel,
    variant: &'static str,
    precision: Option<Precision>,
    vocab: u32,
    timed: Load,
) -> Result<Round> {
    set(loaded, precision)?;
    let one_run = timed.depth == timed.prompt;
    let first =
        run(loaded, &prompt(timed.prompt, vocab), if one_run { timed.decode + 1 } else { 1 })?;
    let prompt_tok_per_s = first.prompt_tok_per_s;
    let g =
        if one_run { first } else { run(loaded, &prompt(timed.depth, vocab), timed.decode + 1)? };
    Ok(Round {
        variant,
        prompt_tokens: timed.prompt,
        prompt_tok_per_s,
        decode_tokens: timed.decode,
        decode_depth: timed.depth,
        decode_tok_per_s: g.decode_tok_per_s.context("too few tokens to time decode")?,
    })
}

/// One run of each test: prompt processing, and text generation at the same depth as ours.
fn llama_cpp(bench: &Path, gguf: &Path, timed: Load) -> Result<Round> {
    let prompt = llama_bench(bench, gguf, ["-p", &timed.prompt.to_string(), "-n", "0", "-d", "0"])?;
    let (decode, depth) = (timed.decode.to_string(), timed.depth.to_string());
    let decode = llama_bench(bench, gguf, ["-p", "0", "-n", &decode, "-d", &depth])?;
    Ok(Round {
        variant: "llama.cpp",
        prompt_tokens: timed.prompt,
        prompt_tok_per_s: prompt,
        decode_tokens: timed.decode,
        decode_depth: timed.depth,
        decode_tok_per_s: decode,
    })
}

/// Tokens per second of one test.
fn llama_bench(bench: &Path, gguf: &Path, test: [&str; 6]) -> Result<f64> {
    let threads = mlx::num_threads().to_string();
    let output = Command::new(bench)
        .args(["-m", &gguf.to_string_lossy(), "-t", &threads, "-r", "1", "-o", "jsonl"])
        .args(test)
        .output()
        .with_context(|| format!("run {}", bench.display()))?;
    if !output.status.success() {
        bail!("llama-bench: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line =
        text.lines().find(|l| l.starts_with('{')).context("llama-bench printed no result")?;
    let row: serde_json::Value = serde_json::from_str(line)?;
    row["avg_ts"].as_f64().context("llama-bench printed no avg_ts")
}

fn print_table(rounds: &[Round], bandwidth: &[Bandwidth], read_bytes: f64) {
    let copy = median(bandwidth.iter().map(|b| b.copy_bytes_per_s));
    println!(
        "{:<10} {:>7} {:>28} {:>28} {:>6} {:>8}",
        "variant",
        "rounds",
        "prefill tok/s (min..max)",
        "decode tok/s (min..max)",
        "GB/s",
        "of copy"
    );
    for variant in ["stock", "exact", "fast", "llama.cpp"] {
        let of: Vec<&Round> = rounds.iter().filter(|r| r.variant == variant).collect();
        if of.is_empty() {
            continue;
        }
        let decode = spread(of.iter().map(|r| r.decode_tok_per_s));
        print!(
            "{variant:<10} {:>7} {:>28} {decode:>28}",
            of.len(),
            spread(of.iter().map(|r| r.prompt_tok_per_s)),
        );
        if variant == "llama.cpp" {
            println!(); // reads a file of its own
            continue;
        }
        let bytes_per_s = median(of.iter().map(|r| r.decode_tok_per_s)) * read_bytes;
        println!(" {:>6.1} {:>7.0}%", bytes_per_s / 1e9, 100.0 * bytes_per_s / copy);
    }
    println!(
        "memory, GB/s (min..max): copy, read + written {}; read {}; a token reads {:.0} MB",
        spread(bandwidth.iter().map(|b| b.copy_bytes_per_s / 1e9)),
        spread(bandwidth.iter().map(|b| b.read_bytes_per_s / 1e9)),
        read_bytes / 1e6
    );
}

/// The median and the extremes.
fn spread(values: impl Iterator<Item = f64> + Clone) -> String {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.clone().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.2} ({low:.2}..{high:.2})", median(values))
}

//! Decode speed of several sequences in one forward pass against one alone, in turns.
//!
//! The sequences have prompts of different lengths, and each one's tokens must equal those that it has alone before
//! anything is timed.
//! `cargo run --release -p zmlx-benchmarks --bin batch -- --help`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use mlx::primitives::Precision;
use serde::Serialize;
use zmlx_benchmarks::{Machine, Raw, median};
use zmlx_lm::patch::{Fused, PatchOptions, Patterns};
use zmlx_lm::{Decoder, GenerateOptions, Model, load, patch};

#[derive(Parser)]
#[command(about = "Times decode of a ragged batch against one sequence, in turns")]
struct Args {
    /// Folder of the checkpoint.
    #[arg(default_value = "models/demo")]
    model: PathBuf,
    /// Sequences in the batch.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Tokens decoded by each.
    #[arg(long, default_value_t = 96)]
    decode: usize,
    /// Rounds; medians are printed.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Threads (0: all cores).
    #[arg(long, default_value_t = 0)]
    threads: i32,
    /// `float32` accumulation instead of stock's bits.
    #[arg(long)]
    fast: bool,
    /// Folder for the raw results (JSON Lines).
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What one round measured.
#[derive(Serialize)]
struct Round {
    rows: usize,
    alone_tok_per_s: f64,
    batch_tok_per_s: f64,
}

/// A line of the raw results.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Machine(&'a Machine),
    Round(&'a Round),
}

fn main() -> Result<()> {
    let args = Args::parse();
    mlx::set_default_device(mlx::Device::Cpu)?;
    mlx::set_num_threads(args.threads)?;
    let machine = Machine::probe();
    let mut raw = Raw::create(args.out.as_deref(), "batch.jsonl")?;
    raw.write(&Line::Machine(&machine))?;
    let mut loaded = load(&args.model).with_context(|| args.model.display().to_string())?;
    let precision = if args.fast { Precision::Fast } else { Precision::Exact };
    patch(
        &mut loaded,
        &PatchOptions {
            patterns: Patterns::Auto,
            precision,
            fused: Fused::Require,
            ..PatchOptions::default()
        },
    )?;
    let model = loaded.model.as_ref();
    let prompts: Vec<Vec<u32>> =
        (0..args.rows).map(|row| prompt(row, model.vocab_size())).collect();

    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.extend(run(model, std::slice::from_ref(prompt), args.decode)?.0);
    }
    let together = run(model, &prompts, args.decode)?.0;
    ensure!(alone == together, "rows differ from the same rows alone");

    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        let one = std::slice::from_ref(&prompts[round % args.rows]);
        let alone_tok_per_s = run(model, one, args.decode)?.1;
        let batch_tok_per_s = run(model, &prompts, args.decode)?.1;
        let round = Round { rows: args.rows, alone_tok_per_s, batch_tok_per_s };
        raw.write(&Line::Round(&round))?;
        rounds.push(round);
    }
    let alone = median(rounds.iter().map(|r| r.alone_tok_per_s));
    let batch = median(rounds.iter().map(|r| r.batch_tok_per_s));
    let ratio = median(rounds.iter().map(|r| r.batch_tok_per_s / r.alone_tok_per_s));
    println!("{machine}");
    println!(
        "{} rows, {} tokens each: alone {alone:.1} tok/s, together {batch:.1} tok/s, {ratio:.2}x",
        args.rows, args.decode
    );
    Ok(())
}

/// Prompts of different lengths.
fn prompt(row: usize, vocab: u32) -> Vec<u32> {
    let length = 3 + 11 * row as u32;
    (0..length).map(|i| (i * 7919 + 13 + 101 * row as u32) % vocab).collect()
}

/// Each prompt's tokens, and the tokens of all of them by the time from the first to the last.
fn run(model: &dyn Model, prompts: &[Vec<u32>], decode: usize) -> Result<(Vec<Vec<u32>>, f64)> {
    let options =
        GenerateOptions { max_tokens: decode + 1, ignore_eos: true, ..GenerateOptions::default() };
    let mut decoders = Vec::new();
    for prompt in prompts {
        let mut decoder = Decoder::new(model, prompt, &options)?;
        while !decoder.prefill_piece()? {}
        decoders.push(decoder);
    }
    let mut rows: Vec<&mut Decoder<'_>> = decoders.iter_mut().collect();
    let mut start = Instant::now();
    let mut count = 0;
    while rows.iter().any(|row| !row.is_done()) {
        let tokens = Decoder::round(&mut rows)?;
        let first = tokens.iter().flatten().any(|token| token.index == 0);
        if first {
            start = Instant::now();
        } else {
            count += tokens.iter().flatten().count();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let ids = decoders.iter().map(|decoder| decoder.token_ids().to_vec()).collect();
    Ok((ids, count as f64 / seconds))
}

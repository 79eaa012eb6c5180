//! The harness: variants of the same work, interleaved, in one process.
//!
//! Machines are noisy, so what counts is the ratio of medians between variants that took turns.
//! Outputs are compared by the caller before anything is timed.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

/// One way to do the work of a case.
pub struct Variant<'a> {
    /// Name in the table.
    pub name: &'static str,
    /// Does the work once, to completion.
    pub run: Box<dyn FnMut() -> Result<()> + 'a>,
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Most rounds per variant.
    pub rounds: usize,
    /// Time after which a variant stops early, once it has run [`Budget::min_rounds`].
    pub per_variant: Duration,
    /// Fewest rounds per variant.
    pub min_rounds: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { rounds: 31, per_variant: Duration::from_secs(3), min_rounds: 3 }
    }
}

/// Seconds of every timed round of a variant.
#[derive(Debug, Clone, Serialize)]
pub struct Samples {
    /// Name of the variant.
    pub variant: &'static str,
    /// Seconds, in the order measured.
    pub seconds: Vec<f64>,
}

impl Samples {
    fn sorted(&self) -> Vec<f64> {
        let mut s = self.seconds.clone();
        s.sort_by(f64::total_cmp);
        s
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        let s = self.sorted();
        s[s.len() / 2]
    }

    /// The fastest one.
    pub fn min(&self) -> f64 {
        self.sorted()[0]
    }

    /// The slowest one.
    pub fn max(&self) -> f64 {
        *self.sorted().last().expect("at least one round was timed")
    }
}

/// Runs all variants in turns until the budget is used. The caller has run each of them once, to compare
/// their outputs: that is the warm-up. A variant so slow that one round takes several budgets runs once.
pub fn interleave(variants: &mut [Variant<'_>], budget: Budget) -> Result<Vec<Samples>> {
    let mut samples: Vec<Samples> =
        variants.iter().map(|v| Samples { variant: v.name, seconds: Vec::new() }).collect();
    let mut spent = vec![Duration::ZERO; variants.len()];
    for round in 0..budget.rounds {
        for turn in 0..variants.len() {
            // Rotate who goes first, so that nobody always follows the same neighbour.
            let i = (turn + round) % variants.len();
            let enough = if round >= budget.min_rounds { 1 } else { 4 };
            if round > 0 && spent[i] > enough * budget.per_variant {
                continue;
            }
            let start = Instant::now();
            (variants[i].run)().with_context(|| format!("run of {}", variants[i].name))?;
            let took = start.elapsed();
            spent[i] += took;
            samples[i].seconds.push(took.as_secs_f64());
        }
    }
    Ok(samples)
}

/// Bytes per second of `threads` threads copying large buffers, counting bytes read and written:
/// the ceiling that memory-bound work is measured against. The best of several passes.
pub fn copy_bytes_per_s(threads: usize) -> f64 {
    const LEN: usize = 256 << 20;
    const PASSES: usize = 5;
    let mut buffers: Vec<_> =
        (0..threads).map(|i| (vec![i as u8 + 1; LEN], vec![0u8; LEN])).collect();
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        std::thread::scope(|s| {
            for (from, to) in &mut buffers {
                s.spawn(|| std::hint::black_box(&mut *to).copy_from_slice(from));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (2 * LEN * threads) as f64 / best
}

/// Bytes per second of `threads` threads reading large buffers: what decode, which writes next to
/// nothing, could reach at most.
pub fn read_bytes_per_s(threads: usize) -> f64 {
    const LEN: usize = (256 << 20) / 8;
    const PASSES: usize = 5;
    let buffers: Vec<_> = (0..threads).map(|i| vec![i as u64 + 1; LEN]).collect();
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        std::thread::scope(|s| {
            for b in &buffers {
                s.spawn(|| std::hint::black_box(b.iter().fold(0u64, |x, y| x ^ y)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (8 * LEN * threads) as f64 / best
}

/// Writes one JSON object per line to `dir/name`, for the record of a run.
pub fn write_raw<T: Serialize>(dir: &Path, name: &str, rows: &[T]) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let path = dir.join(name);
    let mut file =
        std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    for row in rows {
        serde_json::to_writer(&mut file, row)?;
        file.write_all(b"\n")?;
    }
    Ok(())
}

/// Facts about the machine that belong beside every figure.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processor, as the system names it.
    pub cpu: String,
    /// Threads of the primitives' pool.
    pub threads: i32,
    /// Instruction set that the kernels use.
    pub isa: String,
    /// Copy bandwidth, bytes read plus written per second.
    pub copy_bytes_per_s: f64,
    /// Read bandwidth, bytes per second.
    pub read_bytes_per_s: f64,
    /// MLX version and delivery.
    pub mlx: String,
}

impl Machine {
    /// Measures and asks.
    pub fn probe() -> Self {
        let threads = mlx::num_threads();
        let info = mlx::build_info();
        Self {
            cpu: cpu_name(),
            threads,
            isa: mlx::cpu_isa(),
            copy_bytes_per_s: copy_bytes_per_s(threads.max(1) as usize),
            read_bytes_per_s: read_bytes_per_s(threads.max(1) as usize),
            mlx: format!("{} ({})", info.mlx_version, info.mode),
        }
    }
}

fn cpu_name() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|s| {
            let line = s.lines().find(|l| l.starts_with("model name"))?.to_owned();
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

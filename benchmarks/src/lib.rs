//! The harness: variants of the same work, interleaved, in one process.
//!
//! Machines are noisy, so what counts is the ratio of medians between variants that took turns.
//! Outputs are compared by the caller before anything is timed.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mlx::quantization::Quantization;
use serde::Serialize;

/// One way to do the work of a case.
pub struct Variant<'a> {
    /// Name in the table.
    pub name: &'static str,
    /// How many times [`Variant::run`] does the work; what is recorded is the time of one.
    pub calls: usize,
    /// Does the work, to completion.
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

/// Seconds a call took, in every timed round of a variant.
#[derive(Debug, Clone, Serialize)]
pub struct Samples {
    /// Name of the variant.
    pub variant: &'static str,
    /// Seconds, in the order measured.
    pub seconds: Vec<f64>,
}

impl Samples {
    /// The middle one.
    pub fn median(&self) -> f64 {
        median(self.seconds.iter().copied())
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
            samples[i].seconds.push(took.as_secs_f64() / variants[i].calls as f64);
        }
    }
    Ok(samples)
}

/// The machine's memory bandwidth, to be measured in turns with the work: it is shared with whatever
/// else runs on the machine, and changes from minute to minute.
pub struct Memory {
    buffers: Vec<(Vec<u64>, Vec<u64>)>,
}

/// Bytes per second that memory gave in one pass.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bandwidth {
    /// Copying, counting bytes read and bytes written.
    pub copy_bytes_per_s: f64,
    /// Reading only: what decode, which writes next to nothing, could reach at most.
    pub read_bytes_per_s: f64,
}

impl Memory {
    /// Buffers for as many threads as the primitives use, far larger than any cache.
    pub fn new() -> Self {
        const TOTAL: usize = 512 << 20;
        let threads = mlx::num_threads().max(1) as usize;
        let len = TOTAL / threads / size_of::<u64>() / 2;
        Self { buffers: (0..threads).map(|i| (vec![i as u64 + 1; len], vec![1; len])).collect() }
    }

    /// The better of two passes of each kind: the first one wakes the machine.
    pub fn measure(&mut self) -> Bandwidth {
        let (first, second) = (self.pass(), self.pass());
        Bandwidth {
            copy_bytes_per_s: first.copy_bytes_per_s.max(second.copy_bytes_per_s),
            read_bytes_per_s: first.read_bytes_per_s.max(second.read_bytes_per_s),
        }
    }

    fn pass(&mut self) -> Bandwidth {
        let bytes = |b: &(Vec<u64>, Vec<u64>)| size_of_val(b.0.as_slice());
        let total: usize = self.buffers.iter().map(bytes).sum();
        let copy = Self::time(&mut self.buffers, |(from, to)| {
            std::hint::black_box(&mut *to).copy_from_slice(from);
        });
        let read = Self::time(&mut self.buffers, |(from, _)| {
            std::hint::black_box(from.iter().fold(0u64, |x, y| x ^ y));
        });
        Bandwidth {
            copy_bytes_per_s: (2 * total) as f64 / copy,
            read_bytes_per_s: total as f64 / read,
        }
    }

    fn time<B: Send>(buffers: &mut [B], work: impl Fn(&mut B) + Sync) -> f64 {
        let start = Instant::now();
        std::thread::scope(|s| {
            for b in buffers {
                s.spawn(|| work(b));
            }
        });
        start.elapsed().as_secs_f64()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// The middle of some figures; NaN of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.into_iter().collect();
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A quantisation in a table.
pub fn short(q: Quantization) -> String {
    format!("{} {}b gs{}", q.mode, q.bits, q.group_size)
}

/// Raw results: one JSON object per line, on disk as soon as it is known, so that a run that is cut
/// off keeps what it measured.
pub struct Raw(Option<File>);

impl Raw {
    /// Creates `dir/name`; without a folder, drops what it is given.
    pub fn create(dir: Option<&Path>, name: &str) -> Result<Self> {
        let Some(dir) = dir else { return Ok(Self(None)) };
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let path = dir.join(name);
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(Some(file)))
    }

    /// Adds a line.
    pub fn write<T: Serialize>(&mut self, row: &T) -> Result<()> {
        if let Some(file) = &mut self.0 {
            let mut line = serde_json::to_vec(row)?;
            line.push(b'\n');
            file.write_all(&line)?;
        }
        Ok(())
    }
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
    /// MLX version and delivery.
    pub mlx: String,
}

impl Machine {
    /// Asks.
    pub fn probe() -> Self {
        let info = mlx::build_info();
        Self {
            cpu: cpu_name(),
            threads: mlx::num_threads(),
            isa: mlx::cpu_isa(),
            mlx: format!("{} ({})", info.mlx_version, info.mode),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} threads, {}, MLX {}", self.cpu, self.threads, self.isa, self.mlx)
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

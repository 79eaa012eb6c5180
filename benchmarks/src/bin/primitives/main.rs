//! Stock ops against the primitives that replace them, exact and fast, at one shape after another.
//!
//! Exact outputs must equal stock's bits and fast ones must be near them before anything is timed.
//! `cargo run --release -p zmlx-benchmarks --bin primitives -- --help`

mod families;
mod rounding;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use mlx::primitives::{self, Glu, MoeRouter, Precision, Scoring};
use mlx::quantization::{self, Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops};
use zmlx_bench::call::{self, Budget, Call, interleave};
use zmlx_bench::memory::Memory;
use zmlx_benchmarks::{Out, machine, short};
use zmlx_capsule::{Bandwidth, Capsule, Metric, stats};

use crate::rounding::Sum;

#[derive(Parser)]
#[command(about = "Times stock ops, exact and fast primitives in turns, on the CPU")]
struct Args {
    /// Threads of the primitives' pool (0: all cores); several numbers, and each case runs with each of them.
    #[arg(long, default_value = "0", value_delimiter = ',')]
    threads: Vec<i32>,
    /// Only cases whose name contains one of these.
    #[arg(long, default_value = "", value_delimiter = ',')]
    only: Vec<String>,
    /// Seconds per variant and case.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The capsule.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A case: name, work, and how to do it in each way.
struct Case {
    name: String,
    /// Bytes of weights that the work reads at least.
    bytes: f64,
    /// Multiplications and additions of the products.
    flops: f64,
    /// The most that fast may be away from stock, relative.
    allowed: f64,
    build: Box<dyn Fn() -> Result<Ways>>,
}

/// The same work in three ways. Each call uses the next of several inputs.
struct Ways {
    stock: Box<Work>,
    exact: Box<Work>,
    fast: Option<Box<Work>>,
}

type Work = dyn Fn(usize) -> mlx::Result<Array>;

/// Inputs to rotate over, so that repeated calls do not find their weights in the cache.
const NUM_INPUTS: usize = 16;

/// The ways, in the order of the capsule's variants: these for the first number of threads, then for the next.
const WAYS: [&str; 3] = ["stock", "exact", "fast"];

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    mlx::set_default_device(mlx::Device::Cpu)?;
    mlx::set_num_threads(args.threads.iter().copied().max().unwrap_or(0))?;
    let budget = Budget { per_variant: Duration::from_secs_f64(args.seconds), ..Budget::default() };
    let variants: Vec<String> = match args.threads[..] {
        [_] => WAYS.map(str::to_owned).to_vec(),
        _ => args.threads.iter().flat_map(|n| WAYS.map(|way| format!("{way}-{n}"))).collect(),
    };
    let variants: Vec<&str> = variants.iter().map(String::as_str).collect();
    let mut out = Out::new("primitives", &variants, budget.rounds, args.out);
    println!("{}", machine(&out.capsule));
    let mut memory = Memory::new();
    println!(
        "{:<66} {:>7} {:>10} {:>10} {:>10} {:>8} {:>8} {:>7} {:>8} {:>9}",
        "case",
        "threads",
        "stock ms",
        "exact ms",
        "fast ms",
        "exact x",
        "fast x",
        "GB/s",
        "copy",
        "GFLOP/s"
    );
    let (mut slower, mut failed) = (Vec::new(), Vec::new());
    let asked = |case: &Case| args.only.iter().any(|part| case.name.contains(part));
    let cases: Vec<Case> = cases().into_iter().filter(asked).collect();
    ensure!(!cases.is_empty(), "--only {}: no case has that in its name", args.only.join(","));
    for case in &cases {
        let bandwidth = memory.measure();
        out.capsule.bandwidth.push(bandwidth);
        match run(case, &args.threads, budget, &mut out.capsule) {
            Ok(()) => slower.extend(show(case, &args.threads, bandwidth, &out.capsule)),
            Err(error) => {
                println!("{:<66} FAILED: {error:#}", case.name);
                out.capsule.notes.push(format!("{}: failed: {error:#}", case.name));
                failed.push(case.name.as_str());
            }
        }
        mlx::memory::clear_cache()?;
        out.save()?;
    }
    out.finish()?;
    if !failed.is_empty() {
        println!("{} of {} cases failed: {}", failed.len(), cases.len(), failed.join(", "));
    }
    match slower[..] {
        [] => println!("no case is slower than stock, of {}", cases.len() - failed.len()),
        _ => println!("slower than stock: {}", slower.join(", ")),
    }
    Ok(if failed.is_empty() && slower.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints a line of the last case for each number of threads; those with which it is slower than stock.
fn show(case: &Case, threads: &[i32], bandwidth: Bandwidth, capsule: &Capsule) -> Vec<String> {
    let last = capsule.cases.len() - 1;
    let median = |variant| stats::median(&capsule.values(variant, last, Metric::Seconds));
    let once = median(0);
    let mut slower = Vec::new();
    for (i, n) in threads.iter().enumerate() {
        let [stock, exact, fast] = [0, 1, 2].map(|way| median(WAYS.len() * i + way));
        let stock = stock.or(once).unwrap_or(f64::NAN);
        let exact = exact.unwrap_or(f64::NAN);
        let best = fast.unwrap_or(exact);
        println!(
            "{:<66} {:>7} {:>10.3} {:>10.3} {:>10} {:>7.2}x {:>8} {:>7.2} {:>8.2} {:>9.2}",
            case.name,
            n,
            stock * 1e3,
            exact * 1e3,
            fast.map_or("-".into(), |f| format!("{:.3}", f * 1e3)),
            stock / exact,
            fast.map_or("-".into(), |f| format!("{:.2}x", stock / f)),
            case.bytes / best / 1e9,
            bandwidth.copy_bytes_per_s / 1e9,
            case.flops / best / 1e9,
        );
        if exact > stock || fast.is_some_and(|f| f > stock) {
            slower.push(format!("{} ({n} threads)", case.name));
        }
    }
    slower
}

/// Adds a case and its samples, once its outputs are right with every number of threads.
fn run(case: &Case, threads: &[i32], budget: Budget, capsule: &mut Capsule) -> Result<()> {
    let ways = (case.build)()?;
    let start = Instant::now();
    let reference = (ways.stock)(0)?;
    reference.eval()?;
    let took = start.elapsed();
    // Stock has one thread whatever the others have: where it is slow, this run was it.
    let slow = took > 4 * budget.per_variant;
    let number = capsule.cases.len();
    let mut samples = Vec::new();
    if slow {
        samples.push(call::sample(0, number, 0, Metric::Seconds, took.as_secs_f64()));
    }
    for (i, n) in threads.iter().enumerate() {
        mlx::set_num_threads(*n)?;
        let exact = (ways.exact)(0)?;
        let equal = ops::array_equal(&reference, &exact, true)?;
        ensure!(equal, "exact differs from stock ({n} threads)");
        if let Some(fast) = &ways.fast {
            let distance = relative_distance(&fast(0)?, &reference)?;
            let allowed = case.allowed;
            let said = format!(
                "fast is {distance:.2e} away from stock ({n} threads), allowed {allowed:.2e}"
            );
            // not "distance > allowed": it may be NaN
            ensure!(distance <= allowed, "{said}");
            capsule.notes.push(format!("{}: {said}", case.name));
        }
        let first = WAYS.len() * i;
        let mut calls = vec![timed(first + 1, &ways.exact)?];
        if !slow {
            calls.insert(0, timed(first, &ways.stock)?);
        }
        if let Some(fast) = &ways.fast {
            calls.push(timed(first + 2, fast)?);
        }
        samples.extend(interleave(&mut calls, number, budget)?);
    }
    capsule.cases.push(call::case(case.name.clone(), Some(case.bytes), Some(case.flops)));
    capsule.samples.extend(samples);
    Ok(())
}

/// A variant that makes enough calls in one evaluation to drown the time it takes to wake a thread.
fn timed<'a>(variant: usize, work: &'a Work) -> Result<Call<'a, anyhow::Error>> {
    const ENOUGH: f64 = 5e-3;
    let start = Instant::now();
    work(1)?.eval()?;
    let calls = (ENOUGH / start.elapsed().as_secs_f64()).clamp(1.0, NUM_INPUTS as f64) as usize;
    let mut next = 0;
    let run = Box::new(move || {
        let outputs: Vec<Array> = (next..next + calls).map(work).collect::<mlx::Result<_>>()?;
        next += calls;
        Ok(mlx::eval(&outputs)?)
    });
    Ok(Call { variant, calls, run })
}

/// ‖a - b‖ / ‖b‖.
fn relative_distance(a: &Array, b: &Array) -> Result<f64> {
    let (a, b) = (a.astype(Dtype::F32)?, b.astype(Dtype::F32)?);
    let norm = |x: &Array| -> mlx::Result<f64> {
        Ok(f64::from(ops::sqrt(&ops::sum(&ops::square(x)?, &[], false)?)?.item::<f32>()?))
    };
    Ok(norm(&ops::subtract(&a, &b)?)? / norm(&b)?)
}

fn random(shape: &[i32], dtype: Dtype, seed: u64) -> Result<Array> {
    let a = mlx::random::normal(shape, dtype, 0.0, 1.0, Some(&mlx::random::key(seed)?))?;
    a.eval()?;
    Ok(a)
}

fn weight(shape: &[i32], dtype: Dtype, q: Quantization, seed: u64) -> Result<QuantizedWeight> {
    // Of many experts some are the same, in memory of their own: random numbers take longer than what is measured.
    const DIFFERENT: i32 = 8;
    let scale = 1.0 / (shape[shape.len() - 1] as f32).sqrt();
    let key = mlx::random::key(seed)?;
    let copies =
        if shape.len() > 2 && shape[0] % DIFFERENT == 0 { shape[0] / DIFFERENT } else { 1 };
    let mut different = shape.to_vec();
    different[0] /= copies;
    let w = mlx::random::normal(&different, dtype, 0.0, scale, Some(&key))?;
    let mut w = QuantizedWeight::quantize(&w, q)?;
    for part in [&mut w.w, &mut w.scales].into_iter().chain(&mut w.biases) {
        *part = ops::concatenate(vec![&*part; copies as usize], 0)?;
    }
    mlx::eval([&w.w, &w.scales].into_iter().chain(&w.biases))?;
    mlx::memory::clear_cache()?;
    Ok(w)
}

/// Distinct experts for each of `tokens` tokens, different for every input.
fn experts(tokens: i32, top_k: i32, num_experts: i32) -> Result<Vec<Array>> {
    (0..NUM_INPUTS as u64)
        .map(|i| {
            let logits = random(&[tokens, num_experts], Dtype::F32, 1000 + i)?;
            let order = ops::argsort(&logits, -1)?;
            let picked = ops::slice(&order, &[0, 0], &[tokens, top_k])?;
            let picked = ops::contiguous(&picked)?;
            picked.eval()?;
            Ok(picked)
        })
        .collect()
}

fn bytes_per_weight(q: Quantization, dtype: Dtype) -> f64 {
    let per_group = if q.mode == Mode::Affine { 2 * dtype.size() } else { 1 } as f64;
    f64::from(q.bits) / 8.0 + per_group / f64::from(q.group_size)
}

/// Weights of the distinct experts that a call touches, in expectation.
fn touched(num_experts: i32, picks: i32) -> f64 {
    let e = f64::from(num_experts);
    e * (1.0 - (1.0 - 1.0 / e).powi(picks))
}

#[derive(Clone, Copy)]
struct Moe {
    model: &'static str,
    k: i32,
    n: i32,
    num_experts: i32,
    top_k: i32,
}

const QWEN3_30B: Moe = Moe { model: "qwen3-30b-a3b", k: 2048, n: 768, num_experts: 128, top_k: 8 };
const SMALL: Moe = Moe { model: "small", k: 256, n: 128, num_experts: 16, top_k: 4 };

fn cases() -> Vec<Case> {
    let q4 = Quantization::affine(64, 4);
    let mut cases = Vec::new();
    for tokens in [1, 4, 32, 128] {
        cases.push(swiglu(QWEN3_30B, tokens, Dtype::Bf16, q4));
        cases.push(combine(QWEN3_30B, tokens, Dtype::Bf16, q4));
        cases.push(router(QWEN3_30B, tokens, Dtype::Bf16));
    }
    for q in [
        Quantization::affine(64, 2),
        Quantization::affine(64, 3),
        Quantization::affine(64, 5),
        Quantization::affine(64, 6),
        Quantization::affine(64, 8),
        Quantization::affine(32, 4),
        Quantization::affine(128, 4),
        Quantization::default_of(Mode::Mxfp4),
        Quantization::default_of(Mode::Mxfp8),
        Quantization::default_of(Mode::Nvfp4),
    ] {
        cases.push(swiglu(QWEN3_30B, 1, Dtype::Bf16, q));
    }
    for dtype in [Dtype::F16, Dtype::F32] {
        cases.push(swiglu(QWEN3_30B, 1, dtype, q4));
        cases.push(combine(QWEN3_30B, 1, dtype, q4));
    }
    for tokens in [1, 32] {
        cases.push(swiglu(SMALL, tokens, Dtype::Bf16, q4));
        cases.push(combine(SMALL, tokens, Dtype::Bf16, q4));
        cases.push(router(SMALL, tokens, Dtype::Bf16));
    }
    for (rows, k, n) in [
        (1, 2048, 4096),
        (1, 2048, 512),
        (1, 4096, 2048),
        (1, 256, 256),
        (1, 2048, 151_936),
        (128, 2048, 4096),
        (128, 256, 256),
    ] {
        cases.push(linear(rows, k, n, Dtype::Bf16, q4));
    }
    cases.extend(families::cases());
    cases
}

fn swiglu(m: Moe, tokens: i32, dtype: Dtype, q: Quantization) -> Case {
    let picks = tokens * m.top_k;
    let weights = 2.0 * f64::from(m.k) * f64::from(m.n);
    Case {
        name: format!("gather_qmm_swiglu {} {tokens} tok {dtype} {}", m.model, short(q)),
        bytes: weights * touched(m.num_experts, picks) * bytes_per_weight(q, dtype),
        flops: 2.0 * weights * f64::from(picks),
        allowed: Sum::Gated(m.k).allowed(dtype),
        build: Box::new(move || {
            let gate = weight(&[m.num_experts, m.n, m.k], dtype, q, 1)?;
            let up = weight(&[m.num_experts, m.n, m.k], dtype, q, 2)?;
            let x = random(&[tokens, 1, 1, m.k], dtype, 3)?;
            let indices = experts(tokens, m.top_k, m.num_experts)?;
            let fused = |precision| {
                let (x, gate, up, indices) = (x.clone(), gate.clone(), up.clone(), indices.clone());
                move |i: usize| {
                    let index = Some(&indices[i % NUM_INPUTS]);
                    primitives::gather_qmm_swiglu(
                        &x,
                        Glu::new(&gate, &up),
                        None,
                        index,
                        true,
                        false,
                        precision,
                    )
                }
            };
            Ok(Ways {
                exact: Box::new(fused(Precision::Exact)),
                fast: Some(Box::new(fused(Precision::Fast))),
                stock: Box::new(move |i| {
                    let index = Some(&indices[i % NUM_INPUTS]);
                    let up = quantization::gather_qmm(&x, &up, None, index, true, false)?;
                    let gate = quantization::gather_qmm(&x, &gate, None, index, true, false)?;
                    ops::swiglu(&gate, &up)
                }),
            })
        }),
    }
}

fn combine(m: Moe, tokens: i32, dtype: Dtype, q: Quantization) -> Case {
    let picks = tokens * m.top_k;
    let weights = f64::from(m.k) * f64::from(m.n);
    Case {
        name: format!("gather_qmm_combine {} {tokens} tok {dtype} {}", m.model, short(q)),
        bytes: weights * touched(m.num_experts, picks) * bytes_per_weight(q, dtype),
        flops: 2.0 * weights * f64::from(picks),
        allowed: Sum::Products(m.n).allowed(dtype),
        build: Box::new(move || {
            let down = weight(&[m.num_experts, m.k, m.n], dtype, q, 1)?;
            let x = random(&[tokens, m.top_k, 1, m.n], dtype, 3)?;
            let scores = ops::softmax(&random(&[tokens, m.top_k], dtype, 4)?, -1, true)?;
            let indices = experts(tokens, m.top_k, m.num_experts)?;
            let fused = |precision| {
                let (x, down) = (x.clone(), down.clone());
                let (scores, indices) = (scores.clone(), indices.clone());
                move |i: usize| {
                    let index = &indices[i % NUM_INPUTS];
                    primitives::gather_qmm_combine(&x, &down, None, index, &scores, precision)
                }
            };
            Ok(Ways {
                exact: Box::new(fused(Precision::Exact)),
                fast: Some(Box::new(fused(Precision::Fast))),
                stock: Box::new(move |i| {
                    let index = Some(&indices[i % NUM_INPUTS]);
                    let y = quantization::gather_qmm(&x, &down, None, index, true, false)?;
                    let y = ops::squeeze(&y, &[-2])?;
                    let y = ops::multiply(&y, &ops::expand_dims(&scores, &[-1])?)?;
                    ops::sum(&y, &[-2], false)
                }),
            })
        }),
    }
}

fn router(m: Moe, tokens: i32, dtype: Dtype) -> Case {
    let (k, e) = (m.top_k, m.num_experts);
    Case {
        name: format!("moe_router {} {tokens} tok {dtype}", m.model),
        bytes: f64::from(tokens * e) * dtype.size() as f64,
        flops: 0.0,
        allowed: 0.0,
        build: Box::new(move || {
            let logits: Vec<Array> = (0..NUM_INPUTS as u64)
                .map(|i| random(&[tokens, e], dtype, i))
                .collect::<Result<_>>()?;
            let fused = logits.clone();
            // Both outputs in one array, so that both are computed and compared.
            let join = |indices: &Array, scores: &Array| {
                ops::concatenate([&indices.astype(scores.dtype())?, scores], -1)
            };
            Ok(Ways {
                stock: Box::new(move |i| {
                    let gates = ops::softmax(&logits[i % NUM_INPUTS], -1, true)?;
                    let order = ops::argpartition(&gates, -k, -1)?;
                    let indices = ops::slice(&order, &[0, e - k], &[tokens, e])?;
                    let scores = ops::take_along_axis(&gates, &indices, -1)?;
                    let scores = ops::divide(&scores, &ops::sum(&scores, &[-1], true)?)?;
                    join(&indices, &scores)
                }),
                exact: Box::new(move |i| {
                    let logits = &fused[i % NUM_INPUTS];
                    let router =
                        MoeRouter { normalize: true, ..MoeRouter::new(e, k, Scoring::Softmax) };
                    let (indices, scores) = primitives::moe_router(logits, &router, None, None)?;
                    join(&indices, &scores)
                }),
                fast: None,
            })
        }),
    }
}

fn linear(rows: i32, k: i32, n: i32, dtype: Dtype, q: Quantization) -> Case {
    let weights = f64::from(k) * f64::from(n);
    Case {
        name: format!("quantized_matmul {rows}x{k}x{n} {dtype} {}", short(q)),
        bytes: weights * bytes_per_weight(q, dtype),
        flops: 2.0 * weights * f64::from(rows),
        allowed: Sum::Products(k).allowed(dtype),
        build: Box::new(move || {
            let w = weight(&[n, k], dtype, q, 1)?;
            let x = random(&[1, rows, k], dtype, 2)?;
            let fused = |precision| {
                let (x, w) = (x.clone(), w.clone());
                move |_: usize| primitives::quantized_matmul(&x, &w, true, precision)
            };
            Ok(Ways {
                exact: Box::new(fused(Precision::Exact)),
                fast: Some(Box::new(fused(Precision::Fast))),
                stock: Box::new(move |_| quantization::quantized_matmul(&x, &w, true)),
            })
        }),
    }
}

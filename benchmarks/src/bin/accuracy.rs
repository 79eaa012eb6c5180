//! How far quantized products are from the same products in f64: stock (whose bits exact mode has) and
//! fast mode, for every type and quantisation.
//!
//! `cargo run --release -p zmlx-benchmarks --bin accuracy -- --help`

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;
use mlx::primitives::{self, Precision};
use mlx::quantization::{self, Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops};
use zmlx_bench::call;
use zmlx_benchmarks::{Out, machine, short};
use zmlx_capsule::Metric;

#[derive(Parser)]
#[command(about = "Measures the error of stock, exact and fast products against f64, on the CPU")]
struct Args {
    /// Length of the sums.
    #[arg(long, default_value_t = 2048)]
    k: i32,
    /// Outputs per row of x.
    #[arg(long, default_value_t = 1024)]
    n: i32,
    /// The capsule.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Errors are ‖y - y64‖ / ‖y64‖.
struct Row {
    dtype: String,
    quantization: String,
    /// y64 rounded to the type: no result of that type can be nearer.
    rounded: f64,
    /// Stock, and so exact mode.
    stock: f64,
    /// Fast mode, one row of x: the kernel of decode.
    fast_one_row: f64,
    /// Fast mode, 16 rows: the kernel of prefill.
    fast_rows: f64,
}

const ROWS: i32 = 16;

fn main() -> Result<()> {
    let args = Args::parse();
    mlx::set_default_device(mlx::Device::Cpu)?;
    let variants = ["stock, exact", "rounded", "fast, 1 row", "fast, 16 rows"];
    let mut out = Out::new("accuracy", &variants, 1, args.out);
    println!("{}; {ROWS} x {} x {}, normal x and weights", machine(&out.capsule), args.k, args.n);
    println!("‖y - y64‖ / ‖y64‖");
    println!(
        "{:<9} {:<16} {:>9} {:>13} {:>12} {:>13}",
        "dtype", "quantization", "rounded", "stock, exact", "fast, 1 row", "fast, 16 rows"
    );
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        for q in quantizations() {
            let row = measure(args.k, args.n, dtype, q)?;
            println!(
                "{:<9} {:<16} {:>9.1e} {:>13.1e} {:>12.1e} {:>13.1e}",
                row.dtype,
                row.quantization,
                row.rounded,
                row.stock,
                row.fast_one_row,
                row.fast_rows
            );
            let name =
                format!("quantized_matmul {ROWS}x{}x{} {dtype} {}", args.k, args.n, short(q));
            let case = out.capsule.cases.len();
            out.capsule.cases.push(call::case(name, None, None));
            let errors = [row.stock, row.rounded, row.fast_one_row, row.fast_rows];
            for (variant, error) in errors.into_iter().enumerate() {
                let sample = call::sample(variant, case, 0, Metric::RelativeError, error);
                out.capsule.samples.push(sample);
            }
            out.save()?;
            // In f32 both add in full precision, and sums of equal length err alike.
            let fast = row.fast_one_row.max(row.fast_rows);
            ensure!(
                fast <= 1.1 * row.stock,
                "{dtype} {q}: fast is off by {fast:.1e}, more than stock's {:.1e}",
                row.stock
            );
        }
    }
    out.finish()?;
    println!("fast is nowhere farther from f64 than stock");
    Ok(())
}

fn quantizations() -> Vec<Quantization> {
    let mut all: Vec<_> = [2, 3, 4, 5, 6, 8].map(|bits| Quantization::affine(64, bits)).to_vec();
    all.extend([Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].map(Quantization::default_of));
    all
}

fn measure(k: i32, n: i32, dtype: Dtype, q: Quantization) -> Result<Row> {
    let x = mlx::random::normal(&[ROWS, k], dtype, 0.0, 1.0, Some(&mlx::random::key(1)?))?;
    let key = mlx::random::key(2)?;
    let w = mlx::random::normal(&[n, k], dtype, 0.0, 1.0 / (k as f32).sqrt(), Some(&key))?;
    let w = QuantizedWeight::quantize(&w, q)?;

    let y64 = product(&floats(&x)?, &weights(&w, k as usize)?, k as usize);
    let stock = quantization::quantized_matmul(&x, &w, true)?;
    let exact = primitives::quantized_matmul(&x, &w, true, Precision::Exact)?;
    ensure!(ops::array_equal(&stock, &exact, true)?, "{dtype} {q}: exact differs from stock");
    let one_row: Vec<Array> = (0..ROWS)
        .map(|i| {
            let row = ops::slice(&x, &[i, 0], &[i + 1, k])?;
            primitives::quantized_matmul(&row, &w, true, Precision::Fast)
        })
        .collect::<mlx::Result<_>>()?;
    let one_row = ops::concatenate(&one_row, 0)?;
    let rows = primitives::quantized_matmul(&x, &w, true, Precision::Fast)?;
    let y32: Vec<f32> = y64.iter().map(|v| *v as f32).collect();
    let rounded = Array::from_slice(&y32, &[ROWS, n])?.astype(dtype)?;
    let error = |y: &Array| -> Result<f64> { Ok(distance(&floats(y)?, &y64)) };
    Ok(Row {
        dtype: dtype.to_string(),
        quantization: short(q),
        rounded: error(&rounded)?,
        stock: error(&stock)?,
        fast_one_row: error(&one_row)?,
        fast_rows: error(&rows)?,
    })
}

fn floats(a: &Array) -> Result<Vec<f64>> {
    Ok(a.astype(Dtype::F32)?.to_vec::<f32>()?.into_iter().map(f64::from).collect())
}

/// The weights in f64. Integers and small floats times their scales are exact in f32; an affine scale
/// and bias are applied here.
fn weights(w: &QuantizedWeight, k: usize) -> Result<Vec<f64>> {
    let Some(biases) = &w.biases else { return floats(&w.dequantize()?) };
    let like = |value: f32| -> Result<Array> {
        let shape = w.scales.shape();
        let len: i32 = shape.iter().product();
        Ok(Array::from_slice(&vec![value; len as usize], shape)?)
    };
    let integers = QuantizedWeight { scales: like(1.0)?, biases: Some(like(0.0)?), ..w.clone() };
    let (scales, biases) = (floats(&w.scales)?, floats(biases)?);
    let group = w.quantization.group_size as usize;
    debug_assert_eq!(k % group, 0);
    Ok(floats(&integers.dequantize()?)?
        .into_iter()
        .enumerate()
        .map(|(i, v)| scales[i / group] * v + biases[i / group])
        .collect())
}

/// `x [m, k] @ w [n, k]ᵀ`.
fn product(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    x.chunks(k)
        .flat_map(|x| w.chunks(k).map(move |w| x.iter().zip(w).map(|(a, b)| a * b).sum()))
        .collect()
}

fn distance(y: &[f64], reference: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut y.iter().zip(reference).map(|(a, b)| a - b)) / norm(&mut reference.iter().copied())
}

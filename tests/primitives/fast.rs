//! `Precision::Fast` against the same sums in `f64`, within one table of tolerances.

use mlx::primitives::{Precision, gather_qmm_combine, quantized_matmul};
use mlx::quantization::{self, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops};

use super::quantized::matrix;
use super::swiglu::{Call, Layout, call};
use super::{asks, fused};
use crate::support::bits::as_f32;
use crate::support::data::{self, DTYPES, Rng, quantizations};
use crate::support::on_each_device;

/// Largest error of one product, as a part of Σ|x·w|: what each row of the table allows.
///
/// - the result is rounded once to the activation type: half a unit in the last place;
/// - `f32` accumulation in any order adds at most K·2⁻²⁴, and K is at most 512 here;
/// - weights are dequantised in `f32`, where stock rounds them to the activation type.
const TOLERANCE: [(Dtype, f64); 3] = [
    (Dtype::F32, 512.0 / 16_777_216.0),
    (Dtype::F16, 1.0 / 2048.0 + 512.0 / 16_777_216.0),
    (Dtype::Bf16, 1.0 / 256.0 + 512.0 / 16_777_216.0),
];

fn tolerance(dtype: Dtype) -> f64 {
    TOLERANCE.iter().find(|(d, _)| *d == dtype).unwrap().1
}

/// The dequantised matrices `[E, rows, columns]`, computed by stock MLX in `f32`.
struct Dense {
    values: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl Dense {
    fn new(w: &QuantizedWeight) -> Self {
        let wide = |a: &Array| {
            if a.dtype().is_float() { a.astype(Dtype::F32).unwrap() } else { a.clone() }
        };
        let w = QuantizedWeight {
            w: w.w.clone(),
            scales: wide(&w.scales),
            biases: w.biases.as_ref().map(wide),
            quantization: w.quantization,
        };
        let dense = w.dequantize().unwrap();
        let (rows, columns) = (dense.dim(-2) as usize, dense.dim(-1) as usize);
        Self { values: as_f32(&dense), rows, columns }
    }

    /// x · W[e]ᵀ in `f64`, and Σ|x·w| for each output.
    fn product(&self, x: &[f32], e: usize) -> Vec<(f64, f64)> {
        let base = e * self.rows * self.columns;
        (0..self.rows)
            .map(|n| {
                let row = &self.values[base + n * self.columns..][..self.columns];
                let terms = x.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b));
                terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
            })
            .collect()
    }
}

/// Largest error as a part of `scale`, and the mean.
struct Errors {
    largest: f64,
    mean: f64,
}

fn errors(got: &[f32], expected: &[(f64, f64)]) -> Errors {
    assert_eq!(got.len(), expected.len());
    let parts: Vec<f64> = got
        .iter()
        .zip(expected)
        .map(|(g, (e, scale))| (f64::from(*g) - e).abs() / scale.max(1e-30))
        .collect();
    let largest = parts.iter().fold(0.0, |a: f64, b| a.max(*b));
    Errors { largest, mean: parts.iter().sum::<f64>() / parts.len() as f64 }
}

on_each_device! {
    fn quantized_matmul_is_within_tolerance_and_not_worse_than_stock() {
        let mut rng = Rng::new(51);
        for dtype in DTYPES {
            let (mut fast_mean, mut stock_mean) = (0.0, 0.0);
            for q in quantizations() {
                if !fused(&asks::matmul(q, true), dtype, Precision::Fast) { continue; }
                for rows in [1, 3, 20] {
                    let k = 512;
                    let w = matrix(&mut rng, [37, k], q, dtype, true);
                    let x = rng.array(&[rows, k], dtype, 1.0);
                    let dense = Dense::new(&w);
                    let expected: Vec<(f64, f64)> = as_f32(&x)
                        .chunks(k as usize)
                        .flat_map(|row| dense.product(row, 0))
                        .collect();
                    let got = quantized_matmul(&x, &w, true, Precision::Fast).unwrap();
                    let fast = errors(&as_f32(&got), &expected);
                    assert!(
                        fast.largest <= tolerance(dtype),
                        "{dtype} {q} {rows} rows: {:.3e} > {:.3e}", fast.largest, tolerance(dtype)
                    );
                    let stock = quantization::quantized_matmul(&x, &w, true).unwrap();
                    fast_mean += fast.mean;
                    stock_mean += errors(&as_f32(&stock), &expected).mean;
                }
            }
            assert!(fast_mean <= stock_mean * 1.05, "{dtype}: {fast_mean:.3e} > {stock_mean:.3e}");
        }
    }
}

/// The error that tolerated projections may cause in silu(g)·u: |silu'| ≤ 1.1, |silu(g)| ≤ |g|.
fn swiglu_expected(gate: (f64, f64), up: (f64, f64)) -> (f64, f64) {
    let silu = gate.0 / (1.0 + (-gate.0).exp());
    let scale = 1.1 * gate.1 * up.0.abs() + silu.abs() * up.1 + 3.0 * (silu * up.0).abs();
    (silu * up.0, scale + gate.1 * up.1 * 0.01)
}

on_each_device! {
    fn swiglu_is_within_tolerance() {
        let mut rng = Rng::new(52);
        for dtype in DTYPES {
            for q in quantizations() {
                if !fused(&asks::swiglu(q, true), dtype, Precision::Fast) { continue; }
                for layout in [Layout::Decode { top_k: 4 }, Layout::Sorted { rows: 20 }] {
                    let k = 256;
                    let c: Call = call(&mut rng, layout, [4, 29, k], q, dtype, true);
                    let (gate, up) = (Dense::new(&c.gate), Dense::new(&c.up));
                    let x = as_f32(&c.x);
                    let experts = c.rhs.as_ref().unwrap().to_vec::<u32>().unwrap();
                    let mut expected = Vec::new();
                    for (i, e) in experts.iter().enumerate() {
                        let row = if x.len() == k as usize { &x[..] } else { &x[i * k as usize..][..k as usize] };
                        let g = gate.product(row, *e as usize);
                        let u = up.product(row, *e as usize);
                        expected.extend(g.into_iter().zip(u).map(|(g, u)| swiglu_expected(g, u)));
                    }
                    let got = errors(&as_f32(&c.fused(Precision::Fast).unwrap()), &expected);
                    assert!(
                        got.largest <= tolerance(dtype),
                        "{dtype} {q} {layout:?}: {:.3e} > {:.3e}", got.largest, tolerance(dtype)
                    );
                }
            }
        }
    }
}

on_each_device! {
    fn combine_is_within_tolerance() {
        let mut rng = Rng::new(53);
        for dtype in DTYPES {
            for q in quantizations() {
                if !fused(&asks::combine(q), dtype, Precision::Fast) { continue; }
                for tokens in [1, 12] {
                    let (k, n, top_k) = (256usize, 29usize, 3usize);
                    let down = rng.experts([5, n as i32, k as i32], q, dtype, true);
                    let shape = [tokens, top_k as i32];
                    let indices = data::array(&rng.routing(tokens, 3, 5), &shape);
                    let scores = ops::softmax(&rng.array(&shape, dtype, 1.0), -1, true).unwrap();
                    let x = rng.array(&[tokens, 3, 1, k as i32], dtype, 1.0);
                    let dense = Dense::new(&down);
                    let (xs, ss) = (as_f32(&x), as_f32(&scores));
                    let picked = indices.to_vec::<u32>().unwrap();
                    let mut expected = vec![(0.0, 0.0); tokens as usize * n];
                    for (i, e) in picked.iter().enumerate() {
                        let s = f64::from(ss[i]);
                        let y = dense.product(&xs[i * k..][..k], *e as usize);
                        for (j, (value, size)) in y.into_iter().enumerate() {
                            let slot = &mut expected[i / top_k * n + j];
                            *slot = (slot.0 + s * value, slot.1 + s * (size + 2.0 * value.abs()));
                        }
                    }
                    let got = gather_qmm_combine(&x, &down, None, &indices, &scores, Precision::Fast);
                    let got = errors(&as_f32(&got.unwrap()), &expected);
                    assert!(
                        got.largest <= tolerance(dtype),
                        "{dtype} {q} {tokens} tokens: {:.3e} > {:.3e}", got.largest, tolerance(dtype)
                    );
                }
            }
        }
    }
}

on_each_device! {
    fn fast_results_do_not_depend_on_how_rows_are_batched_beyond_tolerance() {
        // Decode and prefill take different kernels; both have to answer to the same sums.
        let mut rng = Rng::new(54);
        let q = Quantization::affine(64, 4);
        if !fused(&asks::matmul(q, true), Dtype::Bf16, Precision::Fast) { return; }
        let w = matrix(&mut rng, [40, 256], q, Dtype::Bf16, true);
        let x = rng.array(&[33, 256], Dtype::Bf16, 1.0);
        let together = quantized_matmul(&x, &w, true, Precision::Fast).unwrap();
        let dense = Dense::new(&w);
        for i in [0, 7, 32] {
            let row = ops::slice_axis(&x, 0, i, i + 1).unwrap();
            let alone = quantized_matmul(&row, &w, true, Precision::Fast).unwrap();
            let expected = dense.product(&as_f32(&row), 0);
            let of_all = ops::slice_axis(&together, 0, i, i + 1).unwrap();
            for got in [alone, of_all] {
                assert!(errors(&as_f32(&got), &expected).largest <= tolerance(Dtype::Bf16));
            }
        }
    }
}

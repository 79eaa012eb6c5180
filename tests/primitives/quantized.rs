//! `quantized_matmul` against stock `quantized_matmul`.

use mlx::primitives::Precision;
use mlx::quantization::{self, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops, primitives};

use super::{asks, fused};
use crate::support::alone::alone;
use crate::support::bits::{assert_lively, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng, quantizations};
use crate::support::on_each_device;

#[track_caller]
fn check(x: &Array, w: &QuantizedWeight, transpose: bool, what: &str) {
    let expected = quantization::quantized_matmul(x, w, transpose).unwrap();
    assert_lively(&expected, what);
    let got = primitives::quantized_matmul(x, w, transpose, Precision::Exact).unwrap();
    assert_same_bits(&got, &expected, what);
}

/// A matrix `[n, k]` (`[k, n]` without `transpose`), quantised.
pub(super) fn matrix(
    rng: &mut Rng,
    [n, k]: [i32; 2],
    q: Quantization,
    dtype: Dtype,
    transpose: bool,
) -> QuantizedWeight {
    let QuantizedWeight { w, scales, biases, quantization } =
        rng.experts([1, n, k], q, dtype, transpose);
    let flat = |a: &Array| ops::squeeze(a, &[0]).unwrap();
    QuantizedWeight {
        w: flat(&w),
        scales: flat(&scales),
        biases: biases.as_ref().map(flat),
        quantization,
    }
}

fn product(dtype: Dtype) {
    let mut rng = Rng::new(31);
    for q in quantizations() {
        for transpose in [true, false] {
            if !fused(&asks::matmul(q, transpose), dtype, Precision::Exact) {
                continue;
            }
            for (i, batch) in
                [vec![1], vec![1, 1], vec![3], vec![2, 5], vec![17]].iter().enumerate()
            {
                let whole = q.group_size.max(32) * [1, 3, 2][i % 3];
                let ragged = [1, 7, 16, 33, 8, 40, 67][(i + q.bits as usize) % 7];
                let (n, k) = if transpose { (ragged, whole) } else { (whole, ragged) };
                let w = matrix(&mut rng, [n, k], q, dtype, transpose);
                let mut shape = batch.clone();
                shape.push(k);
                let x = rng.array(&shape, dtype, 1.0);
                let what = format!("{dtype} {q} transpose {transpose} x {shape:?} N {n}");
                check(&x, &w, transpose, &what);
            }
        }
    }
}

on_each_device! {
    fn every_quantization_in_f32_has_the_stock_bits() { product(Dtype::F32) }
}
on_each_device! {
    fn every_quantization_in_f16_has_the_stock_bits() { product(Dtype::F16) }
}
on_each_device! {
    fn every_quantization_in_bf16_has_the_stock_bits() { product(Dtype::Bf16) }
}

on_each_device! {
    fn head_sized_rows_have_the_stock_bits() {
        let mut rng = Rng::new(32);
        for dtype in DTYPES {
            let w = matrix(&mut rng, [1531, 128], Quantization::affine(64, 4), dtype, true);
            let x = rng.array(&[1, 1, 128], dtype, 1.0);
            check(&x, &w, true, &format!("{dtype} head"));
        }
    }
}

on_each_device! {
    fn strided_operands_have_the_stock_bits() {
        let mut rng = Rng::new(33);
        for transpose in [true, false] {
            let q = Quantization::affine(32, 4);
            let w = matrix(&mut rng, [64, 96], q, Dtype::Bf16, transpose);
            let x = rng.array(&[4, 3, 96], Dtype::Bf16, 1.0);
            check(&data::strided(&x), &w, transpose, "x");
            check(&data::column_major(&x), &w, transpose, "x, swapped axes");
            check(&ops::broadcast_to(&rng.array(&[1, 1, 96], Dtype::Bf16, 1.0), &[2, 3, 96]).unwrap(),
                &w, transpose, "x, broadcast");
            let mut view = w.clone();
            view.w = data::row_strided(&w.w);
            view.scales = data::strided(&w.scales);
            view.biases = w.biases.as_ref().map(data::column_major);
            check(&x, &view, transpose, "weights");
        }
    }
}

/// The same matrix with its rows apart: columns of a wider one, as a shard of K is.
fn columns_of_wider(w: &QuantizedWeight) -> QuantizedWeight {
    let part = |a: &Array| {
        let wide = ops::concatenate([a, a, a], -1).unwrap();
        wide.eval().unwrap();
        ops::slice_axis(&wide, -1, a.dim(-1), 2 * a.dim(-1)).unwrap()
    };
    QuantizedWeight {
        w: part(&w.w),
        scales: part(&w.scales),
        biases: w.biases.as_ref().map(part),
        quantization: w.quantization,
    }
}

on_each_device! {
    fn rows_apart_have_the_same_bits() {
        let mut rng = Rng::new(36);
        let best = mlx::cpu_isa();
        for isa in ["amx", "avx512bf16", "avx512", "avx2", "neon", "scalar"] {
            if !mlx::set_cpu_isa(isa) {
                continue;
            }
            for dtype in DTYPES {
                for q in quantizations() {
                    for transpose in [true, false] {
                        let [n, k] = if transpose { [45, 2 * q.group_size] } else { [128, 45] };
                        let w = matrix(&mut rng, [n, k], q, dtype, transpose);
                        let apart = columns_of_wider(&w);
                        for rows in [1, 3] {
                            let x = rng.array(&[rows, k], dtype, 1.0);
                            for precision in [Precision::Exact, Precision::Fast] {
                                let run = |w| {
                                    primitives::quantized_matmul(&x, w, transpose, precision).unwrap()
                                };
                                let what = format!("{isa} {dtype} {q} {transpose} {precision:?} {rows} rows");
                                assert_same_bits(&run(&apart), &run(&w), what);
                            }
                        }
                    }
                }
            }
        }
        assert!(mlx::set_cpu_isa(&best));
    }
}

/// Kilobytes that `/proc/self/status` gives for `field`.
#[cfg(target_os = "linux")]
fn process_memory(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

#[cfg(target_os = "linux")]
alone! {
    fn rows_apart_are_read_in_place() {
        let mut rng = Rng::new(37);
        let w = matrix(&mut rng, [4096, 2048], Quantization::affine(64, 8), Dtype::Bf16, true);
        let x = rng.array(&[1, 2048], Dtype::Bf16, 1.0);
        let run = |w: &QuantizedWeight| {
            let y = primitives::quantized_matmul(&x, w, true, Precision::Exact).unwrap();
            y.eval().unwrap();
            y
        };
        let expected = run(&w);
        let apart = columns_of_wider(&w);
        mlx::eval([&apart.w, &apart.scales].into_iter().chain(&apart.biases)).unwrap();
        // starts the peak anew
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = process_memory("VmRSS:");
        assert_same_bits(&run(&apart), &expected, "rows apart");
        let grown = process_memory("VmHWM:").saturating_sub(before);
        assert!(grown < 4096, "{grown} kB for a product with a matrix of 8192 kB");
    }
}

on_each_device! {
    fn batched_weights_have_the_stock_bits() {
        let mut rng = Rng::new(34);
        let w = rng.experts([3, 20, 64], Quantization::affine(64, 4), Dtype::F32, true);
        let x = rng.array(&[3, 2, 64], Dtype::F32, 1.0);
        check(&x, &w, true, "a matrix for each batch");
        check(&rng.array(&[1, 2, 64], Dtype::F32, 1.0), &w, true, "x broadcast over the matrices");
    }
}

on_each_device! {
    fn empty_input_gives_empty_output() {
        let mut rng = Rng::new(35);
        let w = matrix(&mut rng, [20, 64], Quantization::affine(64, 4), Dtype::F32, true);
        let x = ops::zeros(&[0, 64], Dtype::F32).unwrap();
        let got = primitives::quantized_matmul(&x, &w, true, Precision::Exact).unwrap();
        got.eval().unwrap();
        assert_eq!(got.shape(), [0, 20]);
    }
}

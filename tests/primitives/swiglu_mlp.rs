//! `swiglu_mlp` against `quantized_matmul` twice, biases, an activation and a product.

use mlx::primitives::{Activation, Glu, Precision, SwigluMlp, swiglu_mlp};
use mlx::quantization::{Quantization, QuantizedWeight, quantized_matmul};
use mlx::{Array, Dtype, ops};

use super::fused;
use super::quantized::matrix;
use super::swiglu::{ACTIVATIONS, gated};
use crate::support::bits::{assert_lively, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng, quantizations};
use crate::support::on_each_device;

fn stock(x: &Array, glu: Glu<'_>) -> Array {
    let project = |w: &QuantizedWeight, bias: usize| {
        let y = quantized_matmul(x, w, true).unwrap();
        glu.biases.map_or(y.clone(), |biases| ops::add(&y, biases[bias]).unwrap())
    };
    gated(&project(glu.gate, 0), &project(glu.up, 1), glu.activation)
}

#[track_caller]
fn check(x: &Array, glu: Glu<'_>, what: impl std::fmt::Display) {
    let expected = stock(x, glu);
    assert_lively(&expected, &what);
    assert_same_bits(&swiglu_mlp(x, glu, Precision::Exact).unwrap(), &expected, what);
}

fn product(dtype: Dtype) {
    let mut rng = Rng::new(61);
    for (i, q) in quantizations().into_iter().enumerate() {
        for (j, rows) in [vec![], vec![1, 1], vec![3], vec![2, 19], vec![1, 70]].iter().enumerate()
        {
            let n = [1, 7, 16, 33, 8, 40, 67, 129, 300][(3 * i + j) % 9];
            let k = q.group_size.max(32) * [1, 3, 2][(i + j) % 3];
            let (gate, up) = (
                matrix(&mut rng, [n, k], q, dtype, true),
                matrix(&mut rng, [n, k], q, dtype, true),
            );
            let bias = [(); 2].map(|()| rng.array(&[n], dtype, 1.0));
            let x = rng.array(&[&rows[..], &[k]].concat(), dtype, 1.0);
            for biases in [None, Some([&bias[0], &bias[1]])] {
                for activation in ACTIVATIONS {
                    let bias = biases.map(|_| dtype);
                    let ask = SwigluMlp { bias, activation, ..SwigluMlp::of(&gate) };
                    if fused(&ask, dtype, Precision::Exact) {
                        let glu = Glu { biases, activation, ..Glu::new(&gate, &up) };
                        check(&x, glu, format!("{dtype} {ask:?} rows {rows:?}"));
                    }
                }
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
    fn strided_operands_have_the_stock_bits() {
        let mut rng = Rng::new(62);
        let q = Quantization::affine(32, 4);
        for dtype in DTYPES {
            let [gate, up] = [(); 2].map(|()| matrix(&mut rng, [40, 64], q, dtype, true));
            let [a, b] = [(); 2].map(|()| rng.array(&[40], dtype, 1.0));
            let x = rng.array(&[2, 5, 64], dtype, 1.0);
            let glu = Glu { biases: Some([&a, &b]), ..Glu::new(&gate, &up) };
            check(&data::strided(&x), glu, "x");
            check(&data::row_strided(&x), glu, "rows of x");
            check(&data::column_major(&x), glu, "columns of x");
            let (strided, mut view) = (data::strided(&a), gate.clone());
            check(&x, Glu { biases: Some([&strided, &b]), ..glu }, "bias");
            view.w = data::row_strided(&gate.w);
            view.scales = data::column_major(&gate.scales);
            check(&x, Glu { gate: &view, ..glu }, "gate");
        }
    }
}

on_each_device! {
    fn fast_is_close_to_stock_in_f32() {
        let mut rng = Rng::new(63);
        for q in quantizations() {
            let [gate, up] = [(); 2].map(|()| matrix(&mut rng, [48, 256], q, Dtype::F32, true));
            let [a, b] = [(); 2].map(|()| rng.array(&[48], Dtype::F32, 1.0));
            let x = rng.array(&[3, 256], Dtype::F32, 1.0);
            for activation in ACTIVATIONS {
                let ask = SwigluMlp { bias: Some(Dtype::F32), activation, ..SwigluMlp::of(&gate) };
                if !fused(&ask, Dtype::F32, Precision::Fast) { continue; }
                let glu = Glu { biases: Some([&a, &b]), activation, ..Glu::new(&gate, &up) };
                let got = swiglu_mlp(&x, glu, Precision::Fast).unwrap();
                let what = format!("{q} {activation:?}");
                crate::support::bits::assert_close(&got, &stock(&x, glu), 1e-5, what);
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let mut rng = Rng::new(64);
    let q = Quantization::affine(32, 4);
    let w = matrix(&mut rng, [8, 32], q, Dtype::F32, true);
    let other = matrix(&mut rng, [9, 32], q, Dtype::F32, true);
    let finer = matrix(&mut rng, [8, 32], Quantization::affine(32, 8), Dtype::F32, true);
    let stack = rng.experts([2, 8, 32], q, Dtype::F32, true);
    let (x, narrow) = (rng.array(&[3, 32], Dtype::F32, 1.0), rng.array(&[3, 31], Dtype::F32, 1.0));
    let (bias, wide) = (rng.array(&[8], Dtype::F32, 1.0), rng.array(&[9], Dtype::F32, 1.0));
    let plain = Glu::new(&w, &w);
    let silent = Activation::ClippedSwiglu { alpha: f32::NAN, limit: 1.0 };
    for (x, glu, word) in [
        (&x, Glu::new(&w, &other), "same shape"),
        (&x, Glu::new(&w, &finer), "alike"),
        (&x, Glu::new(&stack, &stack), "matrices"),
        (&narrow, plain, "(3,31)"),
        (&x, Glu { biases: Some([&bias, &wide]), ..plain }, "bias of up"),
        (&x, Glu { activation: silent, ..plain }, "alpha"),
    ] {
        let error = swiglu_mlp(x, glu, Precision::Exact).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("[swiglu_mlp]"), "{error}");
    }
    check(&x, plain, "after the errors");
}

//! `gather_qmm_combine` against `gather_qmm`, squeeze, the scores and a sum.

use mlx::primitives::{Precision, gather_qmm_combine};
use mlx::quantization::{Quantization, QuantizedWeight, gather_qmm};
use mlx::{Array, Dtype, ops};

use super::{asks, fused};
use crate::support::bits::{assert_lively, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng, quantizations};
use crate::support::on_each_device;

pub(super) fn stock(x: &Array, down: &QuantizedWeight, indices: &Array, scores: &Array) -> Array {
    stock_with(x, down, None, indices, scores)
}

fn stock_with(
    x: &Array,
    down: &QuantizedWeight,
    bias: Option<&Array>,
    indices: &Array,
    scores: &Array,
) -> Array {
    let mut y = gather_qmm(x, down, None, Some(indices), true, false).unwrap();
    if let Some(bias) = bias {
        let chosen = ops::take(bias, indices, 0).unwrap();
        y = ops::add(&y, &ops::expand_dims(&chosen, &[-2]).unwrap()).unwrap();
    }
    let y = ops::squeeze(&y, &[-2]).unwrap();
    let weighted = ops::multiply(&y, &ops::expand_dims(scores, &[-1]).unwrap()).unwrap();
    ops::sum(&weighted, &[-2], false).unwrap().astype(y.dtype()).unwrap()
}

#[track_caller]
fn check(x: &Array, down: &QuantizedWeight, indices: &Array, scores: &Array, what: &str) {
    let expected = stock(x, down, indices, scores);
    assert_lively(&expected, what);
    let got = gather_qmm_combine(x, down, None, indices, scores, Precision::Exact).unwrap();
    assert_same_bits(&got, &expected, what);
}

/// Positive and summing to one, as a router's.
pub(super) fn scores(rng: &mut Rng, shape: &[i32], dtype: Dtype) -> Array {
    ops::softmax(&rng.array(shape, dtype, 1.0), -1, true).unwrap()
}

fn product(dtype: Dtype) {
    let mut rng = Rng::new(11);
    for (i, q) in quantizations().into_iter().enumerate() {
        if !fused(&asks::combine(q), dtype, Precision::Exact) {
            continue;
        }
        for (batch, top_k) in [(vec![1, 1], 1), (vec![1, 1], 3), (vec![1, 4], 5), (vec![2, 3], 8)] {
            let k = q.group_size * [1, 2, 3][(i + top_k as usize) % 3];
            let n = [1, 9, 32, 45][(i + batch.len() + top_k as usize) % 4];
            let tokens: i32 = batch.iter().product();
            let down = rng.experts([8, n, k], q, dtype, true);
            let mut shape = batch.clone();
            shape.push(top_k);
            let indices = data::array(&rng.routing(tokens, top_k, 8), &shape);
            let scores = scores(&mut rng, &shape, dtype);
            shape.extend([1, k]);
            let x = rng.array(&shape, dtype, 1.0);
            let what = format!("{dtype} {q} tokens {batch:?} top {top_k} N {n} K {k}");
            check(&x, &down, &indices, &scores, &what);
            let bias = Some(&rng.array(&[8, n], dtype, 1.0));
            let expected = stock_with(&x, &down, bias, &indices, &scores);
            let got = gather_qmm_combine(&x, &down, bias, &indices, &scores, Precision::Exact);
            assert_same_bits(&got.unwrap(), &expected, format!("{what}, biased"));
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
    fn prefill_split_over_threads_has_the_stock_bits() {
        let mut rng = Rng::new(12);
        let q = Quantization::affine(64, 4);
        let down = rng.experts([16, 136, 128], q, Dtype::Bf16, true);
        let indices = data::array(&rng.routing(40, 4, 16), &[1, 40, 4]);
        let scores = scores(&mut rng, &[1, 40, 4], Dtype::Bf16);
        let x = rng.array(&[1, 40, 4, 1, 128], Dtype::Bf16, 1.0);
        check(&x, &down, &indices, &scores, "40 tokens");
    }
}

on_each_device! {
    fn scores_in_f32_have_the_stock_bits_and_others_are_refused() {
        let mut rng = Rng::new(13);
        for x_dtype in DTYPES {
            for score_dtype in DTYPES {
                let q = Quantization::affine(32, 4);
                let down = rng.experts([6, 21, 64], q, x_dtype, true);
                let indices = data::array(&rng.routing(2, 4, 6), &[2, 4]);
                let scores = scores(&mut rng, &[2, 4], score_dtype);
                let x = rng.array(&[2, 4, 1, 64], x_dtype, 1.0);
                if score_dtype == x_dtype || score_dtype == Dtype::F32 {
                    let what = format!("x {x_dtype}, scores {score_dtype}");
                    check(&x, &down, &indices, &scores, &what);
                    continue;
                }
                let refused = gather_qmm_combine(&x, &down, None, &indices, &scores, Precision::Exact);
                let error = refused.unwrap_err().to_string();
                assert!(error.contains(score_dtype.name()), "{error}");
            }
        }
    }
}

on_each_device! {
    fn strided_operands_have_the_stock_bits() {
        let mut rng = Rng::new(14);
        let q = Quantization::affine(32, 4);
        let down = rng.experts([6, 21, 64], q, Dtype::Bf16, true);
        let indices = data::array(&rng.routing(3, 4, 6), &[3, 4]);
        let scores = scores(&mut rng, &[3, 4], Dtype::Bf16);
        let x = rng.array(&[3, 4, 1, 64], Dtype::Bf16, 1.0);
        check(&data::strided(&x), &down, &indices, &scores, "x");
        check(&data::row_strided(&x), &down, &indices, &scores, "rows of x");
        check(&x, &down, &data::strided(&indices), &scores, "indices");
        check(&x, &down, &indices, &data::column_major(&scores), "scores");
        let mut view = down.clone();
        view.w = data::row_strided(&down.w);
        view.biases = down.biases.as_ref().map(data::column_major);
        check(&x, &view, &indices, &scores, "weights");
    }
}

on_each_device! {
    fn biases_of_other_types_and_shapes_have_the_stock_bits_or_are_refused() {
        let mut rng = Rng::new(17);
        let q = Quantization::default_of(mlx::quantization::Mode::Mxfp4);
        let indices = data::array(&rng.routing(3, 4, 6), &[3, 4]);
        for dtype in DTYPES {
            let down = rng.experts([6, 21, 64], q, dtype, true);
            let scores = scores(&mut rng, &[3, 4], dtype);
            let x = rng.array(&[3, 4, 1, 64], dtype, 1.0);
            let fused = |bias: &Array| {
                gather_qmm_combine(&x, &down, Some(bias), &indices, &scores, Precision::Exact)
            };
            for bias_dtype in DTYPES {
                let bias = data::strided(&rng.array(&[6, 21], bias_dtype, 1.0));
                if bias_dtype == dtype || dtype == Dtype::F32 {
                    let expected = stock_with(&x, &down, Some(&bias), &indices, &scores);
                    assert_same_bits(&fused(&bias).unwrap(), &expected, bias_dtype);
                    continue;
                }
                let error = fused(&bias).unwrap_err().to_string();
                assert!(error.contains(bias_dtype.name()), "{error}");
            }
            for shape in [vec![21], vec![6, 20], vec![5, 21], vec![6, 1, 21]] {
                let error = fused(&rng.array(&shape, dtype, 1.0)).unwrap_err().to_string();
                assert!(error.contains("bias of down"), "{error}");
            }
        }
    }
}

on_each_device! {
    fn repeated_experts_have_the_stock_bits() {
        let mut rng = Rng::new(15);
        let down = rng.experts([3, 10, 64], Quantization::affine(64, 6), Dtype::F32, true);
        let scores = scores(&mut rng, &[2, 4], Dtype::F32);
        let x = rng.array(&[2, 4, 1, 64], Dtype::F32, 1.0);
        check(&x, &down, &data::array(&[2u32; 8], &[2, 4]), &scores, "one expert");
    }
}

on_each_device! {
    fn empty_input_gives_empty_output() {
        let mut rng = Rng::new(16);
        let down = rng.experts([3, 10, 64], Quantization::affine(64, 4), Dtype::F32, true);
        let empty = |shape: &[i32], dtype| ops::zeros(shape, dtype).unwrap();
        let x = empty(&[0, 2, 1, 64], Dtype::F32);
        let indices = empty(&[0, 2], Dtype::U32);
        let scores = empty(&[0, 2], Dtype::F32);
        let got = gather_qmm_combine(&x, &down, None, &indices, &scores, Precision::Exact).unwrap();
        got.eval().unwrap();
        assert_eq!(got.shape(), [0, 10]);
    }
}

//! `moe_router` against softmax, argpartition, take and a division.

use mlx::primitives::{MoeRouter, Scoring, moe_router};
use mlx::{Array, Dtype, ops};

use super::stock_router;
use crate::support::bits::assert_same_bits;
use crate::support::data::{self, DTYPES, Rng};
use crate::support::on_each_device;
use crate::support::route::route;

fn stock(logits: &Array, top_k: i32, normalize: bool, scoring: Scoring) -> (Array, Array) {
    let scores = match scoring {
        Scoring::Softmax => ops::softmax(logits, -1, true),
        _ => ops::sigmoid(logits),
    };
    stock_router(&scores.unwrap(), top_k, normalize)
}

#[test]
fn arrays_that_do_not_fit_are_refused() {
    let logits = data::array(&[1f32, 2.0, 3.0, 4.0], &[1, 4]);
    let four = data::array(&[0.5f32, 0.25, 1.0, 2.0], &[4]);
    let three = data::array(&[0.5f32, 0.25, 1.0], &[3]);
    let plain = MoeRouter::new(4, 2, Scoring::Sigmoid);
    let biased = MoeRouter { selection_bias: true, ..plain };
    let scaled = MoeRouter { expert_scale: true, ..plain };
    let integers = four.astype(Dtype::I32).unwrap();
    let other = MoeRouter { num_experts: 5, ..plain };
    for (router, bias, scale, words) in [
        (biased, None, None, ["selection_bias", "none"]),
        (plain, Some(&four), None, ["selection_bias", "one"]),
        (scaled, None, None, ["expert_scale", "none"]),
        (biased, Some(&three), None, ["selection_bias", "(3)"]),
        (scaled, None, Some(&integers), ["expert_scale", "int32"]),
        (other, None, None, ["[.., 5]", "[1, 4]"]),
    ] {
        let error = moe_router(&logits, &router, bias, scale).unwrap_err().to_string();
        for word in words.into_iter().chain(["[moe_router]"]) {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    }
}

#[track_caller]
fn check(logits: &Array, top_k: i32, normalize: bool, scoring: Scoring, what: &str) {
    let (indices, scores) = stock(logits, top_k, normalize, scoring);
    let routed = route(logits, top_k, normalize, scoring);
    if mlx::default_device() == mlx::Device::Gpu && routed.is_err() {
        return;
    }
    let (got_indices, got_scores) = routed.unwrap();
    let what = format!("{what}, top {top_k}, normalize {normalize}, {}", scoring.name());
    assert_same_bits(&got_indices, &indices, format!("{what}: indices"));
    assert_same_bits(&got_scores, &scores, format!("{what}: scores"));
}

fn check_all(logits: &Array, top_k: i32, what: &str) {
    for normalize in [false, true] {
        for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
            check(logits, top_k, normalize, scoring, what);
        }
    }
}

on_each_device! {
    fn every_size_has_the_stock_experts_order_and_bits() {
        let mut rng = Rng::new(21);
        for dtype in DTYPES {
            for experts in [1, 2, 3, 7, 16, 31, 64, 128, 257] {
                for top_k in [1, 2, 4, 8, experts] {
                    if top_k > experts { continue; }
                    for shape in [vec![experts], vec![1, 1, experts], vec![2, 5, experts]] {
                        let logits = rng.array(&shape, dtype, 2.0);
                        check_all(&logits, top_k, &format!("{dtype} {shape:?}"));
                    }
                }
            }
        }
    }
}

on_each_device! {
    fn ties_are_broken_as_stock_breaks_them() {
        let mut rng = Rng::new(22);
        for dtype in DTYPES {
            for experts in [8, 60, 128] {
                for levels in [1, 2, 5] {
                    let values: Vec<f32> =
                        (0..4 * experts).map(|_| rng.below(levels) as f32 * 0.5).collect();
                    let logits = data::array(&values, &[4, experts]).astype(dtype).unwrap();
                    for top_k in [1, 3, 8] {
                        check_all(&logits, top_k, &format!("{dtype} {experts} of {levels} levels"));
                    }
                }
            }
        }
    }
}

on_each_device! {
    fn extreme_logits_have_the_stock_bits() {
        for dtype in DTYPES {
            let big = if dtype == Dtype::F16 { 65504.0 } else { 3e38 };
            for values in [
                [big, -big, 0.0, 1.0, big, -1.0, 2.0, 3.0],
                [f32::INFINITY, 1.0, 0.0, -2.0, 4.0, 8.0, 16.0, -8.0],
                [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, -2.0, 4.0, 8.0, 16.0, -8.0],
                [1e-8, 2e-8, -3e-8, 1e-40, 0.0, -0.0, 6e-8, 1e-7],
                [-200.0, -300.0, -100.0, 100.0, 90.0, -87.5, 88.5, -88.0],
            ] {
                let logits = data::array(&values, &[1, 8]).astype(dtype).unwrap();
                check_all(&logits, 3, &format!("{dtype} {values:?}"));
            }
        }
    }
}

on_each_device! {
    fn strided_logits_have_the_stock_bits() {
        let mut rng = Rng::new(23);
        let logits = rng.array(&[3, 4, 32], Dtype::Bf16, 2.0);
        check_all(&data::strided(&logits), 4, "last axis");
        check_all(&data::row_strided(&logits), 4, "first axis");
        check_all(&data::column_major(&logits), 4, "swapped axes");
    }
}

on_each_device! {
    fn empty_logits_give_empty_routing() {
        let logits = ops::zeros(&[0, 8], Dtype::F32).unwrap();
        let (indices, scores) = route(&logits, 2, true, Scoring::Softmax).unwrap();
        mlx::eval([&indices, &scores]).unwrap();
        assert_eq!((indices.shape(), scores.shape()), (&[0, 2][..], &[0, 2][..]));
    }
}

//! Dimensions of zero: an empty result, or the value of a sum over nothing. Stock's own products
//! divide by K and by M, so theirs is no reference here.

use mlx::fast::{self, Mask, Rope};
use mlx::primitives::{
    Glu, Precision, Scoring, add_rms_norm, attention, gather_qmm_combine, gather_qmm_swiglu,
    greedy_token, qk_norm_rope, quantized_matmul, rms_norm,
};
use mlx::quantization::{Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops};

use super::combine;
use crate::support::alone::alone;
use crate::support::bits::{as_f32, assert_same_bits};
use crate::support::data::{DTYPES, Rng, quantizations};
use crate::support::route::route;

fn zeros(shape: &[i32], dtype: Dtype) -> Array {
    ops::zeros(shape, dtype).unwrap()
}

/// A stack of matrices of any shape, all codes zero: `[.., n, k]`, or `[.., k, n]`.
fn weight(
    stack: &[i32],
    [n, k]: [i32; 2],
    q: Quantization,
    dtype: Dtype,
    transpose: bool,
) -> QuantizedWeight {
    let (rows, columns) = if transpose { (n, k) } else { (k, n) };
    let shape = |last: i32| [stack, &[rows, last]].concat();
    let scale_type = if q.mode == Mode::Affine { dtype } else { Dtype::U8 };
    let scales = zeros(&shape(columns / q.group_size), scale_type);
    QuantizedWeight {
        w: zeros(&shape(columns * q.bits / 32), Dtype::U32),
        biases: (q.mode == Mode::Affine).then(|| scales.clone()),
        scales,
        quantization: q,
    }
}

#[track_caller]
fn assert_zeros(a: &Array, shape: &[i32], what: &str) {
    assert_eq!(a.shape(), shape, "{what}");
    assert!(as_f32(a).iter().all(|v| v.to_bits() == 0), "{what}");
}

alone! {
    /// In a process of its own: a division by zero would end it.
    fn products_over_nothing_are_zeros() {
        let best = mlx::cpu_isa();
        for isa in ["amx", "avx512bf16", "avx512", "avx2", "neon", "scalar"] {
            if !mlx::set_cpu_isa(isa) {
                continue;
            }
            for dtype in DTYPES {
                for q in quantizations() {
                    for precision in [Precision::Exact, Precision::Fast] {
                        for transpose in [true, false] {
                            // m, n, k, experts; not transposed, the groups lie along n
                            for [m, n, k, e] in
                                [[3, 128, 0, 4], [1, 128, 0, 4], [0, 128, 128, 4], [3, 0, 128, 4], [0, 0, 0, 4]]
                            {
                                let what = format!(
                                    "{isa} {dtype} {q} {precision:?} {transpose} M {m} N {n} K {k}"
                                );
                                let w = weight(&[], [n, k], q, dtype, transpose);
                                let x = zeros(&[m, k], dtype);
                                let y = quantized_matmul(&x, &w, transpose, precision).unwrap();
                                assert_zeros(&y, &[m, n], &what);

                                let w = weight(&[e], [n, k], q, dtype, transpose);
                                let indices = zeros(&[2], Dtype::U32);
                                let x = zeros(&[2, m, k], dtype);
                                let y = gather_qmm_swiglu(
                                    &x, Glu::new(&w, &w), None, Some(&indices), transpose, false, precision,
                                ).unwrap();
                                assert_zeros(&y, &[2, m, n], &what);
                            }
                        }
                        for [tokens, top_k, n, k] in
                            [[3, 0, 96, 128], [3, 2, 96, 0], [0, 2, 96, 128], [3, 2, 0, 128], [3, 0, 0, 0]]
                        {
                            let what = format!("{isa} {dtype} {q} {precision:?} T {tokens} top {top_k} N {n} K {k}");
                            let down = weight(&[4], [n, k], q, dtype, true);
                            let x = zeros(&[tokens, top_k, 1, k], dtype);
                            let indices = zeros(&[tokens, top_k], Dtype::U32);
                            let scores = zeros(&[tokens, top_k], dtype);
                            let y = gather_qmm_combine(&x, &down, None, &indices, &scores, precision).unwrap();
                            assert_zeros(&y, &[tokens, n], &what);
                        }
                    }
                }
            }
        }
        assert!(mlx::set_cpu_isa(&best));
    }
}

#[test]
fn no_experts_a_token_is_the_stock_sum_over_nothing() {
    let mut rng = Rng::new(91);
    let down = rng.experts([4, 40, 64], Quantization::affine(64, 4), Dtype::Bf16, true);
    let x = zeros(&[2, 3, 0, 1, 64], Dtype::Bf16);
    let indices = zeros(&[2, 3, 0], Dtype::U32);
    let scores = zeros(&[2, 3, 0], Dtype::Bf16);
    let got = gather_qmm_combine(&x, &down, None, &indices, &scores, Precision::Exact).unwrap();
    assert_same_bits(&got, &combine::stock(&x, &down, &indices, &scores), "top_k 0");
}

#[test]
fn no_experts_at_all_is_an_error_for_any_index() {
    let q = Quantization::affine(64, 4);
    let w = weight(&[0], [32, 64], q, Dtype::F32, true);
    let x = zeros(&[2, 1, 64], Dtype::F32);
    let indices = zeros(&[2], Dtype::U32);
    let refused = |y: mlx::Result<Array>| {
        let error = y.unwrap_err().to_string();
        assert!(error.contains("have nothing to choose from"), "{error}");
    };
    refused(gather_qmm_swiglu(
        &x,
        Glu::new(&w, &w),
        None,
        Some(&indices),
        true,
        false,
        Precision::Exact,
    ));
    let x = zeros(&[2, 3, 1, 64], Dtype::F32);
    let indices = zeros(&[2, 3], Dtype::U32);
    let scores = zeros(&[2, 3], Dtype::F32);
    refused(gather_qmm_combine(&x, &w, None, &indices, &scores, Precision::Exact));
}

alone! {
    fn the_rest_of_a_step_over_nothing_is_stock_or_refused() {
        let mut rng = Rng::new(92);
        let dtype = Dtype::Bf16;
        // [B, H, Hkv, Lq, Lk, D, Dv]
        for [b, h, hkv, lq, lk, d, dv] in [
            [0, 4, 2, 3, 5, 64, 64],
            [2, 4, 2, 0, 5, 64, 64],
            [2, 4, 2, 3, 5, 64, 0],
            [2, 4, 2, 3, 5, 0, 64],
            [2, 4, 2, 3, 0, 64, 64],
            [2, 0, 2, 3, 5, 64, 64],
        ] {
            let q = rng.array(&[b, h, lq, d], dtype, 1.0);
            let k = rng.array(&[b, hkv, lk, d], dtype, 1.0);
            let v = rng.array(&[b, hkv, lk, dv], dtype, 1.0);
            let what = format!("q {:?} k {:?} v {:?}", q.shape(), k.shape(), v.shape());
            let got = attention(&q, &k, &v, 0.125, false, Precision::Exact).unwrap();
            let stock = fast::scaled_dot_product_attention(&q, &k, &v, 0.125, Mask::None, None);
            match stock.and_then(|a| a.eval().map(|()| a)) {
                Ok(stock) => assert_same_bits(&got, &stock, &what),
                Err(_) => assert_eq!(got.to_bytes().unwrap().len(), 0, "{what}"),
            }
            let got = attention(&q, &k, &v, 0.125, true, Precision::Fast).unwrap();
            got.eval().unwrap();
            assert_eq!(got.shape(), [b, h, lq, dv], "{what}");
        }
        let none = rng.array(&[2, 0, 3, 64], dtype, 1.0);
        assert!(attention(&none, &none, &none, 1.0, false, Precision::Exact).is_err());

        let rope = Rope { dims: 64, traditional: false, base: 1e4, scale: 1.0, freqs: None };
        let w = rng.array(&[64], dtype, 1.0);
        for [b, l] in [[0, 3], [2, 0]] {
            let x = rng.array(&[b, l, 4 * 64], dtype, 1.0);
            let got = qk_norm_rope(&x, 4, Some(&w), 1e-6, &rope, 7).unwrap();
            got.eval().unwrap();
            assert_eq!(got.shape(), [b, 4, l, 64]);
        }
        let headless = rng.array(&[1, 3, 0], dtype, 1.0);
        assert!(qk_norm_rope(&headless, 4, None, 1e-6, &rope, 7).is_err());
        assert!(qk_norm_rope(&headless, 0, None, 1e-6, &rope, 7).is_err());

        for shape in [[0, 64], [3, 0]] {
            let x = rng.array(&shape, dtype, 1.0);
            let w = rng.array(&shape[1..], dtype, 1.0);
            let got = rms_norm(&x, &w, 1e-6).unwrap();
            got.eval().unwrap();
            assert_eq!(got.shape(), shape);
            let (sum, normed) = add_rms_norm(&x, &x, &w, 1e-6).unwrap();
            mlx::eval([&sum, &normed]).unwrap();
            assert_eq!((sum.shape(), normed.shape()), (&shape[..], &shape[..]));
        }
        let (x, w) = (rng.array(&[2, 8], dtype, 1.0), rng.array(&[8], dtype, 1.0));
        assert!(add_rms_norm(&x, &rng.array(&[1, 8], dtype, 1.0), &w, 1e-6).is_err());
        assert!(add_rms_norm(&x, &x, &rng.array(&[4], dtype, 1.0), 1e-6).is_err());
        assert!(add_rms_norm(&x, &x, &w.astype(Dtype::F64).unwrap(), 1e-6).is_err());

        let rows = rng.array(&[0, 16], dtype, 1.0);
        let (indices, scores) = route(&rows, 2, true, Scoring::Softmax).unwrap();
        mlx::eval([&indices, &scores]).unwrap();
        assert_eq!((indices.shape(), scores.shape()), (&[0, 2][..], &[0, 2][..]));
        assert!(route(&rng.array(&[3, 16], dtype, 1.0), 0, true, Scoring::Softmax).is_err());
        assert!(route(&rng.array(&[3, 0], dtype, 1.0), 0, true, Scoring::Softmax).is_err());
        assert!(route(&rng.array(&[3, 0], dtype, 1.0), 1, true, Scoring::Sigmoid).is_err());

        greedy_token(&rows).unwrap().eval().unwrap();
        assert!(greedy_token(&rng.array(&[3, 0], dtype, 1.0)).is_err());
    }
}

//! The rest of a decode step against stock ops: `rms_norm`, `add_rms_norm`, `qk_norm_rope`, `attention`,
//! `greedy_token`.

use mlx::fast::{self, Mask, Rope};
use mlx::primitives::{self, Precision, Setting};
use mlx::{Array, Dtype, ops};

use super::fused;
use crate::support::bits::{assert_close, assert_lively, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng};
use crate::support::on_each_device;

/// Whether the primitive of that name runs exactly on `dtype`.
fn available(primitive: &str, dtype: Dtype) -> bool {
    let ask = primitives::TYPICAL.iter().find(|ask| ask.primitive() == primitive);
    fused(*ask.unwrap(), dtype, Precision::Exact)
}

fn weight(rng: &mut Rng, size: i32, dtype: Dtype) -> Array {
    let noise = rng.array(&[size], dtype, 0.3);
    ops::add(&noise, &Array::scalar_like(1.0, &noise).unwrap()).unwrap()
}

on_each_device! {
    fn rms_norm_has_the_stock_bits() {
        let mut rng = Rng::new(101);
        for dtype in DTYPES {
            if !available("rms_norm", dtype) { continue; }
            for size in [1, 3, 16, 31, 64, 100, 257, 2048] {
                for rows in [vec![], vec![1, 1], vec![3, 5]] {
                    let mut shape = rows.clone();
                    shape.push(size);
                    let w = weight(&mut rng, size, dtype);
                    for (scale, eps) in [(1.0, 1e-6), (1e-3, 1e-5), (100.0, 1e-6)] {
                        let x = rng.array(&shape, dtype, scale);
                        let expected = fast::rms_norm(&x, Some(&w), eps).unwrap();
                        let got = primitives::rms_norm(&x, &w, eps).unwrap();
                        assert_same_bits(&got, &expected, format!("{dtype} {shape:?} x {scale}"));
                    }
                }
            }
            let x = rng.array(&[4, 6, 32], dtype, 1.0);
            let w = weight(&mut rng, 32, dtype);
            for x in [data::strided(&x), data::row_strided(&x), data::column_major(&x)] {
                let expected = fast::rms_norm(&x, Some(&w), 1e-6).unwrap();
                assert_same_bits(&primitives::rms_norm(&x, &w, 1e-6).unwrap(), &expected, "view");
            }
        }
    }
}

on_each_device! {
    fn rms_norm_of_extremes_has_the_stock_bits() {
        for dtype in DTYPES {
            if !available("rms_norm", dtype) { continue; }
            for values in [
                [0.0, 0.0, -0.0, 0.0],
                [1e-40, -1e-42, 1e-45, 0.0],
                [3e38, -3e38, 1.0, 2.0],
                [f32::INFINITY, 1.0, 2.0, 3.0],
                [f32::NAN, 1.0, 2.0, 3.0],
            ] {
                let x = data::array(&values, &[1, 4]).astype(dtype).unwrap();
                let w = data::array(&[1.5f32, -2.0, 0.5, 1.0], &[4]).astype(dtype).unwrap();
                let expected = fast::rms_norm(&x, Some(&w), 1e-6).unwrap();
                let got = primitives::rms_norm(&x, &w, 1e-6).unwrap();
                assert_same_bits(&got, &expected, format!("{dtype} {values:?}"));
            }
        }
    }
}

on_each_device! {
    fn add_rms_norm_has_the_stock_bits() {
        let mut rng = Rng::new(102);
        for dtype in DTYPES {
            let ask = primitives::AddRmsNorm { dims: 64, weight: dtype };
            if !fused(&ask, dtype, Precision::Exact) { continue; }
            let check = |x: &Array, r: &Array, w: &Array, what: &str| {
                let sum = ops::add(x, r).unwrap();
                let expected = fast::rms_norm(&sum, Some(w), 1e-6).unwrap();
                let (got, normed) = primitives::add_rms_norm(x, r, w, 1e-6).unwrap();
                assert_same_bits(&got, &sum, format!("{dtype} sum {what}"));
                assert_same_bits(&normed, &expected, format!("{dtype} norm {what}"));
            };
            for size in [1, 3, 16, 31, 64, 100, 257, 2048] {
                for rows in [vec![], vec![1, 1], vec![3, 5], vec![40]] {
                    let shape = [rows.as_slice(), &[size]].concat();
                    let w = weight(&mut rng, size, dtype);
                    let (x, r) = (rng.array(&shape, dtype, 1.0), rng.array(&shape, dtype, 100.0));
                    check(&x, &r, &w, &format!("{shape:?}"));
                }
            }
            let (x, r) = (rng.array(&[4, 6, 32], dtype, 1.0), rng.array(&[4, 6, 32], dtype, 1.0));
            let w = weight(&mut rng, 32, dtype);
            for x in [data::strided(&x), data::row_strided(&x), data::column_major(&x)] {
                check(&x, &r, &w, "view");
                check(&r, &x, &w, "view of what is added");
            }
            for values in [[3e38, -3e38, 1.0, 2.0], [f32::INFINITY, 1.0, 2.0, 3.0], [1e-45, -1e-45, 0.0, -0.0]] {
                let x = data::array(&values, &[1, 4]).astype(dtype).unwrap();
                let w = data::array(&[1.5f32, -2.0, 0.5, 1.0], &[4]).astype(dtype).unwrap();
                check(&x, &x, &w, &format!("{values:?}"));
            }
        }
    }
}

fn stock_qk(x: &Array, heads: i32, w: Option<&Array>, eps: f32, rope: &Rope, at: i32) -> Array {
    let (batch, length) = (x.dim(0), x.dim(1));
    let mut x = ops::reshape(x, &[batch, length, heads, -1]).unwrap();
    if w.is_some() {
        x = fast::rms_norm(&x, w, eps).unwrap();
    }
    fast::rope(&ops::transpose(&x, &[0, 2, 1, 3]).unwrap(), rope, at).unwrap()
}

fn rope(dims: i32, traditional: bool, base: f32, scale: f32) -> Rope {
    Rope { dims, traditional, base, scale, freqs: None }
}

on_each_device! {
    fn qk_norm_rope_has_the_stock_bits() {
        let mut rng = Rng::new(102);
        for dtype in DTYPES {
            if !available("qk_norm_rope", dtype) { continue; }
            for (heads, size) in [(1, 32), (3, 64), (4, 128), (2, 80), (5, 6)] {
                for (batch, length) in [(1, 1), (1, 7), (2, 3)] {
                    for offset in [0, 1, 255, 4093] {
                        for traditional in [false, true] {
                            let x = rng.array(&[batch, length, heads * size], dtype, 1.0);
                            let w = weight(&mut rng, size, dtype);
                            let dims = if heads == 4 { size / 2 } else { size };
                            let rope = rope(dims, traditional, 1e6, 1.0);
                            let what = format!(
                                "{dtype} heads {heads} x {size}, {batch} x {length} at {offset}, \
                                 traditional {traditional}"
                            );
                            for w in [Some(&w), None] {
                                let expected = stock_qk(&x, heads, w, 1e-6, &rope, offset);
                                assert_lively(&expected, &what);
                                let got =
                                    primitives::qk_norm_rope(&x, heads, w, 1e-6, &rope, offset);
                                assert_same_bits(&got.unwrap(), &expected, &what);
                            }
                        }
                    }
                }
            }
        }
    }
}

on_each_device! {
    fn qk_norm_rope_with_offset_array_and_frequencies_has_the_stock_bits() {
        let mut rng = Rng::new(103);
        for dtype in DTYPES {
            if !available("qk_norm_rope", dtype) { continue; }
            let x = rng.array(&[2, 3, 4 * 32], dtype, 1.0);
            let w = weight(&mut rng, 32, dtype);
            let mut rope = rope(32, false, 10_000.0, 0.5);
            let offset = data::array(&[37i32], &[]);
            let expected = stock_qk(&x, 4, Some(&w), 1e-5, &rope, 37);
            let got = primitives::qk_norm_rope_dynamic(&x, 4, Some(&w), 1e-5, &rope, &offset);
            assert_same_bits(&got.unwrap(), &expected, format!("{dtype} offset in an array"));
            let freqs: Vec<f32> = (0..16).map(|i| 1.5f32.powi(i)).collect();
            rope.freqs = Some(data::array(&freqs, &[16]));
            let expected = stock_qk(&x, 4, Some(&w), 1e-5, &rope, 11);
            let got = primitives::qk_norm_rope(&x, 4, Some(&w), 1e-5, &rope, 11);
            assert_same_bits(&got.unwrap(), &expected, format!("{dtype} frequencies"));
            for x in [data::strided(&x), data::row_strided(&x)] {
                let expected = stock_qk(&x, 4, Some(&w), 1e-5, &rope, 2);
                let got = primitives::qk_norm_rope(&x, 4, Some(&w), 1e-5, &rope, 2);
                assert_same_bits(&got.unwrap(), &expected, format!("{dtype} view"));
            }
        }
    }
}

struct Heads {
    q: Array,
    k: Array,
    v: Array,
}

/// `q [B, H, Lq, D]`; `k`, `v` slices of a longer cache.
fn heads(rng: &mut Rng, dtype: Dtype, shape: [i32; 6]) -> Heads {
    let [batch, num_q, num_kv, len_q, len_k, size] = shape;
    let mut cache = || {
        let all = rng.array(&[batch, num_kv, len_k + 9, size], dtype, 1.0);
        all.eval().unwrap();
        ops::slice_axis(&all, 2, 0, len_k).unwrap()
    };
    let (k, v) = (cache(), cache());
    Heads { q: rng.array(&[batch, num_q, len_q, size], dtype, 1.5), k, v }
}

const SHAPES: [[i32; 6]; 8] = [
    [1, 4, 2, 1, 1, 32],
    [1, 4, 2, 1, 37, 32],
    [1, 3, 1, 1, 300, 64],
    [2, 5, 5, 1, 17, 16],
    [1, 8, 2, 6, 6, 32],
    [1, 6, 2, 5, 40, 64],
    [2, 4, 1, 33, 33, 24],
    [1, 2, 2, 3, 130, 128],
];

on_each_device! {
    fn attention_has_the_stock_bits() {
        let mut rng = Rng::new(104);
        for dtype in [Dtype::F16, Dtype::Bf16] {
            if !available("attention", dtype) { continue; }
            for shape in SHAPES {
                let Heads { q, k, v } = heads(&mut rng, dtype, shape);
                let scale = 1.0 / (shape[5] as f32).sqrt();
                for (causal, mask) in [(false, Mask::None), (true, Mask::Causal)] {
                    let what = format!("{dtype} {shape:?} causal {causal}");
                    let expected =
                        fast::scaled_dot_product_attention(&q, &k, &v, scale, mask, None)
                            .unwrap();
                    assert_lively(&expected, &what);
                    let exact = primitives::attention(&q, &k, &v, scale, causal, Precision::Exact);
                    assert_same_bits(&exact.unwrap(), &expected, &what);
                }
            }
        }
    }
}

on_each_device! {
    fn fast_attention_is_close_to_stock_in_f32() {
        let mut rng = Rng::new(105);
        for dtype in DTYPES {
            // One rounding of the result; the rest is carried in f32.
            let part = match dtype { Dtype::F32 => 1e-5, Dtype::F16 => 2e-3, _ => 1e-2 };
            for shape in SHAPES {
                let Heads { q, k, v } = heads(&mut rng, dtype, shape);
                let scale = 1.0 / (shape[5] as f32).sqrt();
                for (causal, mask) in [(false, Mask::None), (true, Mask::Causal)] {
                    let got = primitives::attention(&q, &k, &v, scale, causal, Precision::Fast);
                    if mlx::default_device() == mlx::Device::Gpu && got.is_err() { continue; }
                    let wide = |a: &Array| a.astype(Dtype::F32).unwrap();
                    let expected = fast::scaled_dot_product_attention(
                        &wide(&q), &wide(&k), &wide(&v), scale, mask, None,
                    );
                    let what = format!("{dtype} {shape:?} causal {causal}");
                    assert_close(&got.unwrap(), &expected.unwrap(), part, what);
                }
            }
        }
    }
}

#[test]
fn attention_in_f32_is_fast_only_and_says_why() {
    // Stock multiplies f32 matrices with BLAS, which has no order of its own to keep.
    let Heads { q, k, v } = heads(&mut Rng::new(106), Dtype::F32, SHAPES[1]);
    let ask = primitives::Attention {
        num_heads: q.dim(1),
        num_kv_heads: k.dim(1),
        head_dim: q.dim(3),
        value_dim: v.dim(3),
        causal: false,
        window: None,
        mask: false,
        sinks: false,
    };
    let asked = |precision| {
        let setting = Setting { device: mlx::Device::Cpu, dtype: Dtype::F32, precision };
        primitives::supports(&ask, &setting)
    };
    let reason = asked(Precision::Exact).unwrap_err();
    assert!(reason.contains("float32"), "{reason}");
    assert_eq!(asked(Precision::Fast), Ok(()));
    let run = |precision| primitives::attention(&q, &k, &v, 1.0, false, precision);
    let error = run(Precision::Exact).unwrap_err();
    assert!(error.to_string().contains("float32"), "{error}");
    run(Precision::Fast).unwrap().eval().unwrap();
}

on_each_device! {
    fn greedy_token_is_the_stock_token() {
        let mut rng = Rng::new(107);
        let stock = |logits: &Array| {
            let norm = ops::logsumexp(logits, &[-1], true).unwrap();
            ops::argmax(&ops::subtract(logits, &norm).unwrap(), -1, false).unwrap()
        };
        for dtype in DTYPES {
            if !available("greedy_token", dtype) { continue; }
            for size in [1, 2, 15, 33, 1000, 4099] {
                for rows in [vec![], vec![1], vec![2, 3]] {
                    let mut shape = rows.clone();
                    shape.push(size);
                    for scale in [0.01, 1.0, 20.0] {
                        let logits = rng.array(&shape, dtype, scale);
                        let got = primitives::greedy_token(&logits).unwrap();
                        let what = format!("{dtype} {shape:?} x {scale}");
                        assert_same_bits(&got, &stock(&logits), &what);
                    }
                    // Few values, so that many share the first place.
                    let count = shape.iter().product::<i32>();
                    let ties: Vec<f32> = (0..count).map(|_| rng.below(3) as f32).collect();
                    let ties = data::array(&ties, &shape).astype(dtype).unwrap();
                    let got = primitives::greedy_token(&ties).unwrap();
                    assert_same_bits(&got, &stock(&ties), format!("{dtype} {shape:?} ties"));
                }
            }
            for values in [
                [f32::NAN, 1.0, 2.0, 3.0],
                [f32::INFINITY, 1.0, f32::INFINITY, 3.0],
                [1.0, f32::INFINITY, 3.0, f32::INFINITY],
                [1.0, f32::INFINITY, f32::NAN, 3.0],
                [f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY],
                [-1e4, f32::NEG_INFINITY, -1e4, -2e4],
                // Far from zero, logits that differ may not differ once logsumexp is taken off.
                [300.0, 300.25, 300.125, 299.0],
            ] {
                let logits = data::array(&values, &[1, 4]).astype(dtype).unwrap();
                let got = primitives::greedy_token(&logits).unwrap();
                assert_same_bits(&got, &stock(&logits), format!("{dtype} {values:?}"));
            }
        }
    }
}

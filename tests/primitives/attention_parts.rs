//! Attention with a window, sinks and rotated parts, against the masks that mlx-lm gives to stock.

use mlx::fast::{self, Mask};
use mlx::primitives::{AttentionOptions, Precision, RopeParts, attention, attention_rows};
use mlx::{Array, Dtype, ops};

use crate::support::bits::{assert_close, assert_lively, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng};
use crate::support::on_each_device;

const SCALE: f32 = 0.1;

struct Operands {
    q: Array,
    k: Array,
    v: Array,
    sinks: Option<Array>,
    rope: Option<(Array, [Array; 1])>,
    window: Option<i32>,
    causal: bool,
}

impl Operands {
    fn options(&self) -> AttentionOptions<'_> {
        AttentionOptions {
            causal: self.causal,
            window: self.window,
            sinks: self.sinks.as_ref(),
            rope: self.rope.as_ref().map(|(q, keys)| RopeParts { q, keys }),
        }
    }

    /// Which keys each query sees.
    fn seen(&self) -> Array {
        let (queries, keys) = (self.q.dim(2), self.k.dim(2));
        let at = |i: i32| keys - queries + i;
        let window = self.window.unwrap_or(i32::MAX);
        let sees = |i: i32, j: i32| !self.causal || (j <= at(i) && at(i) - j < window);
        let seen = (0..queries).flat_map(|i| (0..keys).map(move |j| sees(i, j)));
        data::array(&seen.collect::<Vec<bool>>(), &[queries, keys])
    }

    fn stock(&self) -> Array {
        let dtype = self.q.dtype();
        let mut mask = self.seen();
        if let Some((q, [k])) = &self.rope {
            let q = ops::multiply(q, &Array::scalar_like(SCALE, q).unwrap()).unwrap();
            let scores = ops::matmul(&q, &ops::swapaxes(k, -1, -2).unwrap()).unwrap();
            let lowest = match dtype {
                Dtype::F16 => -65504.0,
                Dtype::Bf16 => f32::from_bits(0xff7f_0000),
                _ => f32::MIN,
            };
            let lowest = Array::scalar_like(lowest, &scores).unwrap();
            mask = ops::select(&mask, &scores, &lowest).unwrap();
        }
        let Self { q, k, v, sinks, .. } = self;
        let mask = Mask::Array(&mask);
        fast::scaled_dot_product_attention(q, k, v, SCALE, mask, sinks.as_ref()).unwrap()
    }
}

fn every_case(mut check: impl FnMut(&mut Rng, [i32; 6], [bool; 4])) {
    let mut rng = Rng::new(120);
    for shape in [
        // H, Hkv, Lq, Lk, D, Dv
        [8, 2, 1, 1, 32, 32],
        [8, 1, 1, 150, 64, 64],
        [6, 6, 7, 7, 24, 40],
        [4, 2, 33, 150, 64, 16],
        [5, 1, 70, 70, 16, 16],
        [20, 1, 1, 90, 512, 512],
    ] {
        for bits in 0..16 {
            let flags = [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, bits & 8 != 0];
            let [causal, window, ..] = flags;
            if causal || (!window && shape[2] == 1) {
                check(&mut rng, shape, flags);
            }
        }
    }
}

fn operands(rng: &mut Rng, dtype: Dtype, shape: [i32; 6], flags: [bool; 4]) -> Operands {
    let [heads, kv_heads, lq, lk, d, dv] = shape;
    let [causal, window, sinks, rope] = flags;
    let mut array = |shape: &[i32]| rng.array(shape, dtype, 1.2);
    Operands {
        q: array(&[2, heads, lq, d]),
        k: array(&[2, kv_heads, lk, d]),
        v: array(&[2, kv_heads, lk, dv]),
        sinks: sinks.then(|| array(&[heads])),
        rope: rope.then(|| (array(&[2, heads, lq, 24]), [array(&[2, 1, lk, 24])])),
        window: window.then_some(lk / 3 + 1),
        causal,
    }
}

on_each_device! {
    fn every_part_with_every_other_has_the_stock_bits() {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            every_case(|rng, shape, flags| {
                let x = operands(rng, dtype, shape, flags);
                let what = format!("{dtype} {shape:?} {flags:?}");
                let got = attention(&x.q, &x.k, &x.v, SCALE, x.options(), Precision::Exact);
                if mlx::default_device() == mlx::Device::Gpu && got.is_err() { return; }
                let expected = x.stock();
                assert_lively(&expected, &what);
                assert_same_bits(&got.unwrap(), &expected, what);
            });
        }
    }
}

on_each_device! {
    fn fast_is_close_to_stock_in_f32() {
        for dtype in DTYPES {
            let part = match dtype { Dtype::F32 => 1e-5, Dtype::F16 => 3e-3, _ => 2e-2 };
            every_case(|rng, shape, flags| {
                let x = operands(rng, dtype, shape, flags);
                let what = format!("{dtype} {shape:?} {flags:?}");
                let got = attention(&x.q, &x.k, &x.v, SCALE, x.options(), Precision::Fast);
                if mlx::default_device() == mlx::Device::Gpu && got.is_err() { return; }
                let wide = |a: &Array| a.astype(Dtype::F32).unwrap();
                let x = Operands {
                    q: wide(&x.q),
                    k: wide(&x.k),
                    v: wide(&x.v),
                    sinks: x.sinks.as_ref().map(wide),
                    rope: x.rope.as_ref().map(|(q, [k])| (wide(q), [wide(k)])),
                    ..x
                };
                assert_close(&got.unwrap(), &x.stock(), part, what);
            });
        }
    }
}

on_each_device! {
    fn rows_over_caches_of_their_own_have_the_bits_that_they_have_alone() {
        let mut rng = Rng::new(121);
        for dtype in [Dtype::F16, Dtype::Bf16] {
            for lq in [1, 4] {
                for lengths in [[4, 90], [65, 7]] {
                    let [rows @ .., _] = [lengths[0], lengths[1], 0].map(|lk| {
                        operands(&mut rng, dtype, [6, 2, lq, lk.max(lq), 32, 16], [true; 4])
                    });
                    let first = |a: &Array| ops::slice_axis(a, 0, 0, 1).unwrap();
                    let alone = rows.each_ref().map(|x| {
                        let (q, [k]) = x.rope.as_ref().unwrap();
                        let (q, keys) = (first(q), [first(k)]);
                        let rope = Some(RopeParts { q: &q, keys: &keys });
                        let sinks = rows[0].sinks.as_ref();
                        let options = AttentionOptions { window: Some(9), sinks, rope, ..x.options() };
                        let (q, k, v) = (first(&x.q), first(&x.k), first(&x.v));
                        attention(&q, &k, &v, SCALE, options, Precision::Exact)
                    });
                    if mlx::default_device() == mlx::Device::Gpu && alone[0].is_err() { return; }
                    let alone = alone.map(|y| y.unwrap());
                    let of = |part: &dyn Fn(&Operands) -> Array| rows.each_ref().map(|x| first(&part(x)));
                    let join = |parts: [Array; 2]| ops::concatenate(parts.iter(), 0).unwrap();
                    let q_rope = join(of(&|x| x.rope.as_ref().unwrap().0.clone()));
                    let keys = of(&|x| x.rope.as_ref().unwrap().1[0].clone());
                    let options = AttentionOptions {
                        causal: true,
                        window: Some(9),
                        sinks: rows[0].sinks.as_ref(),
                        rope: Some(RopeParts { q: &q_rope, keys: &keys }),
                    };
                    let (q, k, v) = (join(of(&|x| x.q.clone())), of(&|x| x.k.clone()), of(&|x| x.v.clone()));
                    let got = attention_rows(&q, &k, &v, None, SCALE, options, Precision::Exact);
                    assert_same_bits(&got.unwrap(), &join(alone), format!("{dtype} {lq} {lengths:?}"));
                }
            }
        }
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let mut rng = Rng::new(122);
    let x = operands(&mut rng, Dtype::Bf16, [4, 2, 3, 9, 16, 16], [true; 4]);
    let (q, [k]) = x.rope.clone().unwrap();
    let wide = rng.array(&[4], Dtype::F32, 1.0);
    let five = rng.array(&[5], Dtype::Bf16, 1.0);
    let heads = rng.array(&[2, 2, 9, 24], Dtype::Bf16, 1.0);
    let float = k.astype(Dtype::F32).unwrap();
    let options = x.options();
    let rope = |q, keys| Some(RopeParts { q, keys });
    for (options, words) in [
        (AttentionOptions { window: Some(0), ..options }, "window"),
        (AttentionOptions { window: Some(-3), ..options }, "window"),
        (AttentionOptions { causal: false, ..options }, "causal"),
        (AttentionOptions { sinks: Some(&wide), ..options }, "float32"),
        (AttentionOptions { sinks: Some(&five), ..options }, "[4]"),
        (AttentionOptions { rope: rope(&q, &[]), ..options }, "1 caches"),
        (AttentionOptions { rope: rope(&k, std::slice::from_ref(&k)), ..options }, "rotated q"),
        (
            AttentionOptions { rope: rope(&q, std::slice::from_ref(&heads)), ..options },
            "(2,1,9,24)",
        ),
        (AttentionOptions { rope: rope(&q, std::slice::from_ref(&float)), ..options }, "promote"),
    ] {
        let y = attention(&x.q, &x.k, &x.v, SCALE, options, Precision::Exact);
        let error = y.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("[attention]"), "`{words}`: {error}");
    }
}

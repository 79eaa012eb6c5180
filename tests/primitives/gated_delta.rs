//! `gated_delta` against the stock ops of mlx-lm's `gated_delta.py`.

use mlx::primitives::{self, GatedDelta, GatedDeltaInputs, Precision};
use mlx::{Array, Dtype, fast, ops};

use super::fused;
use crate::support::bits::{assert_lively, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng};
use crate::support::on_each_device;

const NORM_EPS: f32 = 1e-5;

#[derive(Clone)]
struct Case {
    qkv: Array,
    z: Array,
    b: Array,
    a: Array,
    a_log: Array,
    dt_bias: Array,
    norm: Array,
    state: Array,
    key_heads: i32,
}

impl Case {
    /// `[batch, length, key heads, value heads, key width, value width]`.
    fn new(rng: &mut Rng, dtype: Dtype, sizes: [i32; 6]) -> Self {
        let [batch, length, key_heads, heads, dk, dv] = sizes;
        let mut random = |shape: &[i32], dtype, scale| rng.array(shape, dtype, scale);
        Self {
            qkv: random(&[batch, length, 2 * key_heads * dk + heads * dv], dtype, 1.0),
            z: random(&[batch, length, heads, dv], dtype, 2.0),
            b: random(&[batch, length, heads], dtype, 1.5),
            a: random(&[batch, length, heads], dtype, 1.5),
            a_log: random(&[heads], Dtype::F32, 1.0),
            dt_bias: random(&[heads], dtype, 1.0),
            norm: random(&[dv], dtype, 1.0),
            state: random(&[batch, heads, dv, dk], Dtype::F32, 1.0),
            key_heads,
        }
    }

    fn ask(&self) -> GatedDelta {
        GatedDelta {
            num_key_heads: self.key_heads,
            num_value_heads: self.z.dim(2),
            key_dim: self.state.dim(3),
            value_dim: self.z.dim(3),
            dt_bias_dtype: self.dt_bias.dtype(),
            norm_dtype: self.norm.dtype(),
        }
    }

    fn run(&self) -> mlx::Result<(Array, Array)> {
        let Self { qkv, z, b, a, a_log, dt_bias, norm, .. } = self;
        let inputs = GatedDeltaInputs { qkv, z, b, a, a_log, dt_bias, norm };
        primitives::gated_delta(&inputs, self.state.clone(), NORM_EPS)
    }

    fn stock(&self) -> (Array, Array) {
        self.try_stock().unwrap()
    }

    fn try_stock(&self) -> mlx::Result<(Array, Array)> {
        let dtype = self.qkv.dtype();
        let [batch, length, heads] = [0, 1, 2].map(|axis| self.z.dim(axis));
        let (dk, keys) = (self.state.dim(3), self.key_heads * self.state.dim(3));
        let inverse = f64::from(dk).powf(-0.5);
        let normed = |at: i32, scale: f64| {
            let x = ops::slice_axis(&self.qkv, -1, at * keys, (at + 1) * keys)?;
            let x = ops::reshape(&x, &[batch, length, self.key_heads, dk])?;
            let x = fast::rms_norm(&x, None, (1e-6 * inverse * inverse) as f32)?;
            let x = ops::multiply(&Array::scalar_like(scale as f32, &x)?, &x)?;
            ops::repeat(&x, heads / self.key_heads, -2)
        };
        let (q, k) = (normed(0, inverse * inverse)?, normed(1, inverse)?);
        let v = ops::slice_axis(&self.qkv, -1, 2 * keys, self.qkv.dim(-1))?;
        let v = ops::reshape(&v, self.z.shape())?;
        let beta = ops::sigmoid(&self.b)?;
        let shifted = ops::add(&self.a, &self.dt_bias)?;
        let softplus = ops::logaddexp(&shifted, &Array::scalar_like(0.0, &shifted)?)?;
        let rate = ops::negative(&ops::exp(&self.a_log.astype(Dtype::F32)?)?)?;
        let decay = ops::exp(&ops::multiply(&rate, &softplus)?)?;
        let mut memory = self.state.clone();
        let mut ys = Vec::new();
        for t in 0..length {
            let at = |x: &Array| ops::squeeze(&ops::slice_axis(x, 1, t, t + 1)?, &[1]);
            let (q, k) = (ops::expand_dims(&at(&q)?, &[-2])?, ops::expand_dims(&at(&k)?, &[-2])?);
            memory = ops::multiply(&memory, &ops::expand_dims(&at(&decay)?, &[-1, -2])?)?;
            let found = ops::sum(&ops::multiply(&memory, &k)?, &[-1], false)?;
            let beta = ops::expand_dims(&at(&beta)?, &[-1])?;
            let delta = ops::multiply(&ops::subtract(&at(&v)?, &found)?, &beta)?;
            let written = ops::multiply(&k, &ops::expand_dims(&delta, &[-1])?)?;
            memory = ops::add(&memory, &written)?;
            ys.push(ops::sum(&ops::multiply(&memory, &q)?, &[-1], false)?.astype(dtype)?);
        }
        let y = fast::rms_norm(&ops::stack(&ys, 1)?, Some(&self.norm), NORM_EPS)?;
        let gate = ops::silu(&self.z.astype(Dtype::F32)?)?;
        Ok((ops::multiply(&gate, &y.astype(Dtype::F32)?)?.astype(dtype)?, memory))
    }

    fn check(&self, what: &str) {
        let (y, state) = self.stock();
        let got = self.run().unwrap();
        assert_lively(&y, what);
        assert_same_bits(&got.0, &y, what);
        assert_same_bits(&got.1, &state, format!("{what}, state"));
    }
}

const SIZES: [[i32; 6]; 9] = [
    [1, 1, 1, 1, 2, 1],
    [1, 1, 2, 4, 16, 16],
    [1, 3, 1, 3, 7, 5],
    [2, 2, 2, 2, 24, 40],
    [1, 5, 2, 6, 33, 64],
    [1, 1, 4, 8, 128, 128],
    [1, 4, 1, 2, 128, 128],
    [2, 1, 1, 2, 192, 100],
    [1, 67, 1, 1, 20, 130],
];

on_each_device! {
    fn gated_delta_has_the_stock_bits() {
        let mut rng = Rng::new(601);
        for dtype in DTYPES {
            for sizes in SIZES {
                let mut case = Case::new(&mut rng, dtype, sizes);
                if !fused(&case.ask(), dtype, Precision::Exact) { continue; }
                case.check(&format!("{dtype} {sizes:?}"));
                // the memory of a sequence that begins, and a bias that was kept in float32
                case.state = ops::zeros(case.state.shape(), Dtype::F32).unwrap();
                case.dt_bias = rng.array(case.dt_bias.shape(), Dtype::F32, 1.0);
                case.check(&format!("{dtype} {sizes:?} from nothing"));
            }
        }
    }
}

on_each_device! {
    fn gated_delta_in_steps_has_the_bits_of_all_tokens_at_once() {
        let mut rng = Rng::new(602);
        for dtype in DTYPES {
            let case = Case::new(&mut rng, dtype, [1, 9, 2, 4, 40, 72]);
            if !fused(&case.ask(), dtype, Precision::Exact) { continue; }
            let (y, state) = case.stock();
            let mut memory = case.state.clone();
            let mut ys = Vec::new();
            for (from, to) in [(0, 1), (1, 2), (2, 6), (6, 7), (7, 9)] {
                let part = |x: &Array| ops::slice_axis(x, 1, from, to).unwrap();
                let Case { qkv, z, b, a, .. } = &case;
                let step = Case {
                    qkv: part(qkv), z: part(z), b: part(b), a: part(a), state: memory, ..case.clone()
                };
                let (y, state) = step.run().unwrap();
                drop(step);
                ys.push(y);
                memory = state;
            }
            assert_same_bits(&ops::concatenate(&ys, 1).unwrap(), &y, format!("{dtype}"));
            assert_same_bits(&memory, &state, format!("{dtype}, state"));
        }
    }
}

on_each_device! {
    /// What a caller still holds must not be written over.
    fn gated_delta_leaves_a_state_alone_that_others_hold() {
        let mut case = Case::new(&mut Rng::new(603), Dtype::Bf16, [1, 1, 2, 4, 32, 64]);
        if !fused(&case.ask(), Dtype::Bf16, Precision::Exact) { return; }
        case.state = case.run().unwrap().1;
        let before = ops::contiguous(&case.state).unwrap();
        before.eval().unwrap();
        let (first, second) = (case.run().unwrap(), case.run().unwrap());
        assert_same_bits(&first.0, &second.0, "once more");
        assert_same_bits(&first.1, &second.1, "once more, state");
        assert_same_bits(&ops::contiguous(&case.state).unwrap(), &before, "the state");
    }
}

on_each_device! {
    fn gated_delta_of_views_has_the_stock_bits() {
        let mut rng = Rng::new(604);
        for dtype in DTYPES {
            let case = Case::new(&mut rng, dtype, [2, 3, 2, 4, 24, 16]);
            if !fused(&case.ask(), dtype, Precision::Exact) { continue; }
            for (what, view) in [
                ("strided", data::strided as fn(&Array) -> Array),
                ("rows", data::row_strided),
                ("columns", data::column_major),
            ] {
                let Case { qkv, z, b, a, state, a_log, dt_bias, .. } = &case;
                let along = |x: &Array| if what == "strided" { view(x) } else { x.clone() };
                let case = Case {
                    qkv: view(qkv), z: view(z), b: view(b), a: view(a), state: view(state),
                    a_log: along(a_log), dt_bias: along(dt_bias), ..case.clone()
                };
                case.check(&format!("{dtype} {what}"));
            }
        }
    }
}

on_each_device! {
    fn gated_delta_of_extremes_has_the_stock_bits() {
        let mut rng = Rng::new(605);
        for dtype in DTYPES {
            let case = Case::new(&mut rng, dtype, [1, 2, 1, 2, 4, 16]);
            if !fused(&case.ask(), dtype, Precision::Exact) { continue; }
            for value in [0.0, -0.0, 1e-40, 3e4, -3e4, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let all = |x: &Array| {
                    ops::full(x.shape(), &Array::scalar(value).unwrap(), x.dtype()).unwrap()
                };
                let Case { qkv, z, b, a, state, .. } = &case;
                for (what, case) in [
                    ("qkv", Case { qkv: all(qkv), ..case.clone() }),
                    ("z", Case { z: all(z), ..case.clone() }),
                    ("b", Case { b: all(b), ..case.clone() }),
                    ("a", Case { a: all(a), ..case.clone() }),
                    ("state", Case { state: all(state), ..case.clone() }),
                ] {
                    let (y, state) = case.stock();
                    let got = case.run().unwrap();
                    assert_same_bits(&got.0, &y, format!("{dtype} {what} {value}"));
                    assert_same_bits(&got.1, &state, format!("{dtype} {what} {value}, state"));
                }
            }
        }
    }
}

#[test]
fn gated_delta_refuses_what_does_not_fit() {
    let case = Case::new(&mut Rng::new(606), Dtype::F32, [1, 3, 2, 4, 8, 16]);
    let other = |shape: &[i32]| Rng::new(1).array(shape, Dtype::F32, 1.0);
    let short = |a: &Array| a.astype(Dtype::Bf16).unwrap();
    let c = || case.clone();
    for (what, case) in [
        ("qkv should", Case { qkv: other(&[1, 3, 100]), ..c() }),
        ("qkv should", Case { qkv: other(&[2, 3, 96]), ..c() }),
        ("z should", Case { z: other(&[1, 0, 4, 16]), ..c() }),
        ("b should", Case { b: other(&[1, 3, 3]), ..c() }),
        ("a should", Case { a: other(&[1, 2, 4]), ..c() }),
        ("a_log should", Case { a_log: other(&[3]), ..c() }),
        ("dt_bias should", Case { dt_bias: other(&[4, 1]), ..c() }),
        ("norm should", Case { norm: other(&[8]), ..c() }),
        ("state should", Case { state: other(&[1, 4, 8, 8]), ..c() }),
        ("one type", Case { z: short(&case.z), ..c() }),
        ("float32", Case { state: short(&case.state), ..c() }),
        ("a norm of bfloat16 with activations of float32", Case { norm: short(&case.norm), ..c() }),
        ("dt_bias should be", Case { dt_bias: short(&case.dt_bias), ..c() }),
    ] {
        let error = case.run().unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}

//! `short_conv` against the stock ops of mlx-lm's layers.

use mlx::primitives::{self, Precision, ShortConv};
use mlx::{Array, Dtype, ops};

use super::fused;
use crate::support::bits::{assert_lively, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng};
use crate::support::on_each_device;

struct Case {
    x: Array,
    weight: Array,
    bias: Option<Array>,
    state: Array,
    gated: bool,
}

impl Case {
    /// `[batch, length, channels, taps]`.
    fn new(rng: &mut Rng, dtype: Dtype, sizes: [i32; 4], gated: bool, bias: bool) -> Self {
        let [batch, length, channels, taps] = sizes;
        let width = if gated { 3 * channels } else { channels };
        Self {
            x: rng.array(&[batch, length, width], dtype, 1.5),
            weight: rng.array(&[channels, taps, 1], dtype, 0.7),
            bias: bias.then(|| rng.array(&[channels], dtype, 0.5)),
            state: rng.array(&[batch, taps - 1, channels], dtype, 1.0),
            gated,
        }
    }

    fn ask(&self) -> ShortConv {
        ShortConv {
            channels: self.weight.dim(0),
            taps: self.weight.dim(1),
            gated: self.gated,
            bias: self.bias.is_some(),
            weight_dtype: self.weight.dtype(),
        }
    }

    fn stock(&self) -> (Array, Array) {
        let channels = self.weight.dim(0);
        let third = |i| ops::slice_axis(&self.x, -1, i * channels, (i + 1) * channels).unwrap();
        let x = match self.gated {
            true => ops::multiply(&third(0), &third(2)).unwrap(),
            false => self.x.clone(),
        };
        let x = ops::concatenate(&[self.state.clone(), x], 1).unwrap();
        let mut y = ops::depthwise_conv1d(&x, &self.weight).unwrap();
        if let Some(bias) = &self.bias {
            y = ops::add(&y, bias).unwrap();
        }
        let y = match self.gated {
            true => ops::multiply(&third(1), &y).unwrap(),
            false => ops::silu(&y).unwrap(),
        };
        let kept = self.weight.dim(1) - 1;
        (y, ops::slice_axis(&x, 1, x.dim(1) - kept, x.dim(1)).unwrap())
    }

    fn check(&self, what: &str) {
        let (y, state) = self.stock();
        let (x, weight, bias) = (&self.x, &self.weight, self.bias.as_ref());
        let got = primitives::short_conv(x, weight, bias, &self.state, self.gated).unwrap();
        assert_lively(&y, what);
        assert_same_bits(&got.0, &y, what);
        assert_same_bits(&got.1, &state, format!("{what}, state"));
    }
}

on_each_device! {
    fn short_conv_has_the_stock_bits() {
        let mut rng = Rng::new(501);
        for dtype in DTYPES {
            for channels in [1, 5, 16, 40, 513] {
                for taps in [2, 3, 4, 9] {
                    for (batch, length) in [(1, 1), (1, 2), (2, 3), (1, 37)] {
                        let sizes = [batch, length, channels, taps];
                        for (gated, bias) in [(true, false), (true, true), (false, false)] {
                            let case = Case::new(&mut rng, dtype, sizes, gated, bias);
                            if !fused(&case.ask(), dtype, Precision::Exact) { continue; }
                            case.check(&format!("{dtype} {sizes:?} gated {gated} bias {bias}"));
                        }
                    }
                }
            }
        }
    }
}

on_each_device! {
    fn short_conv_of_views_has_the_stock_bits() {
        let mut rng = Rng::new(502);
        for dtype in DTYPES {
            for gated in [true, false] {
                let case = Case::new(&mut rng, dtype, [2, 5, 24, 4], gated, gated);
                if !fused(&case.ask(), dtype, Precision::Exact) { continue; }
                let together = ops::contiguous(&ops::swapaxes(&case.weight, 0, 1).unwrap());
                let weight = ops::swapaxes(&together.unwrap(), 0, 1).unwrap();
                for (what, x, weight, state) in [
                    ("strided", data::strided(&case.x), case.weight.clone(), data::strided(&case.state)),
                    ("rows", data::row_strided(&case.x), weight, data::row_strided(&case.state)),
                    (
                        "columns",
                        data::column_major(&case.x),
                        data::strided(&case.weight),
                        data::column_major(&case.state),
                    ),
                ] {
                    let case = Case { x, weight, state, bias: case.bias.clone(), gated };
                    case.check(&format!("{dtype} gated {gated} {what}"));
                }
            }
        }
    }
}

on_each_device! {
    /// Every value that a 16-bit type has goes through the activation.
    fn silu_behind_a_convolution_has_the_stock_bits_for_every_value() {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let bits: Vec<u16> = (0..=u16::MAX).collect();
            let all = ops::view(&data::array(&bits, &[1, 1, 1 << 16]), dtype).unwrap();
            let zeros = ops::zeros(&[1 << 16, 1, 1], dtype).unwrap();
            let ones = ops::full(&[1 << 16, 1, 1], &Array::scalar(1f32).unwrap(), dtype).unwrap();
            let case = Case {
                weight: ops::concatenate(&[zeros, ones], 1).unwrap(),
                bias: None,
                state: ops::zeros(all.shape(), dtype).unwrap(),
                x: all,
                gated: false,
            };
            if !fused(&case.ask(), dtype, Precision::Exact) { continue; }
            case.check(&format!("{dtype}"));
        }
    }
}

#[test]
fn short_conv_refuses_what_does_not_fit() {
    let mut rng = Rng::new(503);
    let case = Case::new(&mut rng, Dtype::F32, [1, 3, 8, 3], true, true);
    let Case { x, weight, bias, state, .. } = &case;
    let run = |x: &Array, weight: &Array, bias: &Array, state: &Array, gated| {
        let error = primitives::short_conv(x, weight, Some(bias), state, gated).unwrap_err();
        error.to_string()
    };
    let bias = bias.as_ref().unwrap();
    let other = |shape: &[i32]| Rng::new(1).array(shape, Dtype::F32, 1.0);
    let short = |a: &Array| a.astype(Dtype::Bf16).unwrap();
    for (what, error) in [
        ("weight should", run(x, &other(&[8, 3]), bias, state, true)),
        ("x should", run(x, weight, bias, state, false)),
        ("x should", run(&other(&[1, 0, 24]), weight, bias, state, true)),
        ("state should", run(x, weight, bias, &other(&[1, 3, 8]), true)),
        ("bias should", run(x, weight, &other(&[9]), state, true)),
        ("one type", run(x, weight, bias, &short(state), true)),
        (
            "weights of float32 with activations of bfloat16",
            run(&short(x), weight, &short(bias), &short(state), true),
        ),
        ("1 tokens", run(x, &other(&[8, 1, 1]), bias, &other(&[1, 0, 8]), true)),
    ] {
        assert!(error.contains(what), "{what}: {error}");
    }
}

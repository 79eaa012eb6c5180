//! `gather_qmm_swiglu` against `gather_qmm` twice, biases, an activation and a product.

use mlx::primitives::{Activation, Glu, Precision, gather_qmm_swiglu};
use mlx::quantization::{Quantization, QuantizedWeight, gather_qmm};
use mlx::{Array, Dtype, ops};

use super::{asks, fused};
use crate::support::bits::{assert_lively, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng, quantizations};
use crate::support::on_each_device;

/// One call's arguments.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) x: Array,
    pub(super) gate: QuantizedWeight,
    pub(super) up: QuantizedWeight,
    pub(super) biases: Option<[Array; 2]>,
    pub(super) activation: Activation,
    pub(super) lhs: Option<Array>,
    pub(super) rhs: Option<Array>,
    pub(super) transpose: bool,
    pub(super) sorted: bool,
}

impl Call {
    pub(super) fn fused(&self, precision: Precision) -> mlx::Result<Array> {
        let (lhs, rhs) = (self.lhs.as_ref(), self.rhs.as_ref());
        let Call { x, gate, up, activation, transpose, sorted, .. } = self;
        let biases = self.biases.as_ref().map(|[gate, up]| [gate, up]);
        let glu = Glu { biases, activation: *activation, ..Glu::new(gate, up) };
        gather_qmm_swiglu(x, glu, lhs, rhs, *transpose, *sorted, precision)
    }

    pub(super) fn stock(&self) -> Array {
        let project = |w, bias: usize| {
            let (lhs, rhs) = (self.lhs.as_ref(), self.rhs.as_ref());
            let y = gather_qmm(&self.x, w, lhs, rhs, self.transpose, self.sorted).unwrap();
            let Some(biases) = &self.biases else { return y };
            let chosen = ops::take(&biases[bias], rhs.unwrap(), 0).unwrap();
            ops::add(&y, &ops::expand_dims(&chosen, &[-2]).unwrap()).unwrap()
        };
        gated(&project(&self.gate, 0), &project(&self.up, 1), self.activation)
    }

    #[track_caller]
    pub(super) fn check(&self, what: impl std::fmt::Display) {
        let expected = self.stock();
        assert_lively(&expected, &what);
        assert_same_bits(&self.fused(Precision::Exact).unwrap(), &expected, what);
    }
}

/// What joins a gate and an up projection, in stock ops.
pub(super) fn gated(gate: &Array, up: &Array, activation: Activation) -> Array {
    match activation {
        Activation::Silu => ops::swiglu(gate, up),
        Activation::GeluTanh => ops::geglu(gate, up),
        Activation::ClippedSwiglu { alpha, limit } => ops::clipped_swiglu(gate, up, alpha, limit),
        other => panic!("{other:?} is not tested"),
    }
    .unwrap()
}

/// Every activation; the last one with limits that many values reach.
pub(super) const ACTIVATIONS: [Activation; 4] = [
    Activation::Silu,
    Activation::GeluTanh,
    Activation::ClippedSwiglu { alpha: 1.702, limit: 7.0 },
    Activation::ClippedSwiglu { alpha: 0.5, limit: 0.25 },
];

/// How tokens reach the experts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Layout {
    /// One token, its experts: `x [1, 1, 1, 1, K]`, `rhs [1, 1, k]`.
    Decode { top_k: i32 },
    /// Tokens beside each other: `x [1, L, 1, 1, K]`, `rhs [1, L, k]`.
    Tokens { tokens: i32, top_k: i32 },
    /// As mlx-lm sorts them: `x [L·k, 1, K]`, ascending `rhs [L·k]`.
    Sorted { rows: i32 },
    /// Several rows for each expert: `x [B, M, K]`, `rhs [B]`.
    Rows { batch: i32, m: i32 },
    /// Both sides picked: `x [4, M, K]`, `lhs [2, 3]`, `rhs [3]`, broadcast.
    Both { m: i32 },
}

/// A call in `layout` with experts `[experts, n, k]`.
pub(super) fn call(
    rng: &mut Rng,
    layout: Layout,
    [experts, n, k]: [i32; 3],
    quantization: Quantization,
    dtype: Dtype,
    transpose: bool,
) -> Call {
    let gate = rng.experts([experts, n, k], quantization, dtype, transpose);
    let up = rng.experts([experts, n, k], quantization, dtype, transpose);
    let mut sorted = false;
    let (x_shape, lhs, rhs) = match layout {
        Layout::Decode { top_k } => {
            let rhs = rng.routing(1, top_k, experts);
            (vec![1, 1, 1, 1, k], None, data::array(&rhs, &[1, 1, top_k]))
        }
        Layout::Tokens { tokens, top_k } => {
            let rhs = rng.routing(tokens, top_k, experts);
            (vec![1, tokens, 1, 1, k], None, data::array(&rhs, &[1, tokens, top_k]))
        }
        Layout::Sorted { rows } => {
            sorted = true;
            let mut rhs: Vec<u32> = (0..rows).map(|_| rng.below(experts) as u32).collect();
            rhs.sort_unstable();
            (vec![rows, 1, k], None, data::array(&rhs, &[rows]))
        }
        Layout::Rows { batch, m } => (vec![batch, m, k], None, rng.indices(&[batch], experts)),
        Layout::Both { m } => {
            (vec![4, m, k], Some(rng.indices(&[2, 3], 4)), rng.indices(&[3], experts))
        }
    };
    let x = rng.array(&x_shape, dtype, 1.0);
    let activation = Activation::Silu;
    Call { x, gate, up, biases: None, activation, lhs, rhs: Some(rhs), transpose, sorted }
}

const LAYOUTS: [Layout; 7] = [
    Layout::Decode { top_k: 1 },
    Layout::Decode { top_k: 3 },
    Layout::Tokens { tokens: 3, top_k: 2 },
    Layout::Sorted { rows: 19 },
    Layout::Rows { batch: 2, m: 2 },
    Layout::Rows { batch: 3, m: 5 },
    Layout::Both { m: 3 },
];

fn product(dtype: Dtype) {
    let mut rng = Rng::new(1);
    for q in quantizations() {
        for transpose in [true, false] {
            if !fused(&asks::swiglu(q, transpose), dtype, Precision::Exact) {
                continue;
            }
            for (i, layout) in LAYOUTS.into_iter().enumerate() {
                // The quantised axis comes in whole groups; the other one is anything.
                let whole = q.group_size.max(32) * [1, 3, 2][i % 3];
                let ragged = [1, 7, 16, 33, 8, 40, 67][(i + q.bits as usize) % 7];
                let (n, k) = if transpose { (ragged, whole) } else { (whole, ragged) };
                let what = format!("{dtype} {q} transpose {transpose} {layout:?} N {n} K {k}");
                let mut c = call(&mut rng, layout, [5, n, k], q, dtype, transpose);
                let biases = [(); 2].map(|()| rng.array(&[5, n], dtype, 1.0));
                for biases in [None, Some(biases)] {
                    c.biases = biases;
                    for activation in ACTIVATIONS {
                        c.activation = activation;
                        c.check(format!("{what} {activation:?} biases {}", c.biases.is_some()));
                    }
                }
            }
        }
    }
}

on_each_device! {
    fn every_quantization_and_layout_in_f32_has_the_stock_bits() { product(Dtype::F32) }
}
on_each_device! {
    fn every_quantization_and_layout_in_f16_has_the_stock_bits() { product(Dtype::F16) }
}
on_each_device! {
    fn every_quantization_and_layout_in_bf16_has_the_stock_bits() { product(Dtype::Bf16) }
}

on_each_device! {
    fn rows_split_over_threads_have_the_stock_bits() {
        let mut rng = Rng::new(2);
        let q = Quantization::affine(64, 4);
        for layout in [Layout::Decode { top_k: 8 }, Layout::Sorted { rows: 70 }] {
            let shape = [16, 200, 256];
            call(&mut rng, layout, shape, q, Dtype::Bf16, true).check(format!("{layout:?}"));
        }
    }
}

on_each_device! {
    fn strided_operands_have_the_stock_bits() {
        let mut rng = Rng::new(3);
        for dtype in DTYPES {
            for transpose in [true, false] {
                let q = Quantization::affine(32, 4);
                let layout = Layout::Rows { batch: 4, m: 3 };
                let plain = call(&mut rng, layout, [6, 32, 64], q, dtype, transpose);
                for which in 0..6 {
                    let mut c = plain.clone();
                    match which {
                        0 => c.x = data::strided(&c.x),
                        1 => c.x = data::column_major(&c.x),
                        2 => c.x = data::row_strided(&c.x),
                        3 => {
                            c.gate.w = data::row_strided(&c.gate.w);
                            c.up.scales = data::row_strided(&c.up.scales);
                        }
                        4 => {
                            c.up.w = data::column_major(&c.up.w);
                            c.gate.biases = c.gate.biases.as_ref().map(data::strided);
                        }
                        _ => c.rhs = c.rhs.as_ref().map(data::strided),
                    }
                    c.check(format!("{dtype} transpose {transpose} view {which}"));
                }
            }
        }
    }
}

on_each_device! {
    fn broadcast_operands_have_the_stock_bits() {
        let mut rng = Rng::new(4);
        let q = Quantization::affine(32, 8);
        let mut c = call(&mut rng, Layout::Rows { batch: 4, m: 2 }, [3, 24, 64], q, Dtype::Bf16, true);
        // One row of x for all, one index for all, one expert's weights for all.
        c.x = ops::broadcast_to(&rng.array(&[1, 2, 64], Dtype::Bf16, 1.0), &[4, 2, 64]).unwrap();
        c.check("broadcast x");
        c.rhs = Some(ops::broadcast_to(&data::array(&[2u32], &[1]), &[4]).unwrap());
        c.check("broadcast indices");
        let one = rng.experts([1, 24, 64], q, Dtype::Bf16, true);
        let many = |a: &Array| {
            ops::broadcast_to(a, &[3, a.dim(1), a.dim(2)]).unwrap()
        };
        c.gate.w = many(&one.w);
        c.gate.scales = many(&one.scales);
        c.gate.biases = one.biases.as_ref().map(many);
        c.check("broadcast weights");
    }
}

on_each_device! {
    fn absent_indices_mean_all_in_order() {
        let mut rng = Rng::new(5);
        let q = Quantization::affine(64, 4);
        let layout = Layout::Rows { batch: 5, m: 2 };
        let mut c = call(&mut rng, layout, [5, 12, 64], q, Dtype::F32, true);
        c.rhs = None;
        c.check("no indices");
        c.lhs = Some(rng.indices(&[5], 5));
        c.check("left indices alone");
    }
}

on_each_device! {
    fn repeated_experts_and_wide_batches_have_the_stock_bits() {
        let mut rng = Rng::new(6);
        let q = Quantization::affine(32, 5);
        let mut c = call(&mut rng, Layout::Rows { batch: 9, m: 1 }, [2, 10, 96], q, Dtype::F16, true);
        c.rhs = Some(data::array(&[1u32; 9], &[9]));
        c.check("one expert for all");
        c.sorted = true;
        c.check("one expert for all, sorted");
        c.rhs = Some(data::array(&[0u32, 1, 0, 1, 1, 0, 0, 0, 1], &[9]));
        c.sorted = false;
        c.check("two experts in turn");
    }
}

on_each_device! {
    fn promise_of_order_that_is_not_kept_has_the_stock_bits() {
        // Stock MLX on the CPU takes `sorted` as a hint; so must we.
        if mlx::default_device() != mlx::Device::Cpu { return; }
        let mut rng = Rng::new(7);
        let q = Quantization::affine(64, 4);
        let mut c = call(&mut rng, Layout::Rows { batch: 20, m: 1 }, [4, 16, 64], q, Dtype::Bf16, true);
        c.sorted = true;
        c.check("unsorted indices called sorted");
    }
}

on_each_device! {
    fn empty_input_gives_empty_output() {
        let mut rng = Rng::new(8);
        let q = Quantization::affine(32, 4);
        let plain = call(&mut rng, Layout::Rows { batch: 2, m: 1 }, [2, 8, 32], q, Dtype::F32, true);
        let no_rows = ops::zeros(&[0, 1, 32], Dtype::F32).unwrap();
        let no_m = ops::zeros(&[2, 0, 32], Dtype::F32).unwrap();
        let none = Some(data::array::<u32>(&[], &[0]));
        for (x, rhs, shape) in [
            (no_rows, none.clone(), vec![0, 1, 8]),
            (no_m, plain.rhs.clone(), vec![2, 0, 8]),
        ] {
            let c = Call { x, rhs, ..plain.clone() };
            let got = c.fused(Precision::Exact).unwrap();
            got.eval().unwrap();
            assert_eq!(got.shape(), shape);
        }
    }
}

on_each_device! {
    fn mixed_dtypes_promote_as_stock() {
        let mut rng = Rng::new(9);
        let q = Quantization::affine(32, 4);
        for (x, w) in [
            (Dtype::F32, Dtype::Bf16),
            (Dtype::Bf16, Dtype::F32),
            (Dtype::F16, Dtype::Bf16),
            (Dtype::I32, Dtype::Bf16),
        ] {
            let mut c = call(&mut rng, Layout::Decode { top_k: 2 }, [3, 9, 64], q, w, true);
            let eight = Array::scalar_like(8.0, &c.x).unwrap();
            c.x = ops::multiply(&c.x, &eight).unwrap().astype(x).unwrap();
            c.check(format!("x {x}, scales {w}"));
        }
    }
}

on_each_device! {
    fn strided_biases_and_those_of_other_types_have_the_stock_bits_or_are_refused() {
        let mut rng = Rng::new(6);
        let q = Quantization::default_of(mlx::quantization::Mode::Mxfp4);
        let layout = Layout::Tokens { tokens: 3, top_k: 2 };
        for dtype in DTYPES {
            let plain = call(&mut rng, layout, [4, 33, 64], q, dtype, true);
            for bias_dtype in DTYPES {
                let [gate, up] = [(); 2].map(|()| rng.array(&[4, 33], bias_dtype, 1.0));
                let biases = Some([data::strided(&gate), data::column_major(&up)]);
                let c = Call { biases, ..plain.clone() };
                if bias_dtype == dtype || dtype == Dtype::F32 {
                    c.check(format!("{dtype}, biases {bias_dtype}"));
                    continue;
                }
                let error = c.fused(Precision::Exact).unwrap_err().to_string();
                assert!(error.contains(bias_dtype.name()), "{error}");
            }
        }
    }
}

#[test]
fn biases_and_limits_that_do_not_fit_are_refused() {
    let q = Quantization::affine(32, 4);
    let shape = Layout::Rows { batch: 2, m: 1 };
    let plain = call(&mut Rng::new(9), shape, [2, 8, 32], q, Dtype::F32, true);
    let ones = |shape: &[i32]| ops::ones(shape, Dtype::F32).unwrap();
    let refused = |c: Call, words: &[&str]| {
        let error = c.fused(Precision::Exact).unwrap_err().to_string();
        for word in words.iter().chain(&["[gather_qmm_swiglu]"]) {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    };
    for shape in [vec![8], vec![2, 9], vec![3, 8], vec![2, 1, 8], vec![]] {
        let biases = Some([ones(&[2, 8]), ones(&shape)]);
        refused(Call { biases, ..plain.clone() }, &["bias of up", "(2,8)"]);
    }
    for (alpha, limit) in [(f32::NAN, 7.0), (f32::INFINITY, 7.0), (1.0, f32::NAN), (1.0, -1.0)] {
        let activation = Activation::ClippedSwiglu { alpha, limit };
        refused(Call { activation, ..plain.clone() }, &["alpha", "limit"]);
    }
}

#[test]
fn expert_that_is_not_there_is_an_error() {
    let q = Quantization::affine(32, 4);
    let shape = Layout::Rows { batch: 2, m: 1 };
    let plain = call(&mut Rng::new(9), shape, [2, 8, 32], q, Dtype::F32, true);
    let rhs = Some(data::array(&[1u32, 9], &[2]));
    let outside = Call { rhs, ..plain.clone() };
    let error = outside.fused(Precision::Exact).unwrap_err().to_string();
    assert!(error.contains("rhs_indices must lie from 0 to 1, got values from 1 to 9"), "{error}");
    plain.check("after the error");
}

#[test]
fn weights_of_a_mode_without_biases_are_refused_with_some() {
    let q = Quantization::default_of(mlx::quantization::Mode::Mxfp4);
    let shape = Layout::Rows { batch: 2, m: 1 };
    let mut c = call(&mut Rng::new(10), shape, [2, 8, 32], q, Dtype::Bf16, true);
    c.gate.biases = Some(c.gate.scales.clone());
    let error = c.fused(Precision::Exact).unwrap_err();
    assert!(error.to_string().contains("must be null"), "{error}");
}

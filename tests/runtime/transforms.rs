//! Gradients, vectorisation and export of the primitives: through the stock ops.
//!
//! Stock `gather_qmm` has neither `jvp` nor `vmap`, so those are held against a finite difference
//! and against a loop.

use mlx::primitives::{Glu, Precision, Scoring, gather_qmm_combine, gather_qmm_swiglu};
use mlx::quantization::{Quantization, QuantizedWeight, gather_qmm};
use mlx::transforms::{Imported, export_function, jvp, vjp, vmap};
use mlx::{Array, Dtype, ops, primitives, quantization};

use crate::support::alone::alone;
use crate::support::bits::{assert_close, assert_lively, assert_same_bits};
use crate::support::data::{self, Rng};
use crate::support::route::route;

struct Weights {
    gate: QuantizedWeight,
    up: QuantizedWeight,
    rhs: Array,
}

fn weights(rng: &mut Rng) -> (Array, Weights) {
    let q = Quantization::affine(32, 4);
    let gate = rng.experts([3, 12, 64], q, Dtype::F32, true);
    let up = rng.experts([3, 12, 64], q, Dtype::F32, true);
    let x = rng.array(&[4, 2, 64], Dtype::F32, 1.0);
    (x, Weights { gate, up, rhs: data::array(&[2u32, 0, 1, 2], &[4]) })
}

fn fused(x: &Array, w: &Weights) -> mlx::Result<Array> {
    gather_qmm_swiglu(
        x,
        Glu::new(&w.gate, &w.up),
        None,
        Some(&w.rhs),
        true,
        false,
        Precision::Exact,
    )
}

fn stock(x: &Array, w: &Weights) -> mlx::Result<Array> {
    let gate = gather_qmm(x, &w.gate, None, Some(&w.rhs), true, false)?;
    let up = gather_qmm(x, &w.up, None, Some(&w.rhs), true, false)?;
    ops::swiglu(&gate, &up)
}

/// The same seed gives the same weights, so each closure may own its copy.
macro_rules! both {
    ($seed:expr, $f:ident) => {{
        let (_, w) = weights(&mut Rng::new($seed));
        move |inputs: &[Array]| Ok(vec![$f(&inputs[0], &w)?])
    }};
}

#[test]
fn swiglu_gradient_is_the_stock_gradient() {
    let mut rng = Rng::new(91);
    let (x, _) = weights(&mut rng);
    let cotangent = rng.array(&[4, 2, 12], Dtype::F32, 1.0);
    let got = vjp(both!(91, fused), &[x.clone()], &[cotangent.clone()]).unwrap();
    let expected = vjp(both!(91, stock), &[x.clone()], &[cotangent]).unwrap();
    assert_lively(&expected[0], "gradient");
    assert_same_bits(&got[0], &expected[0], "vjp");

    let tangent = rng.array(&[4, 2, 64], Dtype::F32, 1.0);
    let got = jvp(both!(91, fused), &[x.clone()], std::slice::from_ref(&tangent)).unwrap();
    let step = Array::scalar(1.0f32 / 64.0).unwrap();
    let (_, w) = weights(&mut Rng::new(91));
    let shift = ops::multiply(&tangent, &step).unwrap();
    let above = stock(&ops::add(&x, &shift).unwrap(), &w).unwrap();
    let below = stock(&ops::subtract(&x, &shift).unwrap(), &w).unwrap();
    let slope = ops::subtract(&above, &below).unwrap();
    let two_steps = Array::scalar(2.0f32 / 64.0).unwrap();
    assert_close(&got[0], &ops::divide(&slope, &two_steps).unwrap(), 1e-2, "jvp");
}

#[test]
fn vectorised_primitives_equal_a_loop() {
    let mut rng = Rng::new(92);
    let (_, w) = weights(&mut rng);
    let xs = rng.array(&[3, 4, 2, 64], Dtype::F32, 1.0);
    let got = vmap(both!(92, fused), &[xs.clone()], &[0], &[0]).unwrap();
    let alone: Vec<Array> = (0..3)
        .map(|i| {
            let x = ops::squeeze(&ops::slice_axis(&xs, 0, i, i + 1).unwrap(), &[0]).unwrap();
            fused(&x, &w).unwrap()
        })
        .collect();
    assert_close(&got[0], &ops::stack(&alone, 0).unwrap(), 1e-5, "swiglu");

    let routed = |inputs: &[Array]| {
        let (indices, scores) = route(&inputs[0], 2, true, Scoring::Softmax)?;
        Ok(vec![indices, scores])
    };
    let logits = rng.array(&[3, 5, 8], Dtype::F32, 1.0);
    let got = vmap(routed, &[logits.clone()], &[0], &[0, 0]).unwrap();
    let (indices, scores) = route(&logits, 2, true, Scoring::Softmax).unwrap();
    assert_same_bits(&got[0], &indices, "router indices");
    assert_same_bits(&got[1], &scores, "router scores");
}

#[test]
fn combine_and_matmul_gradients_are_the_stock_gradients() {
    let q = Quantization::affine(32, 4);
    let down = || Rng::new(93).experts([4, 12, 64], q, Dtype::F32, true);
    let indices = || data::array(&[3u32, 1, 0, 2], &[2, 2]);
    let mut rng = Rng::new(94);
    let x = rng.array(&[2, 2, 1, 64], Dtype::F32, 1.0);
    let scores = ops::softmax(&rng.array(&[2, 2], Dtype::F32, 1.0), -1, true).unwrap();
    let cotangent = rng.array(&[2, 12], Dtype::F32, 1.0);
    let (d, i) = (down(), indices());
    let fused = move |inputs: &[Array]| {
        Ok(vec![gather_qmm_combine(&inputs[0], &d, None, &i, &inputs[1], Precision::Exact)?])
    };
    let (d, i) = (down(), indices());
    let stock = move |inputs: &[Array]| {
        let y = gather_qmm(&inputs[0], &d, None, Some(&i), true, false)?;
        let y = ops::squeeze(&y, &[-2])?;
        let y = ops::multiply(&y, &ops::expand_dims(&inputs[1], &[-1])?)?;
        Ok(vec![ops::sum(&y, &[-2], false)?])
    };
    let primals = [x, scores];
    let got = vjp(fused, &primals, std::slice::from_ref(&cotangent)).unwrap();
    let expected = vjp(stock, &primals, &[cotangent]).unwrap();
    assert_same_bits(&got[0], &expected[0], "combine, x");
    assert_same_bits(&got[1], &expected[1], "combine, scores");

    let matrix = || crate::primitives::matrix_for_tests(95);
    let x = rng.array(&[3, 64], Dtype::F32, 1.0);
    let cotangent = rng.array(&[3, 12], Dtype::F32, 1.0);
    let w = matrix();
    let fused = move |i: &[Array]| {
        Ok(vec![primitives::quantized_matmul(&i[0], &w, true, Precision::Exact)?])
    };
    let w = matrix();
    let stock = move |i: &[Array]| Ok(vec![quantization::quantized_matmul(&i[0], &w, true)?]);
    let got = vjp(fused, std::slice::from_ref(&x), std::slice::from_ref(&cotangent)).unwrap();
    let expected = vjp(stock, &[x], &[cotangent]).unwrap();
    assert_same_bits(&got[0], &expected[0], "quantized_matmul");
}

alone! {
    // Alone, because MLX gives an imported graph the first stream it finds, whichever thread's it is.
    fn exported_primitives_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swiglu.mlxfn");
        let (x, w) = weights(&mut Rng::new(96));
        let exported = export_function(&path, both!(96, fused), std::slice::from_ref(&x));
        if !mlx::build_info().patches.iter().any(|p| p.contains("export")) {
            // An MLX that we did not patch does not know our primitives; it has to say so.
            let error = exported.unwrap_err().to_string();
            assert!(error.contains("GatherQMMSwiGLU"), "{error}");
            return;
        }
        exported.unwrap();
        // SAFETY: the file was written above, and its graph takes no indices.
        let imported = unsafe { Imported::open(&path) }.unwrap();
        let got = imported.call(&[x.clone()]).unwrap();
        assert_same_bits(&got[0], &fused(&x, &w).unwrap(), "imported");
    }
}

alone! {
    /// What nothing else asks for is computed with what depends on it.
    fn depends_computes_both() {
        let mut rng = Rng::new(77);
        let a = rng.array(&[3, 4], Dtype::F32, 1.0);
        let twice = ops::add(&a, &a).unwrap();
        let other = ops::exp(&a).unwrap();
        let after = ops::depends(&twice, [&other]).unwrap();
        assert!(!other.is_available());
        after.eval().unwrap();
        assert!(other.is_available());
        assert_same_bits(&after, &twice, "the values");
        let alone = ops::depends(&twice, []).unwrap();
        assert_same_bits(&alone, &twice, "on nothing");
    }
}

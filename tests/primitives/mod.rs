//! Every fused primitive against the stock ops it replaces.

mod attention_parts;
mod attention_rows;
mod cache_append;
mod combine;
mod embedding;
mod empty;
mod extremes;
mod fast;
mod gated_delta;
mod quantized;
mod registry;
mod router;
mod short_conv;
mod step;
mod swiglu;
mod swiglu_mlp;

use mlx::primitives::{
    Activation, Ask, GatherQmmCombine, GatherQmmSwiglu, Precision, QuantizedMatmul, Setting,
    supports,
};
use mlx::quantization::Quantization;
use mlx::{Array, Dtype, ops};

/// Whether `primitive` is fused here. On the CPU all of them are, for everything that is tested: a
/// refusal fails. Elsewhere, and on a Mac, where the CPU has Accelerate, a refusal needs a reason and skips the case.
fn fused(ask: &dyn Ask, dtype: Dtype, precision: Precision) -> bool {
    let device = mlx::default_device();
    match supports(ask, &Setting { device, dtype, precision }) {
        Ok(()) => true,
        Err(reason) => {
            assert!(!reason.is_empty());
            let expected = device == mlx::Device::Gpu || cfg!(target_os = "macos");
            assert!(expected, "{ask:?} refused: {reason}");
            println!("skipped: {ask:?} {dtype}: {reason}");
            false
        }
    }
}

/// The questions of this folder's products; their sizes differ from case to case.
mod asks {
    use super::*;

    const EXPERTS: i32 = 4;
    const TOP_K: i32 = 2;
    const SIZE: i32 = 128;

    pub(super) fn swiglu(quantization: Quantization, transpose: bool) -> GatherQmmSwiglu {
        GatherQmmSwiglu {
            quantization,
            transpose,
            num_experts: EXPERTS,
            top_k: TOP_K,
            inner: SIZE,
            outer: SIZE,
            bias: None,
            activation: Activation::Silu,
        }
    }

    pub(super) fn combine(quantization: Quantization) -> GatherQmmCombine {
        GatherQmmCombine {
            quantization,
            transpose: true,
            num_experts: EXPERTS,
            top_k: TOP_K,
            inner: SIZE,
            outer: SIZE,
            bias: None,
        }
    }

    pub(super) fn matmul(quantization: Quantization, transpose: bool) -> QuantizedMatmul {
        QuantizedMatmul { quantization, transpose, inner: SIZE, outer: SIZE }
    }
}

/// Stock top-k routing as mlx-lm writes it.
fn stock_router(scores: &Array, top_k: i32, normalize: bool) -> (Array, Array) {
    let experts = scores.dim(-1);
    let order = ops::argpartition(scores, -top_k, -1).unwrap();
    let indices = ops::slice_axis(&order, -1, experts - top_k, experts).unwrap();
    let mut picked = ops::take_along_axis(scores, &indices, -1).unwrap();
    if normalize {
        let sum = ops::sum(&picked, &[-1], true).unwrap();
        picked = ops::divide(&picked, &sum).unwrap();
    }
    (indices, picked)
}

/// A matrix `[12, 64]`, the same for the same seed.
pub(crate) fn matrix_for_tests(seed: u64) -> mlx::quantization::QuantizedWeight {
    let q = Quantization::affine(32, 4);
    quantized::matrix(&mut crate::support::data::Rng::new(seed), [12, 64], q, Dtype::F32, true)
}

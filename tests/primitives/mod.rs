//! Every fused primitive against the stock ops it replaces.

mod combine;
mod extremes;
mod fast;
mod quantized;
mod router;
mod step;
mod swiglu;

use mlx::primitives::{Primitive, supports};
use mlx::quantization::Quantization;
use mlx::{Array, Dtype, ops};

/// Whether `primitive` is fused here. On the CPU all of them are, for everything that is tested: a
/// refusal fails. Elsewhere a refusal needs a reason and skips the case.
fn fused(primitive: Primitive, dtype: Dtype, quantization: Quantization, transpose: bool) -> bool {
    let device = mlx::default_device();
    match supports(primitive, device, dtype, quantization, transpose) {
        Ok(()) => true,
        Err(reason) => {
            assert!(!reason.is_empty());
            assert_eq!(device, mlx::Device::Gpu, "{} refused: {reason}", primitive.name());
            println!("skipped: {} {dtype} {quantization}: {reason}", primitive.name());
            false
        }
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

//! Down projection of routed experts with their weighted sum.

use zmlx_sys::ffi;

use super::{AFFINE_4, Ask, Parameters, Precision, dims, parts};
use crate::quantization::{Quantization, QuantizedWeight, check_indices, product};
use crate::{Array, Result};

/// What [`gather_qmm_combine`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatherQmmCombine {
    /// How the matrices are quantized.
    pub quantization: Quantization,
    /// Whether they are `[E, N, K]`; `[E, K, N]` otherwise.
    pub transpose: bool,
    /// Matrices to choose from, E.
    pub num_experts: i32,
    /// Experts of a token.
    pub top_k: i32,
    /// Columns of `x`, K.
    pub inner: i32,
    /// Columns of the result, N.
    pub outer: i32,
    /// Whether the projection adds a bias for each of its N columns.
    pub bias: bool,
}

impl GatherQmmCombine {
    /// 4 bits at the shapes of Qwen3-30B-A3B.
    pub(super) const TYPICAL: Self = Self {
        quantization: AFFINE_4,
        transpose: true,
        num_experts: 128,
        top_k: 8,
        inner: 768,
        outer: 2048,
        bias: false,
    };

    /// For `down` `[E, N, K]` without a bias.
    pub fn of(down: &QuantizedWeight, top_k: i32) -> Self {
        let (outer, inner) = dims(down);
        Self {
            quantization: down.quantization,
            transpose: true,
            num_experts: down.w.dim(0),
            top_k,
            inner,
            outer,
            bias: false,
        }
    }
}

impl Ask for GatherQmmCombine {
    fn primitive(&self) -> &'static str {
        "gather_qmm_combine"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
            .quantization(self.quantization)
            .with("transpose", self.transpose)
            .with("num_experts", self.num_experts)
            .with("top_k", self.top_k)
            .with("inner", self.inner)
            .with("outer", self.outer)
            .with("bias", self.bias)
    }
}

/// Down projection and weighted sum of each token's experts in one launch.
///
/// Stock: `gather_qmm(x, down, indices)`, squeeze, `· scores[.., None]`, `sum(-2)`.
///
/// - `x`: `[.., k, 1, K]`; `down`: `[E, N, K]`; `indices`: `[.., k]` `uint32`; `scores`: `[.., k]`
/// - returns `[.., N]`, dtype of `x`
///
/// # Source
/// mlx-lm `qwen3_moe.py` (`Qwen3MoeSparseMoeBlock`).
pub fn gather_qmm_combine(
    x: &Array,
    down: &QuantizedWeight,
    indices: &Array,
    scores: &Array,
    precision: Precision,
) -> Result<Array> {
    down.check("gather_qmm_combine")?;
    check_indices("gather_qmm_combine", "indices", Some(indices), &down.w)?;
    let out = Array::wrap(ffi::fused_gather_qmm_combine(
        x.raw(),
        &parts(down),
        indices.raw(),
        scores.raw(),
        &down.quantization.params(),
        precision == Precision::Fast,
    )?);
    product(x, down, out)
}

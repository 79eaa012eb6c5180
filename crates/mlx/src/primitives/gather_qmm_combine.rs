//! Down projection of routed experts with their weighted sum.

use zmlx_sys::ffi;

use super::{AFFINE_4, Ask, Parameters, Precision, dims, parts};
use crate::array::opt;
use crate::quantization::{Quantization, QuantizedWeight, check_indices, product};
use crate::{Array, Dtype, Result};

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
    /// The type of the projection's bias, if it has one.
    pub bias: Option<Dtype>,
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
        bias: None,
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
            bias: None,
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
            .bias(self.bias)
    }
}

/// Down projection and weighted sum of each token's experts in one launch.
///
/// Stock: `gather_qmm(x, down, indices)`, `+ bias[indices]`, squeeze, `· scores[.., None]`, `sum(-2)`.
///
/// - `x`: `[.., k, 1, K]`; `down`: `[E, N, K]`; `bias`: `[E, N]` of a type that promotes to that of
///   the product; `indices`: `[.., k]` `uint32`; `scores`: `[.., k]`
/// - returns `[.., N]`, dtype of `x`
///
/// # Source
/// mlx-lm `qwen3_moe.py` (`Qwen3MoeSparseMoeBlock`).
pub fn gather_qmm_combine(
    x: &Array,
    down: &QuantizedWeight,
    bias: Option<&Array>,
    indices: &Array,
    scores: &Array,
    precision: Precision,
) -> Result<Array> {
    down.check("gather_qmm_combine")?;
    check_indices("gather_qmm_combine", "indices", Some(indices), &down.w)?;
    let out = Array::wrap(ffi::fused_gather_qmm_combine(
        x.raw(),
        &parts(down),
        &opt(bias),
        indices.raw(),
        scores.raw(),
        &down.quantization.params(),
        precision == Precision::Fast,
    )?);
    match bias {
        Some(_) => Ok(out),
        None => product(x, down, out),
    }
}

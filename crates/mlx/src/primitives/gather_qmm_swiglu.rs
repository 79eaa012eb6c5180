//! Gate and up projections of routed experts with SwiGLU.

use zmlx_sys::ffi;

use super::{AFFINE_4, Activation, Ask, Glu, Parameters, Precision, dims};
use crate::array::opt;
use crate::quantization::{Quantization, QuantizedWeight, check_indices, product};
use crate::{Array, Dtype, Result};

/// What [`gather_qmm_swiglu`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatherQmmSwiglu {
    /// How both matrices are quantized.
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
    /// The type of the projections' biases, if they have any.
    pub bias: Option<Dtype>,
    /// What joins the two.
    pub activation: Activation,
}

impl GatherQmmSwiglu {
    /// 4 bits at the shapes of Qwen3-30B-A3B.
    pub(super) const TYPICAL: Self = Self {
        quantization: AFFINE_4,
        transpose: true,
        num_experts: 128,
        top_k: 8,
        inner: 2048,
        outer: 768,
        bias: None,
        activation: Activation::Silu,
    };

    /// For `gate` `[E, N, K]` without a bias and with SiLU.
    pub fn of(gate: &QuantizedWeight, top_k: i32) -> Self {
        let (outer, inner) = dims(gate);
        Self {
            quantization: gate.quantization,
            transpose: true,
            num_experts: gate.w.dim(0),
            top_k,
            inner,
            outer,
            bias: None,
            activation: Activation::Silu,
        }
    }
}

impl Ask for GatherQmmSwiglu {
    fn primitive(&self) -> &'static str {
        "gather_qmm_swiglu"
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
            .with("activation", self.activation.name())
    }
}

/// SwiGLU of each token's routed experts in one launch, silu(x·Wg[e]ᵀ) ∘ (x·Wu[e]ᵀ), other activations
/// likewise.
///
/// Stock: [`gather_qmm`](crate::quantization::gather_qmm) twice, the biases that the indices take, then
/// [`swiglu`](crate::ops::swiglu), [`geglu`](crate::ops::geglu) or
/// [`clipped_swiglu`](crate::ops::clipped_swiglu).
///
/// - `x`: `[.., M, K]` `bfloat16` | `float16` | `float32`
/// - `glu`: matrices `[E, N, K]` (`[E, K, N]` without `transpose`), biases `[E, N]`
/// - `lhs_indices`, `rhs_indices`: as in `gather_qmm`
/// - returns `[indices.., M, N]`, dtype of `x`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// arXiv:2002.05202; mlx-lm `switch_layers.py` (`SwitchGLU`), `activations.py` (`swiglu_oai`).
pub fn gather_qmm_swiglu(
    x: &Array,
    glu: Glu<'_>,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    transpose: bool,
    sorted: bool,
    precision: Precision,
) -> Result<Array> {
    glu.check("gather_qmm_swiglu")?;
    check_indices("gather_qmm_swiglu", "lhs_indices", lhs_indices, x)?;
    check_indices("gather_qmm_swiglu", "rhs_indices", rhs_indices, &glu.gate.w)?;
    let out = Array::wrap(ffi::fused_gather_qmm_swiglu(
        x.raw(),
        &glu.gate_parts(),
        &glu.up_parts(),
        &glu.bias_parts(),
        &glu.activation.params(),
        &opt(lhs_indices),
        &opt(rhs_indices),
        transpose,
        &glu.gate.quantization.params(),
        sorted,
        precision == Precision::Fast,
    )?);
    match glu.biases {
        Some(_) => Ok(out),
        None => product(x, glu.gate, out),
    }
}

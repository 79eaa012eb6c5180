//! Gate and up projections of routed experts with SwiGLU.

use zmlx_sys::ffi;

use super::{AFFINE_4, Activation, Ask, Parameters, Precision, dims, parts};
use crate::array::opt;
use crate::quantization::{Quantization, QuantizedWeight, check_indices, product};
use crate::{Array, Result};

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
    /// Whether the projections add a bias for each of their N columns.
    pub bias: bool,
    /// What is applied to the gate.
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
        bias: false,
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
            bias: false,
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
            .with("bias", self.bias)
            .with("activation", self.activation.name())
    }
}

/// SwiGLU of each token's routed experts in one launch: silu(x·Wg[e]ᵀ) ∘ (x·Wu[e]ᵀ).
///
/// Stock: [`gather_qmm`](crate::quantization::gather_qmm) twice, then
/// [`swiglu`](crate::ops::swiglu).
///
/// - `x`: `[.., M, K]` `bfloat16` | `float16` | `float32`
/// - `gate`, `up`: `[E, N, K]` quantized alike (`[E, K, N]` without `transpose`)
/// - `lhs_indices`, `rhs_indices`: as in `gather_qmm`
/// - returns `[indices.., M, N]`, dtype of `x`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// arXiv:2002.05202; mlx-lm `switch_layers.py` (`SwitchGLU`).
#[allow(clippy::too_many_arguments, reason = "the op's own arguments, as MLX names them")]
pub fn gather_qmm_swiglu(
    x: &Array,
    gate: &QuantizedWeight,
    up: &QuantizedWeight,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    transpose: bool,
    sorted: bool,
    precision: Precision,
) -> Result<Array> {
    if gate.quantization != up.quantization {
        return Err(crate::Error::InvalidArgument {
            message: format!(
                "[gather_qmm_swiglu] gate and up must be quantized alike, got {} and {}",
                gate.quantization, up.quantization
            ),
        });
    }
    gate.check("gather_qmm_swiglu")?;
    up.check("gather_qmm_swiglu")?;
    check_indices("gather_qmm_swiglu", "lhs_indices", lhs_indices, x)?;
    check_indices("gather_qmm_swiglu", "rhs_indices", rhs_indices, &gate.w)?;
    let out = Array::wrap(ffi::fused_gather_qmm_swiglu(
        x.raw(),
        &parts(gate),
        &parts(up),
        &opt(lhs_indices),
        &opt(rhs_indices),
        transpose,
        &gate.quantization.params(),
        sorted,
        precision == Precision::Fast,
    )?);
    product(x, gate, out)
}

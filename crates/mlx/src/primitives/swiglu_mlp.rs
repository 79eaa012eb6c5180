//! Gate and up projections of a dense feed-forward with what joins them.

use zmlx_sys::ffi;

use super::{AFFINE_4, Activation, Ask, Glu, Parameters, Precision, dims};
use crate::quantization::{Quantization, QuantizedWeight, product};
use crate::{Array, Dtype, Result};

/// What [`swiglu_mlp`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SwigluMlp {
    /// How both matrices are quantized.
    pub quantization: Quantization,
    /// Columns of `x`, K.
    pub inner: i32,
    /// Columns of the result, N.
    pub outer: i32,
    /// The type of the projections' biases, if they have any.
    pub bias: Option<Dtype>,
    /// What joins the two.
    pub activation: Activation,
}

impl SwigluMlp {
    /// 4 bits at the shape of Qwen3-8B.
    pub(super) const TYPICAL: Self = Self {
        quantization: AFFINE_4,
        inner: 4096,
        outer: 12288,
        bias: None,
        activation: Activation::Silu,
    };

    /// For `gate` `[N, K]` without a bias and with SiLU.
    pub fn of(gate: &QuantizedWeight) -> Self {
        let (outer, inner) = dims(gate);
        let activation = Activation::Silu;
        Self { quantization: gate.quantization, inner, outer, bias: None, activation }
    }
}

impl Ask for SwigluMlp {
    fn primitive(&self) -> &'static str {
        "swiglu_mlp"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
            .quantization(self.quantization)
            .with("inner", self.inner)
            .with("outer", self.outer)
            .bias(self.bias)
            .with("activation", self.activation.name())
    }
}

/// A dense gated feed-forward up to its down projection, in one launch: silu(x·Wgᵀ) ∘ (x·Wuᵀ), other
/// activations likewise.
///
/// Stock: [`quantized_matmul`](crate::quantization::quantized_matmul) twice, their biases, then
/// [`swiglu`](crate::ops::swiglu), [`geglu`](crate::ops::geglu) or
/// [`clipped_swiglu`](crate::ops::clipped_swiglu).
///
/// - `x`: `[.., K]` `bfloat16` | `float16` | `float32`; `glu`: matrices `[N, K]`, biases `[N]`
/// - returns `[.., N]`, dtype of `x`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// arXiv:2002.05202; mlx-lm `qwen3.py` (`MLP`).
pub fn swiglu_mlp(x: &Array, glu: Glu<'_>, precision: Precision) -> Result<Array> {
    glu.check("swiglu_mlp")?;
    let out = Array::wrap(ffi::fused_swiglu_mlp(
        x.raw(),
        &glu.gate_parts(),
        &glu.up_parts(),
        &glu.bias_parts(),
        &glu.activation.params(),
        &glu.gate.quantization.params(),
        precision == Precision::Fast,
    )?);
    match glu.biases {
        Some(_) => Ok(out),
        None => product(x, glu.gate, out),
    }
}

//! Gated feed-forwards: two projections of the same input and what joins them.

use zmlx_sys::{UniquePtr, ffi};

use super::parts;
use crate::array::array_vec;
use crate::quantization::QuantizedWeight;
use crate::{Array, Error, Result};

/// What joins the gate and up projections of a gated feed-forward (arXiv:2002.05202).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// `silu(gate) · up`.
    #[default]
    Silu,
    /// `gelu(gate) · up`, by the approximation with tanh.
    GeluTanh,
    /// `(clip(up) + 1) · g · sigmoid(alpha · g)` with `g = min(gate, limit)`; gpt-oss's.
    ClippedSwiglu {
        /// Slope of the sigmoid.
        alpha: f32,
        /// The gate's largest value, and that of `up` either way.
        limit: f32,
    },
}

impl Activation {
    /// Name of the activation.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::ClippedSwiglu { .. } => "clipped_swiglu",
        }
    }

    pub(super) fn params(self) -> ffi::GluParams {
        let (alpha, limit) = match self {
            Activation::ClippedSwiglu { alpha, limit } => (alpha, limit),
            _ => (0.0, 0.0),
        };
        ffi::GluParams { activation: self.name().to_owned(), alpha, limit }
    }
}

/// The gate and up projections of a feed-forward and what joins them.
#[derive(Debug, Clone, Copy)]
pub struct Glu<'a> {
    /// The matrices of the gate, `[.., N, K]`.
    pub gate: &'a QuantizedWeight,
    /// Those of the other projection, quantized alike.
    pub up: &'a QuantizedWeight,
    /// What the two projections add, `[.., N]` each, of a type that promotes to that of the product.
    pub biases: Option<[&'a Array; 2]>,
    /// What joins them.
    pub activation: Activation,
}

impl<'a> Glu<'a> {
    /// SwiGLU without biases.
    pub fn new(gate: &'a QuantizedWeight, up: &'a QuantizedWeight) -> Self {
        Self { gate, up, biases: None, activation: Activation::Silu }
    }

    pub(super) fn check(&self, op: &str) -> Result<()> {
        let (gate, up) = (self.gate.quantization, self.up.quantization);
        if gate != up {
            let reason = format!("gate and up must be quantized alike, got {gate} and {up}");
            return Err(Error::InvalidArgument { message: format!("[{op}] {reason}") });
        }
        self.gate.check(op)?;
        self.up.check(op)
    }

    pub(super) fn gate_parts(&self) -> UniquePtr<ffi::ArrayVec> {
        parts(self.gate)
    }

    pub(super) fn up_parts(&self) -> UniquePtr<ffi::ArrayVec> {
        parts(self.up)
    }

    pub(super) fn bias_parts(&self) -> UniquePtr<ffi::ArrayVec> {
        array_vec(self.biases.into_iter().flatten())
    }
}

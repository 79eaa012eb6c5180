use mlx::{Array, ops, primitives};

use crate::error::Result;

/// What joins the gate and up projections of a feed-forward (arXiv:2002.05202).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
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
    /// - `gate`, `up`: of one shape, which is returned.
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx-lm `activations.py`, `gemma4_text.py` (`geglu`).
    pub fn gated(self, gate: &Array, up: &Array) -> Result<Array> {
        Ok(match self {
            Self::Silu => ops::swiglu(gate, up)?,
            Self::GeluTanh => ops::geglu(gate, up)?,
            Self::ClippedSwiglu { alpha, limit } => ops::clipped_swiglu(gate, up, alpha, limit)?,
        })
    }

    /// As primitives are asked.
    pub(super) fn asked(self) -> primitives::Activation {
        match self {
            Self::Silu => primitives::Activation::Silu,
            Self::GeluTanh => primitives::Activation::Gelu,
            Self::ClippedSwiglu { .. } => primitives::Activation::ClippedSwiglu,
        }
    }
}

/// What a gated feed-forward is made of besides its sizes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GluOptions {
    /// Whether all three projections have biases.
    pub bias: bool,
    /// What joins gate and up.
    pub activation: Activation,
}

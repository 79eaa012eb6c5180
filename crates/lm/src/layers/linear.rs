use mlx::quantization::{self, QuantizedWeight};
use mlx::{Array, ops, primitives};

use super::{Fusion, Path, Weight};
use crate::error::Result;
use crate::weights::Scope;

/// `x · Wᵀ`.
#[derive(Debug, Clone)]
pub struct Linear {
    pub(crate) weight: Weight,
    pub(crate) path: Path,
}

impl Linear {
    /// Takes `[out_dims, in_dims]` weights.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load(scope: &Scope<'_>, in_dims: i32, out_dims: i32) -> Result<Self> {
        Ok(Self { weight: Weight::load(scope, &[out_dims, in_dims])?, path: Path::Stock })
    }

    /// - `x`: `[.., K]`; returns `[.., N]`.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        match &self.weight {
            Weight::Dense(w) => Ok(ops::matmul(x, &ops::transpose(w, &[1, 0])?)?),
            Weight::Quantized(q) => quantized_linear(x, q, self.path),
        }
    }

    /// Its weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
}

/// `x · Wᵀ` with a packed `W`, on the path given.
pub(super) fn quantized_linear(x: &Array, w: &QuantizedWeight, path: Path) -> Result<Array> {
    Ok(match path {
        Path::Stock => quantization::quantized_matmul(x, w, true)?,
        Path::Fused(Fusion { precision, .. }) => {
            primitives::quantized_matmul(x, w, true, precision)?
        }
    })
}

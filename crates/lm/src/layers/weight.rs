use mlx::Array;
use mlx::quantization::QuantizedWeight;

use crate::error::Result;
use crate::weights::Scope;

/// A matrix, or a stack of them, dense or quantised along its last axis.
#[derive(Debug, Clone)]
pub enum Weight {
    /// `[.., N, K]` floats.
    Dense(Array),
    /// Packed along `K`.
    Quantized(QuantizedWeight),
}

impl Weight {
    /// Takes `weight`, and `scales` and `biases` where the module is quantised: this rank's share, as the scope is
    /// split. `shape` is the dense one of all ranks together.
    ///
    /// # Errors
    /// `MissingWeight`, `WeightShape`, `WeightDtype`; `Checkpoint` when ranks cannot share it.
    pub fn load(scope: &Scope<'_>, shape: &[i32]) -> Result<Self> {
        match scope.quantization(shape.last().copied().unwrap_or(1))? {
            None => Ok(Self::Dense(scope.take_dense(shape)?)),
            Some(quantization) => Ok(Self::Quantized(scope.take_quantized(shape, quantization)?)),
        }
    }

    /// Bytes of all its arrays.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Dense(w) => w.nbytes() as u64,
            Self::Quantized(q) => {
                let biases = q.biases.as_ref().map_or(0, Array::nbytes);
                (q.w.nbytes() + q.scales.nbytes() + biases) as u64
            }
        }
    }

    /// The quantised form.
    pub fn quantized(&self) -> Option<&QuantizedWeight> {
        match self {
            Self::Dense(_) => None,
            Self::Quantized(q) => Some(q),
        }
    }
}

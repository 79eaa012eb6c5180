use mlx::quantization::{Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype};

use crate::error::{Error, Result};
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
    /// Takes `weight`, and `scales` and `biases` where the module is quantised. `shape` is the dense one.
    ///
    /// # Errors
    /// `MissingWeight`, `WeightShape`, `WeightDtype`, `Checkpoint`.
    pub fn load(scope: &Scope<'_>, shape: &[i32]) -> Result<Self> {
        let weight = Self::take(scope, shape)?;
        let format = match &weight {
            Self::Dense(w) => w.dtype().to_string(),
            Self::Quantized(q) => q.quantization.to_string(),
        };
        let parameters = shape.iter().map(|n| *n as u64).product();
        scope.record(parameters, weight.bytes(), format, shape.len() == 3);
        Ok(weight)
    }

    fn take(scope: &Scope<'_>, shape: &[i32]) -> Result<Self> {
        let (rows, in_dims) = shape.split_at(shape.len() - 1);
        let in_dims = in_dims[0];
        let Some(quantization) = scope.quantization(in_dims)? else {
            return Ok(Self::Dense(scope.take_float("weight", shape)?));
        };
        let Quantization { group_size, bits, mode } = quantization;
        if in_dims % group_size != 0 || i64::from(in_dims) * i64::from(bits) % 32 != 0 {
            return Err(Error::checkpoint(
                scope.path(),
                format!(
                    "{in_dims} inputs do not divide into groups of {group_size} at {bits} bits"
                ),
            ));
        }
        let packed = (i64::from(in_dims) * i64::from(bits) / 32) as i32;
        let w = scope.take("weight", &[rows, &[packed]].concat())?;
        if w.dtype() != Dtype::U32 {
            return Err(scope.dtype_error("weight", "uint32", &w));
        }
        let groups = [rows, &[in_dims / group_size]].concat();
        let (scales, biases) = if mode == Mode::Affine {
            (scope.take_float("scales", &groups)?, Some(scope.take_float("biases", &groups)?))
        } else {
            let scales = scope.take("scales", &groups)?;
            if scales.dtype() != Dtype::U8 {
                return Err(scope.dtype_error("scales", "uint8", &scales));
            }
            (scales, None)
        };
        Ok(Self::Quantized(QuantizedWeight { w, scales, biases, quantization }))
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

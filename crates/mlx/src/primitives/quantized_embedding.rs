//! Rows of a quantized table.

use zmlx_sys::ffi;

use super::{AFFINE_4, Ask, Parameters, parts};
use crate::quantization::{Quantization, QuantizedWeight};
use crate::{Array, Result};

/// What [`quantized_embedding`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantizedEmbedding {
    /// How the table is quantized.
    pub quantization: Quantization,
}

impl QuantizedEmbedding {
    /// 4 bits.
    pub(super) const TYPICAL: Self = Self { quantization: AFFINE_4 };
}

impl Ask for QuantizedEmbedding {
    fn primitive(&self) -> &'static str {
        "quantized_embedding"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new().quantization(self.quantization)
    }
}

/// [`take`](crate::ops::take) of a table's packed rows, dequantized, in one launch.
///
/// - `tokens`: `[..]` `uint32`; `table`: `[V, D]`, affine
/// - returns `[.., D]`, dtype of the scales
///
/// # Errors
/// `InvalidArgument` at the call, also for a token that the table does not have; `Unsupported` without the feature, `Backend`
/// at `eval`.
pub fn quantized_embedding(tokens: &Array, table: &QuantizedWeight) -> Result<Array> {
    table.check("quantized_embedding")?;
    tokens.require_index("quantized_embedding", table.w.dim(0))?;
    let q = table.quantization.params();
    Ok(Array::wrap(ffi::fused_quantized_embedding(tokens.raw(), &parts(table), &q)?))
}

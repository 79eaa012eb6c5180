//! Root-mean-square normalisation.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::{Array, Result};

/// What [`rms_norm`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Length of the last axis, D.
    pub dims: i32,
    /// Whether there is a weight.
    pub weight: bool,
}

impl RmsNorm {
    /// Qwen3-30B-A3B's.
    pub(super) const TYPICAL: Self = Self { dims: 2048, weight: true };
}

impl Ask for RmsNorm {
    fn primitive(&self) -> &'static str {
        "rms_norm"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new().with("dims", self.dims).with("weight", self.weight)
    }
}

/// [`fast::rms_norm`](crate::fast::rms_norm) in one launch.
///
/// - `x`: `[.., D]` `bfloat16` | `float16` | `float32`, any strides; `weight`: `[D]`
/// - returns `[.., D]`, dtype of `x` promoted with that of `weight`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// arXiv:1910.07467.
pub fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    Ok(Array::wrap(ffi::fused_rms_norm(x.raw(), weight.raw(), eps)?))
}

//! The residual stream and the norm behind it.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::array::from_array_vec;
use crate::{Array, Dtype, Error, Result};

/// What [`add_rms_norm`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AddRmsNorm {
    /// Length of the last axis, D.
    pub dims: i32,
    /// Type of the weight.
    pub weight: Dtype,
}

impl AddRmsNorm {
    /// Qwen3-30B-A3B's.
    pub(super) const TYPICAL: Self = Self { dims: 2048, weight: Dtype::Bf16 };
}

impl Ask for AddRmsNorm {
    fn primitive(&self) -> &'static str {
        "add_rms_norm"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new().with("dims", self.dims).with("weight", self.weight.name())
    }
}

/// `x + r`, and [`fast::rms_norm`](crate::fast::rms_norm) of it, in one launch.
///
/// - `x`, `r`: `[.., D]` `bfloat16` | `float16` | `float32`, any strides; `weight`: `[D]`; all of one dtype
/// - returns the sum and its norm, `[.., D]`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// arXiv:1910.07467.
pub fn add_rms_norm(x: &Array, r: &Array, weight: &Array, eps: f32) -> Result<(Array, Array)> {
    let both = from_array_vec(&*ffi::fused_add_rms_norm(x.raw(), r.raw(), weight.raw(), eps)?)?;
    let [sum, normed]: [Array; 2] = both.try_into().map_err(|_| Error::InvalidArgument {
        message: "[add_rms_norm] expected two outputs".to_owned(),
    })?;
    Ok((sum, normed))
}

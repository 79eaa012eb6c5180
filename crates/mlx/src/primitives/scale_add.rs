//! A scaled sum.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::{Array, Result};

/// What [`scale_add`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleAdd {
    /// The factor of `x`.
    pub scale: f32,
}

impl ScaleAdd {
    /// Half of `x`.
    pub(super) const TYPICAL: Self = Self { scale: 0.5 };
}

impl Ask for ScaleAdd {
    fn primitive(&self) -> &'static str {
        "scale_add"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new().with("scale", self.scale)
    }
}

/// `x · scale + y` in one launch.
///
/// Stock: [`multiply`](crate::ops::multiply), [`add`](crate::ops::add).
///
/// - `x`, `y`: one shape, `bfloat16` | `float16` | `float32`; returns the same
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
pub fn scale_add(x: &Array, y: &Array, scale: f32) -> Result<Array> {
    Ok(Array::wrap(ffi::fused_scale_add(x.raw(), y.raw(), scale)?))
}

//! New arrays.

use zmlx_sys::ffi;

use crate::{Array, Dtype, Result};

/// Zeros.
pub fn zeros(shape: &[i32], dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::zeros(shape, dtype.id())?))
}

/// Ones.
pub fn ones(shape: &[i32], dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::ones(shape, dtype.id())?))
}

/// `value`, broadcast to `shape` and converted to `dtype`.
pub fn full(shape: &[i32], value: &Array, dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::full(shape, value.raw(), dtype.id())?))
}

/// `start`, `start + step`, ... below `stop`; one dimension.
pub fn arange(start: f64, stop: f64, step: f64, dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::arange(start, stop, step, dtype.id())?))
}

/// `[n, m]` with ones on and below diagonal `k`, zeros above.
pub fn tri(n: i32, m: i32, k: i32, dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::tri(n, m, k, dtype.id())?))
}

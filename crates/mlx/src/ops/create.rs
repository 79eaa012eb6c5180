//! New arrays.

use zmlx_sys::ffi;

use crate::bounds::Bounds;
use crate::{Array, Dtype, Error, Result};

/// Zeros.
pub fn zeros(shape: &[i32], dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::zeros(shape, dtype.id())?).within(Some(Bounds { lo: 0, hi: 0 })))
}

/// Ones.
pub fn ones(shape: &[i32], dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::ones(shape, dtype.id())?).within(Some(Bounds { lo: 1, hi: 1 })))
}

/// `value`, broadcast to `shape` and converted to `dtype`.
pub fn full(shape: &[i32], value: &Array, dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::full(shape, value.raw(), dtype.id())?).within(value.bounds()))
}

/// `start`, `start + step`, ... below `stop`; one dimension.
pub fn arange(start: f64, stop: f64, step: f64, dtype: Dtype) -> Result<Array> {
    let a = Array::wrap(ffi::arange(start, stop, step, dtype.id())?);
    let whole = |v: f64| (v.fract() == 0.0 && v.abs() < f64::from(i32::MAX)).then_some(v as i64);
    let ends = whole(start).zip(whole(step)).filter(|_| a.size() > 0).map(|(first, step)| {
        let last = first + step * (a.size() as i64 - 1);
        Bounds { lo: first.min(last), hi: first.max(last) }
    });
    Ok(a.within(ends))
}

/// `[n, m]` with ones on and below diagonal `k`, zeros above.
pub fn tri(n: i32, m: i32, k: i32, dtype: Dtype) -> Result<Array> {
    if n < 0 || m < 0 || k.checked_neg().is_none() || m.checked_sub(k).is_none() {
        let message =
            format!("[tri] expected lengths from 0 and a small diagonal, got {n}, {m}, {k}");
        return Err(Error::InvalidArgument { message });
    }
    Ok(Array::wrap(ffi::tri(n, m, k, dtype.id())?))
}

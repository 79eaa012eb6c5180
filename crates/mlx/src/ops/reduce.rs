//! Reductions. `axes` empty means all axes; `keepdims` leaves reduced axes as length 1.

use zmlx_sys::ffi;

use crate::bounds::Bounds;
use crate::{Array, Dtype, Result};

macro_rules! reduce {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* pub fn $name(a: &Array, axes: &[i32], keepdims: bool) -> Result<Array> {
            Ok(Array::wrap(ffi::$name(a.raw(), axes, keepdims)?))
        })*
    };
}

reduce! {
    /// Mean; integers become `float32`.
    mean;
    /// Product.
    prod;
    /// Whether all elements are true; `bool`.
    all;
    /// Whether any element is true; `bool`.
    any;
    /// ln Σ eᵃ, without overflow.
    logsumexp;
}

/// Sum.
pub fn sum(a: &Array, axes: &[i32], keepdims: bool) -> Result<Array> {
    let out = Array::wrap(ffi::sum(a.raw(), axes, keepdims)?);
    let counts = || Some(Bounds { lo: 0, hi: i64::try_from(a.size() / out.size().max(1)).ok()? });
    let bounds = if a.dtype() == Dtype::Bool { counts() } else { None };
    Ok(out.within(bounds))
}

/// Largest element.
pub fn max(a: &Array, axes: &[i32], keepdims: bool) -> Result<Array> {
    let bounds = if a.size() > 0 { a.bounds() } else { None };
    Ok(Array::wrap(ffi::max(a.raw(), axes, keepdims)?).within(bounds))
}

/// Smallest element.
pub fn min(a: &Array, axes: &[i32], keepdims: bool) -> Result<Array> {
    let bounds = if a.size() > 0 { a.bounds() } else { None };
    Ok(Array::wrap(ffi::min(a.raw(), axes, keepdims)?).within(bounds))
}

/// Index of the largest element along `axis` (the first of equals); `uint32`.
pub fn argmax(a: &Array, axis: i32, keepdims: bool) -> Result<Array> {
    Ok(Array::wrap(ffi::argmax(a.raw(), axis, keepdims)?).within(Bounds::of_axis(a, axis)))
}

/// Index of the smallest element along `axis` (the first of equals); `uint32`.
pub fn argmin(a: &Array, axis: i32, keepdims: bool) -> Result<Array> {
    Ok(Array::wrap(ffi::argmin(a.raw(), axis, keepdims)?).within(Bounds::of_axis(a, axis)))
}

/// Whether two arrays have the same shape and values; with `equal_nan`, NaN equals NaN.
/// Evaluates both.
pub fn array_equal(a: &Array, b: &Array, equal_nan: bool) -> Result<bool> {
    Array::wrap(ffi::array_equal(a.raw(), b.raw(), equal_nan)?).item::<bool>()
}

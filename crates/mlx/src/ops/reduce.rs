//! Reductions. `axes` empty means all axes; `keepdims` leaves reduced axes as length 1.

use zmlx_sys::ffi;

use crate::{Array, Result};

macro_rules! reduce {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* pub fn $name(a: &Array, axes: &[i32], keepdims: bool) -> Result<Array> {
            Ok(Array::wrap(ffi::$name(a.raw(), axes, keepdims)?))
        })*
    };
}

reduce! {
    /// Sum.
    sum;
    /// Mean; integers become `float32`.
    mean;
    /// Largest element.
    max;
    /// Smallest element.
    min;
    /// Product.
    prod;
    /// Whether all elements are true; `bool`.
    all;
    /// Whether any element is true; `bool`.
    any;
    /// ln Σ eᵃ, without overflow.
    logsumexp;
}

/// Index of the largest element along `axis` (the first of equals); `uint32`.
pub fn argmax(a: &Array, axis: i32, keepdims: bool) -> Result<Array> {
    Ok(Array::wrap(ffi::argmax(a.raw(), axis, keepdims)?))
}

/// Index of the smallest element along `axis` (the first of equals); `uint32`.
pub fn argmin(a: &Array, axis: i32, keepdims: bool) -> Result<Array> {
    Ok(Array::wrap(ffi::argmin(a.raw(), axis, keepdims)?))
}

/// Whether two arrays have the same shape and values; with `equal_nan`, NaN equals NaN.
/// Evaluates both.
pub fn array_equal(a: &Array, b: &Array, equal_nan: bool) -> Result<bool> {
    Array::wrap(ffi::array_equal(a.raw(), b.raw(), equal_nan)?).item::<bool>()
}

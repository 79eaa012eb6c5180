//! Elementwise operations and the matrix product.

use zmlx_sys::ffi;

use crate::{Array, Dtype, Result};

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* pub fn $name(a: &Array) -> Result<Array> {
            Ok(Array::wrap(ffi::$name(a.raw())?))
        })*
    };
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* pub fn $name(a: &Array, b: &Array) -> Result<Array> {
            Ok(Array::wrap(ffi::$name(a.raw(), b.raw())?))
        })*
    };
}

unary! {
    /// |a|.
    abs;
    /// -a.
    negative;
    /// eᵃ.
    exp;
    /// Natural logarithm.
    log;
    /// ln(1 + a).
    log1p;
    /// √a.
    sqrt;
    /// 1/√a.
    rsqrt;
    /// a².
    square;
    /// Sine, radians.
    sin;
    /// Cosine, radians.
    cos;
    /// Hyperbolic tangent.
    tanh;
    /// 1 / (1 + e⁻ᵃ).
    sigmoid;
    /// Error function.
    erf;
    /// Largest integer not above a.
    floor;
    /// Smallest integer not below a.
    ceil;
    /// Nearest integer, halves to even.
    round;
    /// Logical not; `bool`.
    logical_not;
    /// Whether an element is NaN; `bool`.
    isnan;
    /// Whether an element is infinite; `bool`.
    isinf;
    /// The same values, with no gradient flowing back.
    stop_gradient;
}

binary! {
    /// a + b.
    add;
    /// a - b.
    subtract;
    /// a · b, elementwise.
    multiply;
    /// a / b; integers become `float32`.
    divide;
    /// ⌊a / b⌋.
    floor_divide;
    /// Remainder of a / b with the sign of b.
    remainder;
    /// aᵇ.
    power;
    /// Larger of the two; NaN wins.
    maximum;
    /// Smaller of the two; NaN wins.
    minimum;
    /// ln(eᵃ + eᵇ).
    logaddexp;
    /// Matrix product: `[.., M, K]` × `[.., K, N]` → `[.., M, N]`; leading dimensions broadcast.
    matmul;
    /// a == b; `bool`.
    equal;
    /// a != b; `bool`.
    not_equal;
    /// a < b; `bool`.
    less;
    /// a <= b; `bool`.
    less_equal;
    /// a > b; `bool`.
    greater;
    /// a >= b; `bool`.
    greater_equal;
    /// Logical and; `bool`.
    logical_and;
    /// Logical or; `bool`.
    logical_or;
}

/// c + a·b, c broadcast to the product.
pub fn addmm(c: &Array, a: &Array, b: &Array) -> Result<Array> {
    Ok(Array::wrap(ffi::addmm(c.raw(), a.raw(), b.raw())?))
}

/// Elements converted to `dtype`.
pub fn astype(a: &Array, dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::astype(a.raw(), dtype.id())?))
}

/// The same bytes read as `dtype`; the last dimension scales with the element size.
pub fn view(a: &Array, dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::view(a.raw(), dtype.id())?))
}

/// `a` where `condition` is true, else `b`.
pub fn select(condition: &Array, a: &Array, b: &Array) -> Result<Array> {
    Ok(Array::wrap(ffi::select(condition.raw(), a.raw(), b.raw())?))
}

/// x · sigmoid(x), as two stock ops (mlx-lm's `silu`).
pub fn silu(a: &Array) -> Result<Array> {
    multiply(a, &sigmoid(a)?)
}

/// silu(gate) · up, as three stock ops (mlx-lm's `swiglu`; arXiv:2002.05202).
pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    multiply(&silu(gate)?, up)
}

/// Softmax along `axis`; `precise` accumulates in `float32` whatever the dtype.
pub fn softmax(a: &Array, axis: i32, precise: bool) -> Result<Array> {
    Ok(Array::wrap(ffi::softmax(a.raw(), axis, precise)?))
}

/// Running sum along `axis`, from the end when `reverse`, with each element itself when `inclusive`.
pub fn cumsum(a: &Array, axis: i32, reverse: bool, inclusive: bool) -> Result<Array> {
    Ok(Array::wrap(ffi::cumsum(a.raw(), axis, reverse, inclusive)?))
}

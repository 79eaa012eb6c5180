//! Elementwise operations and the matrix product.

use std::f64::consts::FRAC_2_PI;

use zmlx_sys::ffi;

use super::{any, unless_empty};
use crate::bounds::Bounds;
use crate::{Array, Dtype, Error, Result, launches};

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* pub fn $name(a: &Array) -> Result<Array> {
            Ok(Array::wrap(ffi::$name(a.raw())?))
        })*
    };
}

/// Binary operations that keep track of the bounds of integers.
macro_rules! bounded {
    ($($(#[$doc:meta])* $name:ident: $bounds:expr;)*) => {
        $($(#[$doc])* pub fn $name(a: &Array, b: &Array) -> Result<Array> {
            let out = Array::wrap(ffi::$name(a.raw(), b.raw())?);
            if !out.dtype().is_integer() {
                return Ok(out);
            }
            let bounds = a.bounds().zip(b.bounds()).and_then(|(a, b)| $bounds(a, b));
            Ok(out.within(bounds))
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

bounded! {
    /// a + b.
    add: Bounds::sum;
    /// a - b.
    subtract: Bounds::difference;
    /// Larger of the two; NaN wins.
    maximum: |a: Bounds, b| Some(a.larger(b));
    /// Smaller of the two; NaN wins.
    minimum: |a: Bounds, b| Some(a.smaller(b));
}

binary! {
    /// a · b, elementwise.
    multiply;
    /// a / b; integers become `float32`.
    divide;
    /// aᵇ.
    power;
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

/// ⌊a / b⌋; of integers, the quotient rounded towards zero.
///
/// # Errors
/// When integers are divided by zero, or the least of its type by -1: processors trap. A divisor of
/// which this is not known is computed by the call.
pub fn floor_divide(a: &Array, b: &Array) -> Result<Array> {
    let out = Array::wrap(ffi::floor_divide(a.raw(), b.raw())?);
    check_divisor("floor_divide", a, b, out.dtype())?;
    let bounds = a.bounds().zip(b.bounds()).and_then(|(a, b)| a.quotient(b));
    Ok(out.within(bounds))
}

/// Remainder of a / b with the sign of b.
///
/// # Errors
/// As [`floor_divide`].
pub fn remainder(a: &Array, b: &Array) -> Result<Array> {
    let out = Array::wrap(ffi::remainder(a.raw(), b.raw())?);
    check_divisor("remainder", a, b, out.dtype())?;
    Ok(out)
}

fn check_divisor(op: &str, a: &Array, b: &Array, dtype: Dtype) -> Result<()> {
    if !(dtype.is_integer() || dtype == Dtype::Bool) || b.bounds().is_some_and(|b| b.lo > 0) {
        return Ok(());
    }
    let holds = |x: &Array, value: i64| -> Result<bool> {
        let value = Array::scalar(value)?.astype(dtype)?;
        any(&equal(&x.astype(dtype)?, &value)?, &[], false)?.item()
    };
    let refuse = |what: &str| {
        Err(Error::InvalidArgument { message: format!("[{op}] integers are divided by {what}") })
    };
    if holds(b, 0)? {
        return refuse("zero");
    }
    let least = match dtype {
        Dtype::I32 => i32::MIN.into(),
        Dtype::I64 => i64::MIN,
        _ => return Ok(()),
    };
    if holds(b, -1)? && holds(a, least)? {
        return refuse("-1 and one of them is the least of its type");
    }
    Ok(())
}

/// Elements converted to `dtype`.
pub fn astype(a: &Array, dtype: Dtype) -> Result<Array> {
    Ok(Array::wrap(ffi::astype(a.raw(), dtype.id())?).within(a.bounds()))
}

/// The same bytes read as `dtype`; the last dimension scales with the element size.
///
/// # Errors
/// Also for [`Dtype::Bool`], of which not every byte is a value: compare with 0 instead.
pub fn view(a: &Array, dtype: Dtype) -> Result<Array> {
    if dtype == Dtype::Bool && a.dtype() != Dtype::Bool {
        let message = format!(
            "[view] bytes of {} are not all values of bool; use not_equal with 0 instead",
            a.dtype()
        );
        return Err(Error::InvalidArgument { message });
    }
    Ok(Array::wrap(ffi::view(a.raw(), dtype.id())?))
}

/// `a` where `condition` is true, else `b`.
pub fn select(condition: &Array, a: &Array, b: &Array) -> Result<Array> {
    let bounds = a.bounds().zip(b.bounds()).map(|(a, b)| a.union(b));
    Ok(Array::wrap(ffi::select(condition.raw(), a.raw(), b.raw())?).within(bounds))
}

/// x · sigmoid(x), as two stock ops (mlx-lm's `silu`).
pub fn silu(a: &Array) -> Result<Array> {
    multiply(a, &sigmoid(a)?)
}

/// silu(gate) · up, as three stock ops (mlx-lm's `swiglu`; arXiv:2002.05202).
pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    let [y] = launches::compiled(&[gate, up], || Ok([multiply(&silu(gate)?, up)?]))?;
    Ok(y)
}

/// x · ½ (1 + tanh(√(2/π) (x + 0.044715 x³))) in stock ops (mlx's `nn.gelu_approx`; arXiv:1606.08415). The numbers are
/// rounded to the dtype of `a` first, as Python's are.
pub fn gelu_approx(a: &Array) -> Result<Array> {
    let number = |value: f64| Array::scalar_like(value as f32, a);
    let cubic = multiply(&number(0.044715)?, &power(a, &number(3.0)?)?)?;
    let inner = multiply(&number(FRAC_2_PI.sqrt())?, &add(a, &cubic)?)?;
    multiply(&multiply(&number(0.5)?, a)?, &add(&number(1.0)?, &tanh(&inner)?)?)
}

/// gelu(gate) · up with [`gelu_approx`] (mlx-lm's `geglu`; arXiv:2002.05202).
pub fn geglu(gate: &Array, up: &Array) -> Result<Array> {
    let [y] = launches::compiled(&[gate, up], || Ok([multiply(&gelu_approx(gate)?, up)?]))?;
    Ok(y)
}

/// (clip(up) + 1) · g · sigmoid(alpha · g), g = min(gate, limit), in stock ops (mlx-lm's `swiglu_oai`; gpt-oss). `up` is
/// kept within ±`limit`; the numbers are rounded to the dtype of `gate` first.
pub fn clipped_swiglu(gate: &Array, up: &Array, alpha: f32, limit: f32) -> Result<Array> {
    let number = |value: f32| Array::scalar_like(value, gate);
    let [y] = launches::compiled(&[gate, up], || {
        let gate = minimum(gate, &number(limit)?)?;
        let up = minimum(&maximum(up, &number(-limit)?)?, &number(limit)?)?;
        let gated = multiply(&gate, &sigmoid(&multiply(&number(alpha)?, &gate)?)?)?;
        Ok([multiply(&add(&up, &number(1.0)?)?, &gated)?])
    })?;
    Ok(y)
}

/// Softmax along `axis`; `precise` accumulates in `float32` whatever the dtype.
pub fn softmax(a: &Array, axis: i32, precise: bool) -> Result<Array> {
    unless_empty(Array::wrap(ffi::softmax(a.raw(), axis, precise)?))
}

/// Running sum along `axis`, from the end when `reverse`, with each element itself when `inclusive`.
pub fn cumsum(a: &Array, axis: i32, reverse: bool, inclusive: bool) -> Result<Array> {
    unless_empty(Array::wrap(ffi::cumsum(a.raw(), axis, reverse, inclusive)?))
}

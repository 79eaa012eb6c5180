//! Random numbers (Threefry, as in MLX). Without a `key` the thread's own sequence is used.

use zmlx_sys::ffi;

use crate::array::opt;
use crate::bounds::Bounds;
use crate::{Array, Dtype, Result};

/// A key from a seed.
pub fn key(seed: u64) -> Result<Array> {
    Ok(Array::wrap(ffi::random_key(seed)?))
}

/// Restarts the current thread's own sequence.
pub fn seed(seed: u64) -> Result<()> {
    Ok(ffi::random_seed(seed)?)
}

/// `num` independent keys `[num, 2]` from one.
pub fn split(key: &Array, num: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::random_split(key.raw(), num)?))
}

/// Uniform in `[low, high)`.
pub fn uniform(
    low: f32,
    high: f32,
    shape: &[i32],
    dtype: Dtype,
    key: Option<&Array>,
) -> Result<Array> {
    Ok(Array::wrap(ffi::random_uniform(low, high, shape, dtype.id(), &opt(key))?))
}

/// Normal with mean `loc` and standard deviation `scale`.
pub fn normal(
    shape: &[i32],
    dtype: Dtype,
    loc: f32,
    scale: f32,
    key: Option<&Array>,
) -> Result<Array> {
    Ok(Array::wrap(ffi::random_normal(shape, dtype.id(), loc, scale, &opt(key))?))
}

/// Integers in `[low, high)`.
pub fn randint(
    low: i32,
    high: i32,
    shape: &[i32],
    dtype: Dtype,
    key: Option<&Array>,
) -> Result<Array> {
    Ok(Array::wrap(ffi::random_randint(low, high, shape, dtype.id(), &opt(key))?))
}

/// Indices drawn along `axis` with probabilities softmax(logits); `uint32`.
pub fn categorical(logits: &Array, axis: i32, key: Option<&Array>) -> Result<Array> {
    let drawn = Array::wrap(ffi::random_categorical(logits.raw(), axis, &opt(key))?);
    Ok(drawn.within(Bounds::of_axis(logits, axis)))
}

//! Shapes: views and rearrangements.

use zmlx_sys::ffi;

use crate::array::{array_vec, from_array_vec};
use crate::{Array, Result};

/// The same elements in row-major order with another shape; one length may be -1.
pub fn reshape(a: &Array, shape: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::reshape(a.raw(), shape)?))
}

/// Axes in the order of `axes`; empty reverses them.
pub fn transpose(a: &Array, axes: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::transpose(a.raw(), axes)?))
}

/// Two axes exchanged.
pub fn swapaxes(a: &Array, axis1: i32, axis2: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::swapaxes(a.raw(), axis1, axis2)?))
}

/// New axes of length 1; `axes` are positions in the result.
pub fn expand_dims(a: &Array, axes: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::expand_dims(a.raw(), axes)?))
}

/// Axes of length 1 removed; empty removes all of them.
pub fn squeeze(a: &Array, axes: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::squeeze(a.raw(), axes)?))
}

/// Axes `start_axis..=end_axis` merged into one.
pub fn flatten(a: &Array, start_axis: i32, end_axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::flatten(a.raw(), start_axis, end_axis)?))
}

/// Axis `axis` split into `shape`.
pub fn unflatten(a: &Array, axis: i32, shape: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::unflatten(a.raw(), axis, shape)?))
}

/// Broadcast to `shape`, without copying.
pub fn broadcast_to(a: &Array, shape: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::broadcast_to(a.raw(), shape)?))
}

/// The same values in row-major memory; copies only when needed.
pub fn contiguous(a: &Array) -> Result<Array> {
    Ok(Array::wrap(ffi::contiguous(a.raw())?))
}

/// Joins along an existing axis.
pub fn concatenate<'a>(arrays: impl IntoIterator<Item = &'a Array>, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::concatenate(&array_vec(arrays), axis)?))
}

/// Joins along a new axis at position `axis`.
pub fn stack<'a>(arrays: impl IntoIterator<Item = &'a Array>, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::stack(&array_vec(arrays), axis)?))
}

/// Cuts along `axis` before each of `indices`.
pub fn split(a: &Array, indices: &[i32], axis: i32) -> Result<Vec<Array>> {
    from_array_vec(&*ffi::split(a.raw(), indices, axis)?)
}

/// Each element `repeats` times in a row along `axis`.
pub fn repeat(a: &Array, repeats: i32, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::repeat(a.raw(), repeats, axis)?))
}

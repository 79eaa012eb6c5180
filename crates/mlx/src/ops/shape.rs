//! Shapes: views and rearrangements.

use zmlx_sys::{Exception, UniquePtr, ffi};

use crate::array::{array_vec, from_array_vec};
use crate::{Array, Error, Result};

/// The same elements in row-major order with another shape; one length may be -1.
pub fn reshape(a: &Array, shape: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::reshape(a.raw(), shape)?).within(a.bounds()))
}

/// Axes in the order of `axes`; empty reverses them.
pub fn transpose(a: &Array, axes: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::transpose(a.raw(), axes)?).within(a.bounds()))
}

/// Two axes exchanged.
pub fn swapaxes(a: &Array, axis1: i32, axis2: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::swapaxes(a.raw(), axis1, axis2)?).within(a.bounds()))
}

/// New axes of length 1; `axes` are positions in the result.
pub fn expand_dims(a: &Array, axes: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::expand_dims(a.raw(), axes)?).within(a.bounds()))
}

/// Axes of length 1 removed; empty removes all of them.
pub fn squeeze(a: &Array, axes: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::squeeze(a.raw(), axes)?).within(a.bounds()))
}

/// Axes `start_axis..=end_axis` merged into one.
pub fn flatten(a: &Array, start_axis: i32, end_axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::flatten(a.raw(), start_axis, end_axis)?).within(a.bounds()))
}

/// Axis `axis` split into `shape`.
pub fn unflatten(a: &Array, axis: i32, shape: &[i32]) -> Result<Array> {
    if shape.contains(&-1) && shape.contains(&0) {
        let message = format!("[unflatten] no length can stand for -1 beside 0 in {shape:?}");
        return Err(Error::InvalidArgument { message });
    }
    Ok(Array::wrap(ffi::unflatten(a.raw(), axis, shape)?).within(a.bounds()))
}

/// Broadcast to `shape`, without copying.
pub fn broadcast_to(a: &Array, shape: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::broadcast_to(a.raw(), shape)?).within(a.bounds()))
}

/// The same values in row-major memory; copies only when needed.
pub fn contiguous(a: &Array) -> Result<Array> {
    Ok(Array::wrap(ffi::contiguous(a.raw())?).within(a.bounds()))
}

/// The same values, which are not there before those of `on` are: what nothing else asks for is computed along.
pub fn depends<'a>(a: &Array, on: impl IntoIterator<Item = &'a Array>) -> Result<Array> {
    Ok(Array::wrap(ffi::depends(a.raw(), &array_vec(on))?).within(a.bounds()))
}

fn join<'a>(
    arrays: impl IntoIterator<Item = &'a Array>,
    op: impl FnOnce(&ffi::ArrayVec) -> Result<UniquePtr<ffi::Array>, Exception>,
) -> Result<Array> {
    let arrays: Vec<&Array> = arrays.into_iter().collect();
    let bounds = arrays
        .iter()
        .map(|a| a.bounds())
        .reduce(|all, b| all.zip(b).map(|(all, b)| all.union(b)))
        .flatten();
    Ok(Array::wrap(op(&array_vec(arrays))?).within(bounds))
}

/// Joins along an existing axis.
pub fn concatenate<'a>(arrays: impl IntoIterator<Item = &'a Array>, axis: i32) -> Result<Array> {
    join(arrays, |all| ffi::concatenate(all, axis))
}

/// Joins along a new axis at position `axis`.
pub fn stack<'a>(arrays: impl IntoIterator<Item = &'a Array>, axis: i32) -> Result<Array> {
    join(arrays, |all| ffi::stack(all, axis))
}

/// Cuts along `axis` before each of `indices`.
pub fn split(a: &Array, indices: &[i32], axis: i32) -> Result<Vec<Array>> {
    let parts = from_array_vec(&*ffi::split(a.raw(), indices, axis)?)?;
    Ok(parts.into_iter().map(|part| part.within(a.bounds())).collect())
}

/// Each element `repeats` times in a row along `axis`.
pub fn repeat(a: &Array, repeats: i32, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::repeat(a.raw(), repeats, axis)?).within(a.bounds()))
}

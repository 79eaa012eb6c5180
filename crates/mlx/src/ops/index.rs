//! Slicing, gathering, sorting.

use zmlx_sys::ffi;

use crate::{Array, Result};

/// `a[start[0]..stop[0], ...]`; one pair per dimension, negative counts from the end.
pub fn slice(a: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    slice_strided(a, start, stop, &vec![1; start.len()])
}

/// [`slice`] with a step per dimension.
pub fn slice_strided(a: &Array, start: &[i32], stop: &[i32], strides: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::slice(a.raw(), start, stop, strides)?))
}

/// `a[.., start..stop, ..]` along one axis.
pub fn slice_axis(a: &Array, axis: i32, start: i32, stop: i32) -> Result<Array> {
    let shape = a.shape();
    let mut from = vec![0; shape.len()];
    let mut to = shape.to_vec();
    let i = if axis < 0 { axis + shape.len() as i32 } else { axis };
    let Some(i) = usize::try_from(i).ok().filter(|&i| i < shape.len()) else {
        return Err(crate::Error::Shape {
            op: "slice_axis",
            expected: format!("an axis {axis}"),
            got: shape.to_vec(),
        });
    };
    from[i] = start;
    to[i] = stop;
    slice(a, &from, &to)
}

/// `a` with `update` written over `a[start[0]..stop[0], ...]`.
pub fn slice_update(a: &Array, update: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    let strides = vec![1; start.len()];
    Ok(Array::wrap(ffi::slice_update(a.raw(), update.raw(), start, stop, &strides)?))
}

/// A slice of `size` whose start along `axes` is an array of positions, so that the graph does not
/// depend on their values.
pub fn slice_dynamic(a: &Array, start: &Array, axes: &[i32], size: &[i32]) -> Result<Array> {
    Ok(Array::wrap(ffi::slice_dynamic(a.raw(), start.raw(), axes, size)?))
}

/// `a` with `update` written at a start along `axes` that is an array of positions.
pub fn slice_update_dynamic(
    a: &Array,
    update: &Array,
    start: &Array,
    axes: &[i32],
) -> Result<Array> {
    Ok(Array::wrap(ffi::slice_update_dynamic(a.raw(), update.raw(), start.raw(), axes)?))
}

/// Slices of `a` along `axis` at integer `indices`; the indices' shape replaces the axis. On a GPU
/// indices out of range are not checked.
pub fn take(a: &Array, indices: &Array, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::take(a.raw(), indices.raw(), axis)?))
}

/// Elements of `a` along `axis` at `indices`, which has `a`'s shape in the other axes.
pub fn take_along_axis(a: &Array, indices: &Array, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::take_along_axis(a.raw(), indices.raw(), axis)?))
}

/// `a` with `values` written along `axis` at `indices`.
pub fn put_along_axis(a: &Array, indices: &Array, values: &Array, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::put_along_axis(a.raw(), indices.raw(), values.raw(), axis)?))
}

/// Ascending order along `axis`.
pub fn sort(a: &Array, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::sort(a.raw(), axis)?))
}

/// Indices that sort along `axis`; `uint32`.
pub fn argsort(a: &Array, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::argsort(a.raw(), axis)?))
}

/// Indices that put the `kth` smallest in place with smaller ones before it, in no promised
/// order; `uint32`.
pub fn argpartition(a: &Array, kth: i32, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::argpartition(a.raw(), kth, axis)?))
}

/// The `k` largest along `axis`, in no promised order.
pub fn topk(a: &Array, k: i32, axis: i32) -> Result<Array> {
    Ok(Array::wrap(ffi::topk(a.raw(), k, axis)?))
}

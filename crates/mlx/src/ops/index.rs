//! Slicing, gathering, sorting.
//!
//! Indices and positions in arrays are checked, which MLX does not do. Those that an op made
//! (`argmax`, `argsort`, `argpartition`, a router, ...) or that were looked at before are known to
//! fit and cost nothing; others are computed by the call, which waits for them
//! ([`Array::known_within`]).

use zmlx_sys::ffi;

use super::unless_empty;
use crate::bounds::Bounds;
use crate::{Array, Error, Result};

/// `a[start[0]..stop[0], ...]`; one pair per dimension, negative counts from the end.
pub fn slice(a: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    slice_strided(a, start, stop, &vec![1; start.len()])
}

/// [`slice`] with a step per dimension.
pub fn slice_strided(a: &Array, start: &[i32], stop: &[i32], strides: &[i32]) -> Result<Array> {
    if strides.contains(&0) {
        let message = format!("[slice] steps must not be 0, got {strides:?}");
        return Err(Error::InvalidArgument { message });
    }
    Ok(Array::wrap(ffi::slice(a.raw(), start, stop, strides)?).within(a.bounds()))
}

/// `a[.., start..stop, ..]` along one axis.
pub fn slice_axis(a: &Array, axis: i32, start: i32, stop: i32) -> Result<Array> {
    let shape = a.shape();
    let mut from = vec![0; shape.len()];
    let mut to = shape.to_vec();
    let i = axis_of("slice_axis", a, axis)?;
    from[i] = start;
    to[i] = stop;
    slice(a, &from, &to)
}

/// `a` with `update` written over `a[start[0]..stop[0], ...]`.
pub fn slice_update(a: &Array, update: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    let strides = vec![1; start.len()];
    Ok(Array::wrap(ffi::slice_update(a.raw(), update.raw(), start, stop, &strides)?))
}

/// The number of `axis` counted from the front.
fn axis_of(op: &'static str, a: &Array, axis: i32) -> Result<usize> {
    let ndim = a.ndim();
    let i = if axis < 0 { i64::from(axis) + ndim as i64 } else { axis.into() };
    usize::try_from(i).ok().filter(|i| *i < ndim).ok_or_else(|| Error::Shape {
        op,
        expected: format!("an axis {axis}"),
        got: a.shape().to_vec(),
    })
}

/// Refuses starts of a slice of `size` that reach beyond `a`, computing them where nothing is known
/// of them. Returns them as MLX reads them: one after the other.
fn starts(op: &'static str, a: &Array, start: &Array, axes: &[i32], size: &[i32]) -> Result<Array> {
    let invalid = |message| Err(Error::InvalidArgument { message });
    if !start.dtype().is_integer() || start.size() != axes.len() {
        let (dtype, shape) = (start.dtype(), start.shape());
        return invalid(format!(
            "[{op}] start must hold an integer for each of the axes {axes:?}, got {dtype} {shape:?}"
        ));
    }
    let room = axes
        .iter()
        .map(|axis| {
            let i = axis_of(op, a, *axis)?;
            Ok(i64::from(a.shape()[i]) - i64::from(size[i]))
        })
        .collect::<Result<Vec<_>>>()?;
    if room.iter().any(|room| *room < 0) || size.iter().any(|n| *n < 0) {
        let shape = a.shape();
        return invalid(format!("[{op}] a slice of {size:?} does not fit into {shape:?}"));
    }
    let least = room.iter().copied().min().unwrap_or(0);
    if start.bounds().is_none_or(|b| b.lo < 0 || b.hi > least) {
        let values = start.astype(crate::Dtype::I64)?.to_vec::<i64>()?;
        if let Some(at) = values.iter().zip(&room).position(|(v, room)| !(0..=*room).contains(v)) {
            return invalid(format!(
                "[{op}] the start along axis {} must lie from 0 to {}, got {}",
                axes[at], room[at], values[at]
            ));
        }
    }
    // A single one has no order, and MLX cannot export the copy.
    if start.size() == 1 { Ok(start.clone()) } else { super::contiguous(start) }
}

/// A slice of `size` whose start along `axes` is an array of positions, so that the graph does not
/// depend on their values.
///
/// - `start`: one integer for each of `axes`, from 0 to what leaves room for `size`; other axes
///   start at 0
///
/// # Errors
/// When the slice reaches beyond `a`.
pub fn slice_dynamic(a: &Array, start: &Array, axes: &[i32], size: &[i32]) -> Result<Array> {
    const OP: &str = "slice_dynamic";
    if size.len() != a.ndim() {
        return Err(Error::Shape {
            op: OP,
            expected: format!("{} dimensions", size.len()),
            got: a.shape().to_vec(),
        });
    }
    let start = starts(OP, a, start, axes, size)?;
    Ok(Array::wrap(ffi::slice_dynamic(a.raw(), start.raw(), axes, size)?).within(a.bounds()))
}

/// `a` with `update` written at a start along `axes` that is an array of positions.
///
/// - `update`: no more dimensions than `a`; missing ones are the first
/// - `start`: as in [`slice_dynamic`]
///
/// # Errors
/// When the slice reaches beyond `a`.
pub fn slice_update_dynamic(
    a: &Array,
    update: &Array,
    start: &Array,
    axes: &[i32],
) -> Result<Array> {
    const OP: &str = "slice_update_dynamic";
    let Some(missing) = a.ndim().checked_sub(update.ndim()) else {
        return Err(Error::Shape {
            op: OP,
            expected: format!("at most {} dimensions", a.ndim()),
            got: update.shape().to_vec(),
        });
    };
    // MLX fills missing axes, those with a start by one row.
    let mut size = a.shape()[..missing].to_vec();
    size.extend_from_slice(update.shape());
    for axis in axes {
        let i = axis_of(OP, a, *axis)?;
        if i < missing {
            size[i] = 1;
        }
    }
    let start = starts(OP, a, start, axes, &size)?;
    Ok(Array::wrap(ffi::slice_update_dynamic(a.raw(), update.raw(), start.raw(), axes)?))
}

/// Slices of `a` along `axis` at integer `indices`; the indices' shape replaces the axis.
///
/// - `indices`: from `-len` to `len - 1` of the axis; negative ones count from the end
///
/// # Errors
/// When an index is beyond the axis.
pub fn take(a: &Array, indices: &Array, axis: i32) -> Result<Array> {
    let len = a.shape()[axis_of("take", a, axis)?];
    indices.require_index("take", len)?;
    Ok(Array::wrap(ffi::take(a.raw(), indices.raw(), axis)?).within(a.bounds()))
}

/// Elements of `a` along `axis` at `indices`, which has `a`'s shape in the other axes.
///
/// - `indices`: as in [`take`]
///
/// # Errors
/// When an index is beyond the axis.
pub fn take_along_axis(a: &Array, indices: &Array, axis: i32) -> Result<Array> {
    let len = a.shape()[axis_of("take_along_axis", a, axis)?];
    indices.require_index("take_along_axis", len)?;
    let taken = Array::wrap(ffi::take_along_axis(a.raw(), indices.raw(), axis)?);
    Ok(taken.within(a.bounds()))
}

/// `a` with `values` written along `axis` at `indices`.
///
/// - `indices`: as in [`take`]
///
/// # Errors
/// When an index is beyond the axis.
pub fn put_along_axis(a: &Array, indices: &Array, values: &Array, axis: i32) -> Result<Array> {
    let len = a.shape()[axis_of("put_along_axis", a, axis)?];
    indices.require_index("put_along_axis", len)?;
    Ok(Array::wrap(ffi::put_along_axis(a.raw(), indices.raw(), values.raw(), axis)?))
}

/// Ascending order along `axis`.
pub fn sort(a: &Array, axis: i32) -> Result<Array> {
    unless_empty(Array::wrap(ffi::sort(a.raw(), axis)?).within(a.bounds()))
}

/// Indices that sort along `axis`; `uint32`.
pub fn argsort(a: &Array, axis: i32) -> Result<Array> {
    unless_empty(Array::wrap(ffi::argsort(a.raw(), axis)?).within(Bounds::of_axis(a, axis)))
}

/// Indices that put the `kth` smallest in place with smaller ones before it, in no promised
/// order; `uint32`.
pub fn argpartition(a: &Array, kth: i32, axis: i32) -> Result<Array> {
    let order = Array::wrap(ffi::argpartition(a.raw(), kth, axis)?);
    unless_empty(order.within(Bounds::of_axis(a, axis)))
}

/// The `k` largest along `axis`, in no promised order.
pub fn topk(a: &Array, k: i32, axis: i32) -> Result<Array> {
    unless_empty(Array::wrap(ffi::topk(a.raw(), k, axis)?).within(a.bounds()))
}

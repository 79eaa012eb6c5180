//! [`Array`]: the lazy n-dimensional array.

use std::cell::Cell;
use std::fmt;

use zmlx_sys::{UniquePtr, ffi};

use crate::bounds::Bounds;
use crate::{Dtype, Element, Error, Result, ops};

/// A lazy n-dimensional array; a cheap handle to a node of MLX's graph.
///
/// Cloning copies the handle, not the data. Neither `Send` nor `Sync`: see the crate's notes on
/// threads.
pub struct Array {
    /// Never null.
    ptr: UniquePtr<ffi::Array>,
    /// Between which values the elements are known to lie: see `bounds.rs`.
    pub(crate) bounds: Cell<Option<Bounds>>,
}

/// An evaluated array cut from its graph, which may move to another thread.
///
/// ```
/// let frozen = mlx::Array::from_slice(&[1f32, 2.0], &[2])?.freeze()?;
/// let sum: f32 = std::thread::spawn(move || {
///     let a = frozen.thaw();
///     mlx::ops::sum(&a, &[], false).and_then(|s| s.item::<f32>())
/// }).join().unwrap()?;
/// assert_eq!(sum, 3.0);
/// # Ok::<(), mlx::Error>(())
/// ```
pub struct Frozen(Array);

// SAFETY: a `Frozen` holds the only handle that this crate gave out for a detached node whose data
// is computed; it has no stream or event left to wait for. The data is immutable and its reference
// count is atomic.
unsafe impl Send for Frozen {}

impl Frozen {
    /// The array, now belonging to the current thread.
    pub fn thaw(self) -> Array {
        self.0
    }
}

impl Array {
    pub(crate) fn wrap(ptr: UniquePtr<ffi::Array>) -> Self {
        debug_assert!(!ptr.is_null());
        Self { ptr, bounds: Cell::new(None) }
    }

    pub(crate) fn raw(&self) -> &ffi::Array {
        &self.ptr
    }

    /// An array of `shape` from elements in row-major order. Copies `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `data.len()` is not the product of `shape`.
    pub fn from_slice<T: Element>(data: &[T], shape: &[i32]) -> Result<Self> {
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
        if count != Some(data.len()) {
            return Err(Error::Shape {
                op: "from_slice",
                expected: format!("a shape of {} elements", data.len()),
                got: shape.to_vec(),
            });
        }
        // SAFETY: `Element` is sealed and implemented only for plain data without padding.
        let bytes = unsafe {
            std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), std::mem::size_of_val(data))
        };
        Self::from_bytes(bytes, shape, T::DTYPE)
    }

    /// An array of `shape` and `dtype` from its elements' bytes in row-major, native order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the number of bytes does not fit, or a byte of a
    /// [`Dtype::Bool`] is neither 0 nor 1.
    pub fn from_bytes(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Self> {
        if dtype == Dtype::Bool
            && let Some(byte) = bytes.iter().find(|b| **b > 1)
        {
            let message = format!("[from_bytes] a bool is a byte of 0 or 1, got {byte}");
            return Err(Error::InvalidArgument { message });
        }
        Ok(Self::wrap(ffi::array_from_bytes(bytes, shape, dtype.id())?))
    }

    /// A zero-dimensional array.
    pub fn scalar<T: Element>(value: T) -> Result<Self> {
        Self::from_slice(&[value], &[])
    }

    /// A zero-dimensional array of `value` in the dtype of `like`: how Python MLX treats a float
    /// that meets an array (it does not promote).
    pub fn scalar_like(value: f32, like: &Array) -> Result<Self> {
        // rounded here, so that no op is left for the device
        match like.dtype() {
            Dtype::F32 => Self::scalar(value),
            Dtype::F16 => Self::scalar(half::f16::from_f32(value)),
            Dtype::Bf16 => Self::scalar(half::bf16::from_f32(value)),
            other => Self::scalar(value)?.astype(other),
        }
    }

    /// Length of each dimension.
    pub fn shape(&self) -> &[i32] {
        ffi::array_shape(&self.ptr)
    }

    /// Length of dimension `axis`; negative counts from the end.
    ///
    /// # Panics
    /// When `axis` is out of range.
    pub fn dim(&self, axis: i32) -> i32 {
        let shape = self.shape();
        let i = if axis < 0 { axis + shape.len() as i32 } else { axis };
        usize::try_from(i).ok().and_then(|i| shape.get(i).copied()).unwrap_or_else(|| {
            panic!("axis {axis} is out of range for an array of shape {shape:?}")
        })
    }

    /// Number of dimensions.
    pub fn ndim(&self) -> usize {
        ffi::array_ndim(&self.ptr)
    }

    /// Number of elements.
    pub fn size(&self) -> usize {
        ffi::array_size(&self.ptr)
    }

    /// Bytes of all elements.
    pub fn nbytes(&self) -> usize {
        ffi::array_nbytes(&self.ptr)
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        Dtype::from_id(ffi::array_dtype(&self.ptr))
    }

    /// Whether the data is computed already.
    pub fn is_available(&self) -> bool {
        ffi::array_is_available(&self.ptr)
    }

    /// Computes this array.
    ///
    /// # Errors
    /// Whatever the graph below it reports while running.
    pub fn eval(&self) -> Result<()> {
        eval([self])
    }

    /// Computes this array, cuts it from its graph and makes it movable between threads.
    pub fn freeze(self) -> Result<Frozen> {
        let mut a = ops::contiguous(&self)?;
        ffi::array_detach(a.ptr.pin_mut())?;
        Ok(Frozen(a))
    }

    /// The only element.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is not exactly one; [`Error::Dtype`] when it is not a `T`.
    pub fn item<T: Element>(&self) -> Result<T> {
        if self.size() != 1 {
            return Err(Error::Shape {
                op: "item",
                expected: "exactly one element".into(),
                got: self.shape().to_vec(),
            });
        }
        Ok(self.to_vec::<T>()?[0])
    }

    /// All elements in row-major order. Computes the array if it is not yet.
    ///
    /// # Errors
    /// [`Error::Dtype`] when the elements are not `T`.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if T::DTYPE != self.dtype() {
            return Err(Error::Dtype { op: "to_vec", expected: T::DTYPE, got: self.dtype() });
        }
        self.with_bytes(|bytes| {
            let len = bytes.len() / std::mem::size_of::<T>();
            let mut out = Vec::<T>::with_capacity(len);
            // SAFETY: `out` has room for `len` elements, `bytes` holds as many of dtype `T`
            // (checked above), and `Element` types are plain data. A bool is 0 or 1: MLX computes
            // no other, and `from_bytes`, `view` and `load_safetensors` let none in.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    out.as_mut_ptr().cast::<u8>(),
                    len * std::mem::size_of::<T>(),
                );
                out.set_len(len);
            }
            out
        })
    }

    /// Bytes of all elements in row-major, native order. Computes the array if it is not yet.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.with_bytes(<[u8]>::to_vec)
    }

    fn with_bytes<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Result<R> {
        self.eval()?;
        if ffi::array_is_row_contiguous(&self.ptr) {
            return Ok(f(ffi::array_bytes(&self.ptr)?));
        }
        // Not `ops::contiguous`, which may want to know these values.
        let copy = Self::wrap(ffi::contiguous(&self.ptr)?);
        copy.eval()?;
        Ok(f(ffi::array_bytes(&copy.ptr)?))
    }

    /// [`ops::astype`]; the handle itself when the dtype is already right.
    pub fn astype(&self, dtype: Dtype) -> Result<Self> {
        if self.dtype() == dtype { Ok(self.clone()) } else { ops::astype(self, dtype) }
    }

    /// [`ops::reshape`].
    pub fn reshape(&self, shape: &[i32]) -> Result<Self> {
        ops::reshape(self, shape)
    }

    /// [`ops::transpose`].
    pub fn transpose(&self, axes: &[i32]) -> Result<Self> {
        ops::transpose(self, axes)
    }
}

impl Clone for Array {
    fn clone(&self) -> Self {
        Self { ptr: ffi::array_clone(&self.ptr), bounds: self.bounds.clone() }
    }
}

impl fmt::Debug for Array {
    /// Shape, dtype and, when computed and small, the values. Never evaluates.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut d = f.debug_struct("Array");
        d.field("shape", &self.shape()).field("dtype", &self.dtype());
        if self.is_available()
            && self.size() <= 16
            && self.dtype() == Dtype::F32
            && let Ok(values) = self.to_vec::<f32>()
        {
            d.field("values", &values);
        }
        d.finish()
    }
}

/// Computes all of `arrays`.
///
/// # Errors
/// Whatever their graph reports while running.
pub fn eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    Ok(ffi::eval(&array_vec(arrays))?)
}

/// Starts computing all of `arrays` and returns; reading a value waits for it.
///
/// # Errors
/// What is found out while the work is enqueued; the rest is reported by the next wait.
pub fn async_eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    Ok(ffi::async_eval(&array_vec(arrays))?)
}

/// Number of array handles alive in this process, for leak tests.
pub fn live_arrays() -> usize {
    ffi::live_arrays()
}

pub(crate) fn array_vec<'a>(
    arrays: impl IntoIterator<Item = &'a Array>,
) -> UniquePtr<ffi::ArrayVec> {
    let mut v = ffi::vec_new();
    for a in arrays {
        ffi::vec_push(v.pin_mut(), a.raw());
    }
    v
}

pub(crate) fn from_array_vec(v: &ffi::ArrayVec) -> Result<Vec<Array>> {
    (0..ffi::vec_len(v)).map(|i| Ok(Array::wrap(ffi::vec_get(v, i)?))).collect()
}

/// An optional array as the bridge takes it: null when absent.
pub(crate) fn opt(a: Option<&Array>) -> UniquePtr<ffi::Array> {
    a.map_or_else(UniquePtr::null, |a| ffi::array_clone(a.raw()))
}

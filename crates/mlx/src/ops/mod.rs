//! MLX's array operations by family.
//!
//! Unless a function says otherwise: inputs broadcast, dtypes promote as in MLX, a negative axis
//! counts from the end, and errors are [`Error::InvalidArgument`](crate::Error::InvalidArgument)
//! with MLX's message. Source: `mlx/ops.h` of the pinned MLX.

mod convolution;
mod create;
mod elementwise;
mod index;
mod reduce;
mod shape;

/// `out`, or zeros where it has no element: some of MLX's CPU kernels divide by the length of an
/// axis before they look.
pub(crate) fn unless_empty(out: crate::Array) -> crate::Result<crate::Array> {
    if out.size() == 0 { zeros(out.shape(), out.dtype()) } else { Ok(out) }
}

pub use convolution::*;
pub use create::*;
pub use elementwise::*;
pub use index::*;
pub use reduce::*;
pub use shape::*;

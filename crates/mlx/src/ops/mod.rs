//! MLX's array operations by family.
//!
//! Unless a function says otherwise: inputs broadcast, dtypes promote as in MLX, a negative axis
//! counts from the end, and errors are [`Error::InvalidArgument`](crate::Error::InvalidArgument)
//! with MLX's message. Source: `mlx/ops.h` of the pinned MLX.

mod create;
mod elementwise;
mod index;
mod reduce;
mod shape;

pub use create::*;
pub use elementwise::*;
pub use index::*;
pub use reduce::*;
pub use shape::*;

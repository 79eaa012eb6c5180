//! Safe wrappers over [MLX](https://github.com/ml-explore/mlx) and the zmlx primitives.
//!
//! - [`Array`]: a lazy n-dimensional array. Ops build a graph; [`eval`] runs it.
//! - [`ops`], [`fast`], [`quantization`], [`random`]: MLX's functions by family. Each runs on the
//!   current thread's default stream of the default device ([`Device`], [`Stream`]).
//! - [`primitives`]: the fused launches that zmlx adds to MLX.
//! - [`io`], [`memory`], [`transforms`].
//!
//! # Threads
//!
//! MLX keeps its streams per thread, so an unevaluated array belongs to the thread that made it:
//! [`Array`] is neither `Send` nor `Sync`. [`Array::freeze`] evaluates an array, cuts it from its
//! graph and gives a [`Frozen`] that can move to another thread.
//!
//! # Errors
//!
//! C++ exceptions become [`Error`]s. Shapes and dtypes are checked when an op is called; what can
//! only fail while running (memory, files, kernels) is reported by [`eval`] and by the functions
//! that read values.
#![deny(missing_docs)]

mod array;
mod bounds;
mod device;
mod dtype;
mod error;
pub mod fast;
pub mod io;
pub mod memory;
pub mod ops;
pub mod primitives;
pub mod quantization;
pub mod random;
pub mod transforms;

pub use array::{Array, Frozen, async_eval, eval, live_arrays};
pub use device::{
    Device, Stream, default_device, set_default_device, synchronize, with_default_stream,
};
pub use dtype::{Dtype, Element, bf16, f16};
pub use error::{Error, Result};
pub use primitives::{cpu_isa, num_threads, set_cpu_isa, set_num_threads};

/// What this build of MLX contains; fixed at compile time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildInfo {
    /// Version of MLX that is linked.
    pub mlx_version: String,
    /// Version of MLX that zmlx is pinned to.
    pub pinned_version: &'static str,
    /// Commit of MLX that zmlx is pinned to.
    pub pin: &'static str,
    /// `source` or `prebuilt`.
    pub mode: &'static str,
    /// Where MLX came from, in words.
    pub source: &'static str,
    /// Backends compiled in: `cpu`, `metal`, `cuda`.
    pub backends: Vec<&'static str>,
    /// Patches applied to MLX.
    pub patches: Vec<&'static str>,
    /// zmlx primitives compiled in.
    pub primitives: Vec<String>,
}

/// What this build of MLX contains.
pub fn build_info() -> BuildInfo {
    use zmlx_sys::build;
    let list = |s: &'static str| s.split(',').filter(|s| !s.is_empty()).collect();
    BuildInfo {
        mlx_version: zmlx_sys::ffi::mlx_version(),
        pinned_version: build::MLX_VERSION,
        pin: build::MLX_PIN,
        mode: build::MODE,
        source: build::SOURCE,
        backends: list(build::BACKENDS),
        patches: list(build::PATCHES),
        primitives: zmlx_sys::ffi::fused_primitives(),
    }
}

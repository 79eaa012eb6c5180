//! Raw bindings to the patched MLX: the bridge table ([`ffi`]) and what this build contains
//! ([`build`]). Safe wrappers are in the `mlx` crate.

#[allow(clippy::too_many_arguments, reason = "the arguments of MLX's own functions")]
mod bridge;

pub use bridge::{Callback, ffi};
pub use cxx::{Exception, UniquePtr};

/// What the build script built, fixed at compile time.
pub mod build {
    /// Version of MLX whose headers this crate was compiled with.
    pub const MLX_VERSION: &str = env!("ZMLX_SYS_MLX_VERSION");
    /// Version of mlx-lm that is the reference on that MLX.
    pub const MLX_LM_VERSION: &str = env!("ZMLX_SYS_MLX_LM_VERSION");
    /// Version of MLX this crate is pinned to.
    pub const PINNED_VERSION: &str = env!("ZMLX_SYS_PINNED_VERSION");
    /// Commit of MLX this crate is pinned to.
    pub const MLX_PIN: &str = env!("ZMLX_SYS_MLX_PIN");
    /// `source` (compiled from the pinned source) or `prebuilt` (an installed MLX).
    pub const MODE: &str = env!("ZMLX_SYS_MODE");
    /// Where MLX came from, in words.
    pub const SOURCE: &str = env!("ZMLX_SYS_SOURCE");
    /// Backends compiled in, comma separated.
    pub const BACKENDS: &str = env!("ZMLX_SYS_BACKENDS");
    /// Patches applied to MLX, comma separated.
    pub const PATCHES: &str = env!("ZMLX_SYS_PATCHES");
}

//! The one error type of this crate.

/// Result of the functions of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in MLX or in its wrappers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An op refused its arguments; `message` is MLX's own and shows what arrived.
    #[error("{message}")]
    InvalidArgument {
        /// MLX's message, which starts with `[op]`.
        message: String,
    },
    /// An array does not have the shape that a wrapper needs.
    #[error("[{op}] expected {expected}, got shape {got:?}")]
    Shape {
        /// Name of the function.
        op: &'static str,
        /// What it needs, in words.
        expected: String,
        /// The shape that arrived.
        got: Vec<i32>,
    },
    /// An array does not have the dtype that a wrapper needs.
    #[error("[{op}] expected dtype {expected}, got {got}; cast it with `astype` first")]
    Dtype {
        /// Name of the function.
        op: &'static str,
        /// The dtype that is needed.
        expected: crate::Dtype,
        /// The dtype that arrived.
        got: crate::Dtype,
    },
    /// A primitive is absent from this build or has no kernel for this case.
    #[error("{message}")]
    Unsupported {
        /// Which primitive, and the reason.
        message: String,
    },
    /// The MLX that the program has found is not the one it was compiled for.
    #[error(
        "the program has found MLX {linked} and was compiled for {compiled}; build it again with \
         MLX_PREBUILT_DIR, or take the other MLX out of LD_LIBRARY_PATH"
    )]
    Version {
        /// Version that the library says it is.
        linked: String,
        /// Version of the headers.
        compiled: String,
    },
    /// The allocator could not give the memory that an evaluation needs.
    #[error("out of memory: {message}")]
    OutOfMemory {
        /// The allocator's message.
        message: String,
    },
    /// Anything else that MLX or the device reported.
    #[error("{message}")]
    Backend {
        /// MLX's message.
        message: String,
    },
}

impl From<zmlx_sys::Exception> for Error {
    fn from(e: zmlx_sys::Exception) -> Self {
        // `shim/error.h` tags every exception as "<kind>\x1f<what>".
        let (tag, message) = e.what().split_once('\x1f').unwrap_or(("backend", e.what()));
        let message = message.to_owned();
        match tag {
            "invalid_argument" => Error::InvalidArgument { message },
            "unsupported" => Error::Unsupported { message },
            "out_of_memory" => Error::OutOfMemory { message },
            _ => Error::Backend { message },
        }
    }
}

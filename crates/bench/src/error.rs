use std::io;

/// What can go wrong while measuring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Of the model.
    #[error(transparent)]
    Lm(#[from] zmlx_lm::Error),
    /// Of MLX.
    #[error(transparent)]
    Mlx(#[from] mlx::Error),
    /// Of a capsule.
    #[error(transparent)]
    Capsule(#[from] zmlx_capsule::Error),
    /// A setting that is none.
    #[error("{what} `{value}`: {reason}")]
    Argument {
        /// What was set.
        what: &'static str,
        /// To what.
        value: String,
        /// What is wrong with it, and what was expected.
        reason: String,
    },
    /// Another program that did not do what it was asked.
    #[error("{program}: {reason}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        reason: String,
    },
    /// A file.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn argument(
        what: &'static str,
        value: impl ToString,
        reason: impl Into<String>,
    ) -> Self {
        Self::Argument { what, value: value.to_string(), reason: reason.into() }
    }

    pub(crate) fn program(program: impl ToString, reason: impl Into<String>) -> Self {
        Self::Program { program: program.to_string(), reason: reason.into() }
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

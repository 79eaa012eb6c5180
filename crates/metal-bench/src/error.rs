//! What can go wrong before a kernel runs, and while it does.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What a kernel did that it must not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// One word: `bounds`, `race`, `uninitialised`, `divergence`, `readonly`, `alignment`, ...
    pub kind: String,
    /// Which thread did what.
    pub message: String,
    /// The line of the kernel, if it is known.
    pub place: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)?;
        if self.place.is_empty() { Ok(()) } else { write!(f, " ({})", self.place) }
    }
}

/// Why a kernel gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel ran, and did what it must not.
    #[error("{kernel}: {fault}")]
    Fault {
        /// Its name.
        kernel: String,
        /// What it did.
        fault: Fault,
    },
    /// The file has something that the translator does not know.
    #[error("cannot translate Metal to C++: {reason}")]
    Translate {
        /// What, with the line.
        reason: String,
    },
    /// The name is not that of a kernel in the file.
    #[error("there is no kernel {name}; known are {known:?}")]
    NoKernel {
        /// The name that was asked for.
        name: String,
        /// The names in the file.
        known: Vec<String>,
    },
    /// The C++ compiler refused.
    #[error("{program} refused {what}:\n{said}")]
    Compiler {
        /// The compiler.
        program: PathBuf,
        /// What it was to compile.
        what: String,
        /// Its first words.
        said: String,
    },
    /// The program with the kernels did not answer as it should.
    #[error("the program with the kernels {reason}")]
    Program {
        /// What it did instead.
        reason: String,
    },
    /// A file or a process could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// MLX's sources could not be found.
    #[error(transparent)]
    Mlx(#[from] zmlx_patch::Error),
}

impl Error {
    /// The fault, if the kernel ran into one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Error::Fault { fault, .. } => Some(fault),
            _ => None,
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}

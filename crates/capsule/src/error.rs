use std::io;
use std::path::PathBuf;

/// What can be wrong with a capsule.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that is no capsule, or one of another version.
    #[error("{path} is no capsule: {reason}")]
    NotACapsule {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// A field that says something impossible.
    #[error("{path}: {field}: {reason}")]
    Field {
        /// The file.
        path: PathBuf,
        /// Where in it.
        field: String,
        /// What is wrong there, and what was expected.
        reason: String,
    },
    /// Two capsules that have nothing in common to compare.
    #[error("nothing to compare: {0}")]
    Nothing(String),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

use std::path::PathBuf;

use crate::{ObjectId, prerequisites::Missing};

/// What can stop the build of MLX.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file that this crate reads has a line it does not understand.
    #[error("{file} line {line}: {problem}")]
    Syntax {
        /// Name of the file.
        file: String,
        /// Line number, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A source holds other content than the pin.
    #[error(
        "{} differs from MLX {version}: git id {got}, pinned {expected}; use a pristine copy of \
         {version}, or set ZMLX_ALLOW_UNVERIFIED_MLX=1 to build it all the same",
        path.display()
    )]
    ContentDiffers {
        /// The file or folder that differs.
        path: PathBuf,
        /// Release that is pinned.
        version: String,
        /// Id in the pin.
        expected: ObjectId,
        /// Id of what was found.
        got: ObjectId,
    },
    /// A source lacks a file or folder that the pin names.
    #[error("{} is not there, and MLX {version} has it", path.display())]
    ContentMissing {
        /// What was looked for.
        path: PathBuf,
        /// Release that is pinned.
        version: String,
    },
    /// A patch fits neither forwards nor backwards.
    #[error("{patch} does not apply to MLX: {detail}")]
    PatchDoesNotApply {
        /// File name of the patch.
        patch: String,
        /// What git said.
        detail: String,
    },
    /// No source of MLX could be used.
    #[error("found no MLX {version} to build: {}", tried.join("; "))]
    NoSource {
        /// Release that is pinned.
        version: String,
        /// One entry for each source: where, and why not.
        tried: Vec<String>,
    },
    /// The machine lacks tools or libraries.
    #[error("{}", crate::prerequisites::report(missing))]
    Prerequisites {
        /// Everything that is missing, not only the first.
        missing: Vec<Missing>,
    },
    /// A program ended with an error.
    #[error("{program} failed ({status}) while it was to {purpose}{detail}")]
    Command {
        /// The program.
        program: String,
        /// Its exit status.
        status: String,
        /// What it was to do.
        purpose: String,
        /// The end of its output, on lines of its own.
        detail: String,
    },
    /// The folder that `MLX_PREBUILT_DIR` names cannot be used.
    #[error("MLX_PREBUILT_DIR={}: {problem}", path.display())]
    Prebuilt {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}

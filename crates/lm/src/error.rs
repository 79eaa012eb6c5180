//! The crate's error type.

use std::path::PathBuf;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a checkpoint folder and a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A JSON file does not parse.
    #[error("{} is not valid JSON: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        reason: String,
    },

    /// A field of a configuration file is missing or unusable.
    #[error("{}: field `{field}` {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, dotted when nested.
        field: String,
        /// What arrived and what is allowed.
        reason: String,
    },

    /// `model_type` names an architecture that is not implemented.
    #[error("model_type `{model_type}` is not supported; known: {}", known.join(", "))]
    UnknownModel {
        /// What `config.json` says.
        model_type: String,
        /// The implemented ones.
        known: Vec<&'static str>,
    },

    /// A weight file is damaged, incomplete or hostile.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// The model needs a weight that the checkpoint lacks.
    #[error("weight `{name}` is missing from {}", path.display())]
    MissingWeight {
        /// Full name of the weight.
        name: String,
        /// The checkpoint folder.
        path: PathBuf,
    },

    /// The checkpoint holds weights that the model does not use.
    #[error("{} of the checkpoint's weights have no place in the model: {}", names.len(), shorten(names))]
    UnexpectedWeight {
        /// Their names, sorted.
        names: Vec<String>,
        /// The file that holds the first of them.
        path: PathBuf,
    },

    /// A weight has another shape than the configuration implies.
    #[error("weight `{name}` in {} has shape {got:?}, config.json implies {expected:?}", path.display())]
    WeightShape {
        /// Full name of the weight.
        name: String,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
        /// The file.
        path: PathBuf,
    },

    /// A weight has a type that cannot be used in its place.
    #[error("weight `{name}` in {} has dtype {got}, expected {expected}", path.display())]
    WeightDtype {
        /// Full name of the weight.
        name: String,
        /// What fits.
        expected: &'static str,
        /// Type in the file.
        got: String,
        /// The file.
        path: PathBuf,
    },

    /// A pattern name that is not in the table.
    #[error("pattern `{name}` is not known; known: {}", known.join(", "))]
    UnknownPattern {
        /// What was asked for.
        name: String,
        /// The table's names.
        known: Vec<&'static str>,
    },

    /// Fused execution was required and a module cannot have it.
    #[error("`{module}` cannot run pattern `{pattern}` fused: {reason}")]
    NotFused {
        /// Path of the module.
        module: String,
        /// The pattern.
        pattern: &'static str,
        /// Why not.
        reason: String,
    },

    /// What the user called a model leads to no folder.
    #[error("{model}: {reason}")]
    Hub {
        /// The folder or repo id.
        model: String,
        /// What was tried, and what to do.
        reason: String,
    },

    /// The tokenizer cannot be read or used.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A chat template is malformed, or refuses the conversation.
    #[error("chat template: {reason}")]
    Template {
        /// What is wrong, and where.
        reason: String,
    },

    /// An argument of a call cannot be used.
    #[error("{name} is {got}: {reason}")]
    Argument {
        /// The argument.
        name: &'static str,
        /// What arrived.
        got: String,
        /// What is allowed.
        reason: String,
    },

    /// An engine cannot serve a request.
    #[error("engine: {reason}")]
    Engine {
        /// What happened.
        reason: String,
    },

    /// MLX refused or failed.
    #[error(transparent)]
    Mlx(#[from] mlx::Error),
}

/// The first few names, and how many more there are.
fn shorten(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub(crate) fn write(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Write { path: path.into(), source }
    }

    pub(crate) fn checkpoint(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn engine(reason: impl Into<String>) -> Self {
        Self::Engine { reason: reason.into() }
    }

    pub(crate) fn argument(
        name: &'static str,
        got: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Argument { name, got: got.to_string(), reason: reason.into() }
    }
}

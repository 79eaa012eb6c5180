//! From what the user calls a model to a folder on disk: a local path, or a Hugging Face repo id in the
//! standard cache (`<cache>/models--owner--name/snapshots/<commit>`), which all Hugging Face tools share.
//!
//! Nothing here prints. Callers fill [`HubOptions`] and may listen through [`Progress`]; only the proxy is
//! taken from the environment, by the HTTP client, as every tool does.

mod cache;
mod client;
mod download;
mod url;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

use self::cache::RepoCache;
use self::client::Failure;

/// The public Hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// The branch that is taken when no revision is named.
pub const DEFAULT_REVISION: &str = "main";

/// Where to look for repos, and how.
#[derive(Clone)]
pub struct HubOptions {
    /// The cache folder, `~/.cache/huggingface/hub` by convention.
    pub cache_dir: PathBuf,
    /// Base URL of the Hub.
    pub endpoint: String,
    /// Access token for gated and private repos; `None` reads public ones.
    pub token: Option<String>,
    /// Branch, tag or commit.
    pub revision: String,
    /// Use what the cache holds and connect to nothing.
    pub offline: bool,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long a connection may stay silent, before an answer and within it.
    pub read_timeout: Duration,
    /// How often in a row a request is repeated that fails for a reason that may pass.
    pub retries: u32,
    /// The pause before the first repetition; each further one takes twice as long.
    pub retry_delay: Duration,
    /// Files downloaded at once.
    pub parallel: usize,
}

impl HubOptions {
    /// The public Hub, its main branch, online, no token, ten seconds of patience.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            revision: DEFAULT_REVISION.to_owned(),
            offline: false,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(10),
            retries: 4,
            retry_delay: Duration::from_secs(1),
            parallel: 8,
        }
    }
}

/// Without the token, which does not belong into logs.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache_dir", &self.cache_dir)
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("revision", &self.revision)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// Bytes of all files of one download: how many have arrived, how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes on disk so far.
    pub bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// Receives [`Progress`].
pub type ProgressListener<'a> = &'a mut dyn FnMut(Progress);

/// The folder that holds `model`: a local path when one exists, else a repo id looked up in the cache and,
/// unless `options.offline`, on the Hub.
///
/// - `listener`: told about bytes as they arrive; silent when the cache has everything
///
/// # Errors
/// `Hub`, which names the repo, the revision, what was tried and what to do.
pub fn resolve(
    model: &str,
    options: &HubOptions,
    listener: Option<ProgressListener<'_>>,
) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    if path.exists() {
        return Err(failure(model, "it is a file; name the folder that holds config.json"));
    }
    if !is_repo_id(model) {
        let reason = "no such folder, and it is no Hub id (owner/name) either; check the spelling";
        return Err(failure(model, reason));
    }
    if !is_revision(&options.revision) {
        let reason = format!("`{}` is no branch, tag or commit", options.revision);
        return Err(failure(model, reason));
    }
    let cache = RepoCache::new(&options.cache_dir, model);
    let cached = cache.complete_snapshot(&options.revision);
    if options.offline {
        return cached.map_err(|lack| {
            failure(
                model,
                format!(
                    "offline, and the cache does not have it: {lack}; \
                     go online once (unset HF_HUB_OFFLINE) or give a local folder"
                ),
            )
        });
    }
    // A commit never changes: there is nothing to ask for.
    if let Ok(folder) = &cached
        && is_commit(&options.revision)
    {
        return Ok(folder.clone());
    }
    match download::download(model, options, &cache, cached.is_ok(), listener) {
        Ok(folder) => Ok(folder),
        // Without a network a complete snapshot is as good as a fresh look.
        Err(Failure::Unreachable { reason, .. }) => cached.map_err(|lack| {
            failure(
                model,
                format!(
                    "{} cannot be reached ({reason}), and the cache does not have it: {lack}; \
                     check the network, HTTPS_PROXY and HF_ENDPOINT and try again (a download continues \
                     where it stopped), or give a local folder",
                    options.endpoint
                ),
            )
        }),
        Err(Failure::Refused(reason)) => Err(failure(model, reason)),
    }
}

/// `owner/name` by the Hub's own rules for characters.
fn is_repo_id(id: &str) -> bool {
    let fits = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    id.split_once('/').is_some_and(|(owner, name)| fits(owner) && fits(name))
}

/// Whether the name can be a path below `refs/`.
fn is_revision(name: &str) -> bool {
    name.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !name.chars().any(|c| c.is_control() || c == '\\')
}

/// A full commit hash.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn failure(model: &str, reason: impl Into<String>) -> Error {
    Error::Hub { model: model.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests;

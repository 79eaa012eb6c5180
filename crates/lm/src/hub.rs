//! From what the user calls a model to a folder on disk: a local path, or a Hugging Face repo id in the
//! standard cache (`<cache>/models--owner--name/snapshots/<commit>`).
//!
//! Nothing here reads the environment or prints. Callers fill [`HubOptions`] and may listen through
//! [`Progress`].

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use crate::error::{Error, Result};

/// The public Hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// The branch that is taken when no revision is named.
pub const DEFAULT_REVISION: &str = "main";

/// A file that was cut off is continued this many times.
const RETRIES: usize = 3;

/// Where to look for repos, and how.
#[derive(Debug, Clone)]
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
}

impl HubOptions {
    /// The public Hub, its main branch, online, no token.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            revision: DEFAULT_REVISION.to_owned(),
            offline: false,
        }
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
    if options.offline {
        return cached(model, options).map_err(|reason| {
            failure(
                model,
                format!(
                    "no such folder, and offline the cache does not have it: {reason}; \
                     go online once (unset HF_HUB_OFFLINE) or give a local folder"
                ),
            )
        });
    }
    match download(model, options, listener) {
        Ok(folder) => Ok(folder),
        // Without a network a complete snapshot is as good as a fresh look.
        Err(Failure::Unreachable(reason)) => cached(model, options).map_err(|lack| {
            failure(
                model,
                format!(
                    "no such folder, {} cannot be reached ({reason}), and the cache does not have it: {lack}",
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

/// What a checkpoint consists of here. Folders hold other formats (`onnx/`, `original/`); weights that mlx-lm
/// does not read (`consolidated.safetensors`, `*.bin`, `*.gguf`) stay where they are.
fn is_wanted(name: &str) -> bool {
    let is_weights = name.starts_with("model") && name.ends_with(".safetensors");
    !name.contains('/') && (is_weights || name.ends_with(".json") || name.ends_with(".jinja"))
}

/// Why a download did not happen.
enum Failure {
    /// No answer, or one that says "not now": the cache may help.
    Unreachable(String),
    /// An answer: looking elsewhere would be wrong.
    Refused(String),
}

impl Failure {
    fn of(error: &ApiError, options: &HubOptions) -> Self {
        let HubOptions { endpoint, revision, .. } = options;
        let ApiError::RequestError(request) = error else {
            return Self::Refused(format!("download from {endpoint} failed: {error}"));
        };
        match request.as_ref() {
            ureq::Error::StatusCode(401) if options.token.is_none() => Self::Refused(format!(
                "no such folder, and {endpoint} has no such public repo; set HF_TOKEN if it is private"
            )),
            ureq::Error::StatusCode(401) => {
                Self::Refused(format!("{endpoint} does not accept the token; check HF_TOKEN"))
            }
            ureq::Error::StatusCode(403) => Self::Refused(format!(
                "{endpoint} refuses access; accept the model's terms there, then set HF_TOKEN"
            )),
            ureq::Error::StatusCode(404) => Self::Refused(format!(
                "no such folder, and {endpoint} has no such repo with a revision {revision}"
            )),
            ureq::Error::StatusCode(code @ (429 | 500..=599)) => {
                Self::Unreachable(format!("status {code}"))
            }
            ureq::Error::StatusCode(code) => {
                Self::Refused(format!("{endpoint} answers with status {code}"))
            }
            other => Self::Unreachable(other.to_string()),
        }
    }
}

/// Brings what the cache lacks of the revision, and returns its snapshot folder.
fn download(
    model: &str,
    options: &HubOptions,
    listener: Option<ProgressListener<'_>>,
) -> std::result::Result<PathBuf, Failure> {
    let fail = |error: ApiError| Failure::of(&error, options);
    let cache = Cache::new(options.cache_dir.clone());
    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(options.endpoint.trim_end_matches('/').to_owned())
        .with_token(options.token.clone())
        .with_retries(RETRIES)
        .with_progress(false)
        .with_user_agent("zmlx", env!("CARGO_PKG_VERSION"))
        .build()
        .map_err(fail)?;
    let repo = Repo::with_revision(model.to_owned(), RepoType::Model, options.revision.clone());
    let remote = api.repo(repo.clone());
    let info = remote.info().map_err(fail)?;
    let local = cache.repo(repo);
    let snapshot = local.pointer_path(&info.sha);
    let missing: Vec<String> = info
        .siblings
        .into_iter()
        .map(|file| file.rfilename)
        .filter(|name| is_wanted(name) && !snapshot.join(name).exists())
        .collect();
    let mut sizes = Vec::new();
    for name in &missing {
        sizes.push(size_of(&api, &remote, name).map_err(fail)?);
    }
    let totals = Totals::new(sizes.iter().flatten().sum(), listener);
    for (name, size) in missing.iter().zip(&sizes) {
        let landed = match size {
            Some(size) => fetch(&remote, name, *size, &totals),
            None => fetch_plain(&remote, name, &snapshot, options),
        };
        let folder = landed.map_err(fail)?;
        if folder.parent() != Some(&snapshot) {
            return Err(Failure::Refused(format!(
                "{} changed while it was downloaded; try again",
                options.revision
            )));
        }
    }
    local.create_ref(&info.sha).map_err(|error| fail(error.into()))?;
    Ok(snapshot)
}

/// The size of a file in the repo; `None` where the server knows no byte ranges.
fn size_of(api: &Api, remote: &ApiRepo, name: &str) -> std::result::Result<Option<u64>, ApiError> {
    match api.metadata(&remote.url(name)) {
        Ok(metadata) => Ok(Some(metadata.size() as u64)),
        Err(ApiError::MissingHeader(header)) if header.eq_ignore_ascii_case("content-range") => {
            Ok(None)
        }
        // An empty file has no first byte to ask for.
        Err(ApiError::RequestError(error)) if matches!(*error, ureq::Error::StatusCode(416)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Downloads one file, continuing an earlier attempt.
fn fetch(
    remote: &ApiRepo,
    name: &str,
    size: u64,
    totals: &Totals<'_>,
) -> std::result::Result<PathBuf, ApiError> {
    let path = remote.download_with_progress(name, FileProgress { totals })?;
    let got = fs::metadata(&path)?.len();
    if got != size {
        // Not a file to keep: the next attempt would take it for complete.
        let blob = fs::canonicalize(&path)?;
        fs::remove_file(&path)?;
        fs::remove_file(blob).ok();
        let reason = format!("{name} has {got} bytes, {size} were announced");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason).into());
    }
    Ok(path)
}

/// Downloads one file in one piece, straight into the snapshot.
fn fetch_plain(
    remote: &ApiRepo,
    name: &str,
    snapshot: &Path,
    options: &HubOptions,
) -> std::result::Result<PathBuf, ApiError> {
    let mut request = ureq::get(remote.url(name));
    if let Some(token) = &options.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response = request.call().map_err(Box::new)?;
    fs::create_dir_all(snapshot)?;
    let part = snapshot.join(format!("{name}.part"));
    let announced = response.body().content_length();
    let got = io::copy(&mut response.into_body().into_reader(), &mut fs::File::create(&part)?)?;
    if announced.is_some_and(|size| size != got) {
        let reason = format!("{name} ended after {got} bytes");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason).into());
    }
    let path = snapshot.join(name);
    fs::rename(part, &path)?;
    Ok(path)
}

/// Adds up the files of one download.
struct Totals<'a> {
    total_bytes: u64,
    state: RefCell<(u64, Option<ProgressListener<'a>>)>,
}

impl<'a> Totals<'a> {
    fn new(total_bytes: u64, listener: Option<ProgressListener<'a>>) -> Self {
        Self { total_bytes, state: RefCell::new((0, listener)) }
    }

    fn add(&self, bytes: u64) {
        let (sum, listener) = &mut *self.state.borrow_mut();
        *sum = (*sum + bytes).min(self.total_bytes);
        if let Some(listener) = listener {
            listener(Progress { bytes: *sum, total_bytes: self.total_bytes });
        }
    }
}

struct FileProgress<'t, 'a> {
    totals: &'t Totals<'a>,
}

impl hf_hub::api::Progress for FileProgress<'_, '_> {
    fn init(&mut self, _size: usize, _name: &str) {}

    fn update(&mut self, bytes: usize) {
        self.totals.add(bytes as u64);
    }

    fn finish(&mut self) {}
}

/// The snapshot that the cache holds for the revision, when it is complete; else what is missing.
fn cached(model: &str, options: &HubOptions) -> std::result::Result<PathBuf, String> {
    let repo = options.cache_dir.join(format!("models--{}", model.replace('/', "--")));
    if !repo.is_dir() {
        return Err(format!("nothing of it in {}", options.cache_dir.display()));
    }
    let revision = &options.revision;
    let commit = match fs::read_to_string(repo.join("refs").join(revision)) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => revision.clone(),
    };
    let snapshot = repo.join("snapshots").join(&commit);
    if !snapshot.is_dir() {
        return Err(format!("revision {revision} is not in {}", repo.display()));
    }
    let missing = missing_files(&snapshot);
    if missing.is_empty() {
        Ok(snapshot)
    } else {
        Err(format!("{} lacks {}", snapshot.display(), missing.join(", ")))
    }
}

/// What a checkpoint folder needs before it can be loaded, and does not have.
fn missing_files(folder: &Path) -> Vec<String> {
    let mut wanted = BTreeSet::from(["config.json".to_owned()]);
    let index = fs::read(folder.join("model.safetensors.index.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    match index.as_ref().and_then(|index| index["weight_map"].as_object()) {
        Some(map) => wanted.extend(map.values().filter_map(Value::as_str).map(str::to_owned)),
        None => {
            wanted.insert("model.safetensors".to_owned());
        }
    }
    wanted.into_iter().filter(|name| !folder.join(name).exists()).collect()
}

fn failure(model: &str, reason: impl Into<String>) -> Error {
    Error::Hub { model: model.to_owned(), reason: reason.into() }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;

//! Where things lie on this machine. The one place that reads the environment.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure};
use zmlx::capsule::Software;
use zmlx::lm::hub::HubOptions;

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_on(name: &str) -> bool {
    variable(name)
        .is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()))
}

/// The Hub as the variables of `huggingface_hub` describe it.
pub(super) fn hub_options(revision: Option<&str>) -> anyhow::Result<HubOptions> {
    let mut options = HubOptions::new(hub_cache()?);
    if let Some(endpoint) = variable("HF_ENDPOINT") {
        ensure!(
            endpoint.starts_with("http://") || endpoint.starts_with("https://"),
            "HF_ENDPOINT is {endpoint}; expected a URL that begins with https://"
        );
        options.endpoint = endpoint;
    }
    if let Some(revision) = revision {
        options.revision = revision.to_owned();
    }
    options.offline = is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE");
    options.token = token();
    if let Some(timeout) = seconds("HF_HUB_ETAG_TIMEOUT")? {
        options.connect_timeout = timeout;
    }
    if let Some(timeout) = seconds("HF_HUB_DOWNLOAD_TIMEOUT")? {
        options.read_timeout = timeout;
    }
    Ok(options)
}

fn seconds(name: &str) -> anyhow::Result<Option<Duration>> {
    let Some(value) = variable(name) else { return Ok(None) };
    match value.parse() {
        Ok(seconds @ 1..) => Ok(Some(Duration::from_secs(seconds))),
        _ => bail!("{name} is {value}; expected a whole number of seconds, at least 1"),
    }
}

fn token() -> Option<String> {
    let read = |path: PathBuf| Some(fs::read_to_string(path).ok()?.trim().to_owned());
    variable("HF_TOKEN")
        .or_else(|| {
            if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                return None;
            }
            let named = variable("HF_TOKEN_PATH").map(PathBuf::from);
            read(named.or_else(|| Some(hf_home()?.join("token")))?)
        })
        .filter(|token| !token.is_empty())
}

fn hf_home() -> Option<PathBuf> {
    let cache = || variable("XDG_CACHE_HOME").map(PathBuf::from);
    variable("HF_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(cache().or_else(home_cache)?.join("huggingface")))
}

fn home_cache() -> Option<PathBuf> {
    Some(env::home_dir()?.join(".cache"))
}

/// The folder that holds downloaded repos.
pub(super) fn hub_cache() -> anyhow::Result<PathBuf> {
    let named = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    match named.map(PathBuf::from).or_else(|| Some(hf_home()?.join("hub"))) {
        Some(path) => Ok(path),
        None => bail!("there is no home directory; set HF_HOME to a folder for downloads"),
    }
}

/// The folder of the model that zmlx ships.
pub(super) fn demo_model() -> anyhow::Result<PathBuf> {
    let candidates = demo_candidates();
    match candidates.iter().find(|folder| folder.join("config.json").is_file()) {
        Some(folder) => Ok(folder.clone()),
        None => {
            let tried: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
            bail!(
                "the demo model is not here (tried {}); name a model, or set ZMLX_DEMO_MODEL to its folder",
                tried.join(", ")
            )
        }
    }
}

/// `ZMLX_DEMO_MODEL` alone when set; else beside an installed program, beside one in a build folder of a checkout,
/// and where the program was compiled.
fn demo_candidates() -> Vec<PathBuf> {
    if let Some(path) = variable("ZMLX_DEMO_MODEL") {
        return vec![PathBuf::from(path)];
    }
    let mut candidates = Vec::new();
    let program = env::current_exe().and_then(fs::canonicalize).ok();
    if let Some(folder) = program.as_deref().and_then(Path::parent) {
        if let Some(prefix) = folder.parent() {
            candidates.push(prefix.join("share/zmlx/models/demo"));
        }
        let checkouts = folder.ancestors().skip(1).take(4);
        candidates.extend(checkouts.map(|root| root.join("models/demo")));
    }
    candidates.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    candidates.dedup();
    candidates
}

/// The file that keeps what is typed in a chat; `None` keeps nothing.
pub(super) fn chat_history() -> Option<PathBuf> {
    if let Some(path) = env::var_os("ZMLX_CHAT_HISTORY") {
        return (!path.is_empty()).then(|| path.into());
    }
    let state = variable("XDG_STATE_HOME").map(PathBuf::from);
    Some(state.or_else(|| Some(env::home_dir()?.join(".local/state")))?.join("zmlx/chat_history"))
}

/// The folder of what `--patch smart` remembers; `None` remembers nothing.
pub(super) fn smart_store() -> Option<PathBuf> {
    if let Some(path) = env::var_os("ZMLX_SMART_DIR") {
        return (!path.is_empty()).then(|| path.into());
    }
    let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
    Some(cache.or_else(home_cache)?.join("zmlx/smart"))
}

/// This program, for what is measured with it.
pub(super) fn software() -> Software {
    Software {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: env!("ZMLX_GIT_HASH").to_owned(),
    }
}

/// The Python that has mlx-lm.
pub(super) fn python() -> String {
    variable("ZMLX_PYTHON").unwrap_or_else(|| "python3".to_owned())
}

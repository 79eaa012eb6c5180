//! What was chosen before: a file for each machine, model and version.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zmlx_lm::LoadedModel;

use super::{Choice, SmartOptions};
use crate::{Error, Result, hash, machine};

/// What a choice holds for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    cpu: String,
    isa: String,
    threads: i32,
    device: String,
    zmlx: String,
    mlx: String,
    checkpoint: String,
    precision: String,
    candidates: Vec<String>,
    /// How keys and values are kept.
    cache: String,
    /// Modules that are left alone.
    targets: String,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    choice: Choice,
}

impl Key {
    pub(super) fn new(
        loaded: &LoadedModel,
        options: &SmartOptions,
        candidates: &[&str],
    ) -> Result<Self> {
        let here = machine::machine();
        let mlx = mlx::build_info();
        let exclude: Vec<&str> = options.patch.exclude.iter().map(|glob| glob.as_str()).collect();
        Ok(Self {
            cpu: here.device_name.unwrap_or(here.cpu),
            isa: here.isa,
            threads: here.threads,
            device: here.device,
            zmlx: format!("{} {}", options.zmlx.version, options.zmlx.commit),
            mlx: mlx.stock(),
            checkpoint: hash::checkpoint(loaded)?,
            precision: format!("{:?}", options.patch.precision).to_lowercase(),
            candidates: candidates.iter().map(|name| (*name).to_owned()).collect(),
            cache: format!("{:?}", options.cache),
            targets: format!("{exclude:?} {:?}", options.patch.layers),
        })
    }

    fn path(&self, folder: &Path) -> Result<PathBuf> {
        let text = serde_json::to_string(self);
        let text = text.map_err(|error| unusable("write", folder, error.into()))?;
        Ok(folder.join(format!("{}.json", &hash::text(&text)[..16])))
    }
}

fn unusable(verb: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { verb, path: path.display().to_string(), source }
}

/// What was chosen for this key, if anything was. A file that cannot be understood is measured anew.
pub(super) fn recall(folder: &Path, key: &Key) -> Result<Option<Choice>> {
    let path = key.path(folder)?;
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable("read", &path, error)),
    };
    let entry: Option<Entry> = serde_json::from_str(&text).ok();
    Ok(entry.filter(|entry| entry.key == *key).map(|entry| entry.choice))
}

/// Keeps what was chosen.
pub(super) fn remember(folder: &Path, key: &Key, choice: &Choice) -> Result<()> {
    let path = key.path(folder)?;
    let entry = Entry { key: key.clone(), choice: choice.clone() };
    let bytes =
        serde_json::to_vec_pretty(&entry).map_err(|e| unusable("write", &path, e.into()))?;
    let draft = path.with_extension(format!("{}.partial", std::process::id()));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&draft, bytes))
        .and_then(|()| fs::rename(&draft, &path))
        .map_err(|error| unusable("write", &path, error))
}

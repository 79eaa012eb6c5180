//! The cache that all Hugging Face tools share, as `huggingface_hub` lays it out:
//!
//! ```text
//! models--owner--name/
//!   blobs/<etag>                    contents; <etag>.incomplete while they arrive
//!   snapshots/<commit>/<file>       links to blobs
//!   refs/<revision>                 the commit that a branch or tag stood for
//!   .no_exist/<commit>/<file>       empty: the commit has no such file
//! .locks/models--owner--name/<etag>.lock
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::Checkpoint;

/// Files of which a tokenizer can be made, the first choice first.
const TOKENIZER_FILES: [&str; 2] = ["tokenizer.json", "tiktoken.model"];

/// What the cache holds of one repo.
pub(super) struct RepoCache {
    dir: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache_dir: &Path, model: &str) -> Self {
        let name = format!("models--{}", model.replace('/', "--"));
        Self { dir: cache_dir.join(&name), locks: cache_dir.join(".locks").join(name) }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// Keeps other processes away from a blob until the returned file is dropped.
    pub(super) fn lock(&self, etag: &str) -> io::Result<File> {
        fs::create_dir_all(&self.locks)?;
        let file = File::create(self.locks.join(format!("{etag}.lock")))?;
        match file.lock() {
            // Some network file systems have no locks; two downloads at once are rare.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
            other => other.map(|()| file),
        }
    }

    /// Makes `name` of a snapshot stand for a blob.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> io::Result<()> {
        let path = self.snapshot(commit).join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // A link to a blob that is gone.
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path)?;
        }
        let ups = "../".repeat(2 + name.matches('/').count());
        symlink(Path::new(&format!("{ups}blobs/{etag}")), &path)
            .or_else(|_| fs::hard_link(self.blob(etag), &path))
            .or_else(|_| fs::copy(self.blob(etag), &path).map(drop))
    }

    /// Notes that the revision stands for the commit, and which tokenizer files it does not have.
    pub(super) fn finish(
        &self,
        revision: &str,
        commit: &str,
        names: &BTreeSet<String>,
    ) -> io::Result<()> {
        for name in TOKENIZER_FILES.iter().filter(|name| !names.contains(**name)) {
            let mark = self.absence_mark(commit, name);
            if !mark.exists() {
                fs::create_dir_all(self.dir.join(".no_exist").join(commit))?;
                File::create(mark)?;
            }
        }
        if revision == commit {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, commit)
    }

    fn absence_mark(&self, commit: &str, name: &str) -> PathBuf {
        self.dir.join(".no_exist").join(commit).join(name)
    }

    /// The snapshot of the revision, when a model can be loaded from it; else what is missing.
    pub(super) fn complete_snapshot(&self, revision: &str) -> Result<PathBuf, String> {
        if !self.dir.is_dir() {
            return Err(format!("{} does not exist", self.dir.display()));
        }
        let commit = match fs::read_to_string(self.dir.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        let snapshot = self.snapshot(&commit);
        if !snapshot.is_dir() {
            return Err(format!("revision {revision} is not in {}", self.dir.display()));
        }
        let mut missing = missing_weights(&snapshot);
        if !snapshot.join("config.json").exists() {
            missing.insert(0, "config.json".to_owned());
        }
        let has = |name: &&str| snapshot.join(name).exists();
        let is_absent = |name: &&str| self.absence_mark(&commit, name).exists();
        if !TOKENIZER_FILES.iter().any(has) && !TOKENIZER_FILES.iter().all(is_absent) {
            missing.push(TOKENIZER_FILES[0].to_owned());
        }
        if missing.is_empty() {
            return Ok(snapshot);
        }
        Err(format!("{} lacks {}", snapshot.display(), missing.join(", ")))
    }
}

/// Weight files that the folder should have and does not.
fn missing_weights(folder: &Path) -> Vec<String> {
    let index = fs::read(folder.join("model.safetensors.index.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let wanted: BTreeSet<String> =
        match index.as_ref().and_then(|index| index["weight_map"].as_object()) {
            Some(map) => map.values().filter_map(Value::as_str).map(str::to_owned).collect(),
            None if has_weights(folder) => BTreeSet::new(),
            None => BTreeSet::from(["model.safetensors".to_owned()]),
        };
    let missing: Vec<_> = wanted.into_iter().filter(|name| !folder.join(name).exists()).collect();
    // A stale index names files that never were: the tensors count.
    if !missing.is_empty() && Checkpoint::open(folder).is_ok() { Vec::new() } else { missing }
}

fn has_weights(folder: &Path) -> bool {
    let is_weights = |name: &str| name.starts_with("model") && name.ends_with(".safetensors");
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            entry.file_name().to_str().is_some_and(is_weights) && entry.path().exists()
        })
    })
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

//! The shared cache: each way of building MLX once, whatever happens to the checkouts.
//!
//! An entry is an install prefix in a folder named by its key. It is built beside its final place
//! and renamed into it, with a record of what it should hold, so an entry is either whole or
//! absent. A lock file for each key lets the second of two builds wait for the first; the
//! operating system frees the lock of a process that dies, and what such a process has left is
//! removed by the next one.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::{Error, ObjectId, Result};

const RECORD: &str = "zmlx-build.txt";

/// Everything that decides what a build of MLX contains, as lines of text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Key {
    lines: Vec<String>,
}

impl Key {
    /// Adds one ingredient.
    pub fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        self.lines.push(format!("{name}={value}"));
    }

    fn text(&self) -> String {
        self.lines.join("\n") + "\n"
    }

    /// A short name that is different for different ingredients.
    pub fn id(&self) -> String {
        ObjectId::of("key", self.text().as_bytes()).to_string()[..16].to_owned()
    }
}

/// A folder with one entry for each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// A cache in `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Cache {
        Cache { root: root.into() }
    }

    /// Where the entry for `key` of the release `version` lies once it is built.
    pub fn path(&self, version: &str, key: &Key) -> PathBuf {
        self.root.join(entry_name(version, key))
    }

    /// The entry for `key` of the release `version`, built by `build` if it is not there.
    ///
    /// `build` gets an empty folder to work in and the empty folder to install to. When it fails,
    /// or the process dies in it, no entry comes into being.
    ///
    /// # Errors
    /// Those of `build`, and `Io`.
    pub fn entry(
        &self,
        version: &str,
        key: &Key,
        build: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        fs::create_dir_all(&self.root).map_err(Error::io("create", &self.root))?;
        let name = entry_name(version, key);
        let entry = self.path(version, key);
        if is_whole(&entry, key) {
            return Ok(entry);
        }

        let lock_path = self.root.join(format!("{name}.lock"));
        let lock = File::create(&lock_path).map_err(Error::io("create", &lock_path))?;
        lock.lock().map_err(Error::io("lock", &lock_path))?;
        if is_whole(&entry, key) {
            return Ok(entry);
        }

        self.remove_leftovers(&name)?;
        // a name of its own: the compiler of a build that was killed may still be writing
        let scratch = self.root.join(format!("{name}.{}.tmp", std::process::id()));
        let (work, prefix) = (scratch.join("work"), scratch.join("prefix"));
        for folder in [&work, &prefix] {
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        build(&work, &prefix)?;
        write_record(&prefix, key)?;
        fs::rename(&prefix, &entry).map_err(Error::io("publish", &entry))?;
        fs::remove_dir_all(&scratch).map_err(Error::io("remove", &scratch))?;
        Ok(entry)
    }

    /// Removes what dead builds of the entry have left, and the entry if it is damaged.
    fn remove_leftovers(&self, name: &str) -> Result<()> {
        let entry = self.root.join(name);
        if entry.exists() {
            fs::remove_dir_all(&entry).map_err(Error::io("remove", &entry))?;
        }
        let prefix = format!("{name}.");
        for file in fs::read_dir(&self.root).map_err(Error::io("list", &self.root))?.flatten() {
            let file_name = file.file_name();
            let file_name = file_name.to_string_lossy();
            if file_name.starts_with(&prefix) && file_name.ends_with(".tmp") {
                // what cannot be removed now goes next time
                let _ = fs::remove_dir_all(file.path());
            }
        }
        Ok(())
    }
}

fn entry_name(version: &str, key: &Key) -> String {
    format!("{version}-{}", key.id())
}

/// The record lists the key and the size of every file in `lib`.
fn write_record(prefix: &Path, key: &Key) -> Result<()> {
    let record = prefix.join(RECORD);
    let text = key.text() + &library_sizes(prefix).map_err(Error::io("list", prefix))?;
    fs::write(&record, text).map_err(Error::io("write", record))
}

fn is_whole(entry: &Path, key: &Key) -> bool {
    let Ok(record) = fs::read_to_string(entry.join(RECORD)) else { return false };
    library_sizes(entry).is_ok_and(|sizes| record == key.text() + &sizes)
}

fn library_sizes(prefix: &Path) -> std::io::Result<String> {
    let mut sizes = Vec::new();
    for file in fs::read_dir(prefix.join("lib"))? {
        let file = file?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            sizes.push(format!("{} {}\n", file.file_name().to_string_lossy(), metadata.len()));
        }
    }
    sizes.sort();
    Ok(sizes.concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    fn key(value: &str) -> Key {
        let mut key = Key::default();
        key.add("patch", value);
        key
    }

    fn install(prefix: &Path) -> Result<()> {
        let lib = prefix.join("lib");
        fs::create_dir_all(&lib).map_err(Error::io("create", &lib))?;
        fs::write(lib.join("libmlx.a"), "archive").map_err(Error::io("write", lib))
    }

    #[test]
    fn entry_is_built_once_for_each_key() {
        let dir = tempfile::tempdir().expect("tempdir");
        let cache = Cache::new(dir.path());
        let first = cache.entry("1.0", &key("a"), |_, prefix| install(prefix)).expect("first");
        let again = cache.entry("1.0", &key("a"), |_, _| panic!("built twice")).expect("again");
        let other = cache.entry("1.0", &key("b"), |_, prefix| install(prefix)).expect("other");
        assert_eq!(first, again);
        assert_ne!(first, other);
    }

    #[test]
    fn failed_build_leaves_no_entry() {
        let dir = tempfile::tempdir().expect("tempdir");
        let cache = Cache::new(dir.path());
        let failed = cache.entry("1.0", &key("a"), |_, prefix| {
            install(prefix)?;
            Err(Error::Prebuilt { path: prefix.into(), problem: "half".to_owned() })
        });
        assert!(failed.is_err());
        let entry = cache.entry("1.0", &key("a"), |work, prefix| {
            assert_eq!(fs::read_dir(work).expect("work").count(), 0);
            assert!(!prefix.join("lib").exists());
            install(prefix)
        });
        assert!(entry.expect("second try").join("lib/libmlx.a").exists());
    }

    #[test]
    fn truncated_library_is_built_again() {
        let dir = tempfile::tempdir().expect("tempdir");
        let cache = Cache::new(dir.path());
        let entry = cache.entry("1.0", &key("a"), |_, prefix| install(prefix)).expect("first");
        fs::write(entry.join("lib/libmlx.a"), "arch").expect("truncate");
        let mut rebuilt = false;
        let build = |_: &Path, prefix: &Path| {
            rebuilt = true;
            install(prefix)
        };
        cache.entry("1.0", &key("a"), build).expect("second");
        assert!(rebuilt);
    }

    #[test]
    fn concurrent_builds_of_one_key_run_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let builds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let cache = Cache::new(dir.path());
                    let entry = cache.entry("1.0", &key("a"), |_, prefix| {
                        builds.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(50));
                        install(prefix)
                    });
                    assert!(entry.expect("entry").join("lib/libmlx.a").exists());
                });
            }
        });
        assert_eq!(builds.load(Ordering::SeqCst), 1);
    }

    const CHILD: &str = "ZMLX_PATCH_TEST_CACHE";

    /// Not a test: the process that `killed_build_is_taken_over` starts and kills.
    #[test]
    fn build_that_is_going_to_be_killed() {
        let Ok(root) = std::env::var(CHILD) else { return };
        let _ = Cache::new(root).entry("1.0", &key("a"), |work, prefix| {
            install(prefix)?;
            fs::write(work.join("started"), "").map_err(Error::io("write", work))?;
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
    }

    #[test]
    fn killed_build_is_taken_over() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut child = std::process::Command::new(std::env::current_exe().expect("exe"))
            .args(["--exact", "cache::tests::build_that_is_going_to_be_killed"])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("child");
        let scratch = dir.path().join(format!("1.0-{}.{}.tmp", key("a").id(), child.id()));
        let started = scratch.join("work/started");
        while !started.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().expect("kill");
        child.wait().expect("wait");

        let entry = Cache::new(dir.path()).entry("1.0", &key("a"), |work, prefix| {
            assert_eq!(fs::read_dir(work).expect("work").count(), 0);
            install(prefix)
        });
        assert!(entry.expect("taken over").join("lib/libmlx.a").exists());
        assert!(!scratch.exists());
    }
}

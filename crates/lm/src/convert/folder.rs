//! The folder that is written: nothing in it looks whole before it is, and a run that was killed is continued.
//!
//! Weight files grow under a name that no loader looks for and get their own when every byte is on disk;
//! `config.json` comes last. Until then a journal says what is being made, so that nothing else is mixed into it, and
//! how far the file in the making is known to be on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::shards::{Entry, Shard, header};

const JOURNAL: &str = ".zmlx-convert.json";
/// What a file ends in while it is written.
const PARTIAL: &str = ".partial";
/// Bytes after which a file in the making is brought to disk.
const SYNC_EVERY: u64 = 64 << 20;
const BUFFER_BYTES: usize = 1 << 20;

/// An output folder, taken by this process.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// What is being made.
    job: Value,
    /// Held while we write.
    _lock: File,
    /// The weight file that a killed run was at, and how much of it was on disk.
    reached: (usize, u64),
}

impl Folder {
    /// Takes a folder: a new or empty one, or one that a killed run with the same `job` left behind.
    ///
    /// # Errors
    /// `Argument` where it holds something else or another process writes to it; `Write`.
    pub(super) fn take(path: &Path, job: Value) -> Result<Self> {
        let refused = |reason: String| Error::argument("out", path.display(), reason);
        if path.exists() && !path.is_dir() {
            return Err(refused("it is a file; choose a new folder".to_owned()));
        }
        fs::create_dir_all(path).map_err(|error| Error::write(path, error))?;
        let lock = File::open(path).map_err(|error| Error::io(path, error))?;
        if lock.try_lock().is_err() {
            return Err(refused("another process is writing to it".to_owned()));
        }
        let mut folder = Self { path: path.to_owned(), job, _lock: lock, reached: (0, 0) };
        let Some(journal) = folder.journal()? else {
            for entry in fs::read_dir(path).map_err(|error| Error::io(path, error))? {
                let name = entry.map_err(|error| Error::io(path, error))?.file_name();
                let name = name.to_string_lossy();
                if name == format!("{JOURNAL}{PARTIAL}") {
                    continue;
                }
                return Err(refused(format!("it holds {name}; choose a new or empty folder")));
            }
            folder.write_journal()?;
            return Ok(folder);
        };
        if let Some(field) = difference(&journal["job"], &folder.job) {
            return Err(refused(format!(
                "it holds an unfinished conversion with another {field}; delete it or choose a new folder"
            )));
        }
        let number = |field: &str| journal[field].as_u64().unwrap_or(0);
        folder.reached = (number("file") as usize, number("bytes"));
        Ok(folder)
    }

    fn journal(&self) -> Result<Option<Value>> {
        let path = self.path.join(JOURNAL);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::Json {
                path,
                reason: format!("{error}; delete the folder or choose another"),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path, error)),
        }
    }

    fn write_journal(&self) -> Result<()> {
        let (file, bytes) = self.reached;
        let journal = json!({ "job": self.job, "file": file, "bytes": bytes });
        self.write_file(JOURNAL, format!("{journal:#}\n").as_bytes())
    }

    /// Writes a file so that it is there either whole or not at all.
    ///
    /// # Errors
    /// `Write`.
    pub(super) fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, partial) = self.paths(name);
        let write = || {
            let mut file = File::create(&partial)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&partial, &path)
        };
        write().map_err(|error| Error::write(&path, error))
    }

    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.path.join(name), self.path.join(format!("{name}{PARTIAL}")))
    }

    /// Makes a folder in it.
    ///
    /// # Errors
    /// `Write`.
    pub(super) fn create_dir(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(|error| Error::write(path, error))
    }

    /// Lets go of the folder: what it holds is whole.
    ///
    /// # Errors
    /// `Write`.
    pub(super) fn finish(self) -> Result<()> {
        let path = self.path.join(JOURNAL);
        fs::remove_file(&path).map_err(|error| Error::write(path, error))
    }
}

/// The first field that two objects do not agree on.
fn difference(a: &Value, b: &Value) -> Option<String> {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return (a != b).then(|| "beginning".to_owned());
    };
    let fields = a.keys().chain(b.keys());
    fields.into_iter().find(|field| a.get(*field) != b.get(*field)).cloned()
}

/// The weight files of a folder, written tensor after tensor.
pub(super) struct Shards<'a> {
    folder: &'a mut Folder,
    shards: &'a [Shard],
    entries: &'a [Entry],
    /// The tensors before this one are on disk.
    done: usize,
    file: Option<Open>,
}

struct Open {
    shard: usize,
    out: BufWriter<File>,
    /// Bytes in the file, and those of them that are on disk for certain.
    bytes: u64,
    synced: u64,
}

impl<'a> Shards<'a> {
    /// Finds out what an earlier run has left.
    ///
    /// # Errors
    /// `Write`.
    pub(super) fn new(
        folder: &'a mut Folder,
        shards: &'a [Shard],
        entries: &'a [Entry],
    ) -> Result<Self> {
        let mut files = Self { folder, shards, entries, done: 0, file: None };
        for (i, shard) in shards.iter().enumerate() {
            let (path, partial) = files.folder.paths(&shard.name);
            if path.exists() {
                files.done = shard.entries.end;
                continue;
            }
            let length = fs::metadata(&partial).map_or(0, |data| data.len());
            let (reached, synced) = files.folder.reached;
            let known = if reached == i { synced.min(length) } else { 0 };
            let mut bytes = header(&entries[shard.entries.clone()]).len() as u64;
            if known < bytes {
                break;
            }
            for entry in &entries[shard.entries.clone()] {
                if bytes + entry.bytes() > known {
                    break;
                }
                bytes += entry.bytes();
                files.done += 1;
            }
            files.file = Some(open(&partial, i, bytes).map_err(|e| Error::write(&partial, e))?);
            break;
        }
        Ok(files)
    }

    /// How many tensors are there.
    pub(super) fn done(&self) -> usize {
        self.done
    }

    /// Appends to tensor `entry`; those of one that is there already are passed over.
    ///
    /// # Errors
    /// `Write`.
    pub(super) fn write(&mut self, entry: usize, bytes: &[u8]) -> Result<()> {
        if entry < self.done {
            return Ok(());
        }
        let is_open =
            self.file.as_ref().is_some_and(|f| self.shards[f.shard].entries.contains(&entry));
        if !is_open {
            self.close()?;
            self.create(entry)?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let shard = &self.shards[file.shard].name;
        file.out.write_all(bytes).map_err(|e| Error::write(self.folder.path.join(shard), e))?;
        file.bytes += bytes.len() as u64;
        Ok(())
    }

    fn create(&mut self, entry: usize) -> Result<()> {
        let Some(shard) = self.shards.iter().position(|s| s.entries.contains(&entry)) else {
            return Ok(());
        };
        let (_, path) = self.folder.paths(&self.shards[shard].name);
        let header = header(&self.entries[self.shards[shard].entries.clone()]);
        let create = || {
            let mut out = BufWriter::with_capacity(BUFFER_BYTES, File::create(&path)?);
            out.write_all(&header)?;
            Ok(Open { shard, out, bytes: header.len() as u64, synced: 0 })
        };
        self.file = Some(create().map_err(|error| Error::write(&path, error))?);
        Ok(())
    }

    /// Told between tensors: brings what was written to disk from time to time.
    ///
    /// # Errors
    /// `Write`.
    pub(super) fn checkpoint(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if file.bytes - file.synced < SYNC_EVERY {
            return Ok(());
        }
        let sync = |file: &mut Open| {
            file.out.flush()?;
            file.out.get_ref().sync_data()
        };
        let shard = file.shard;
        sync(file).map_err(|e| Error::write(self.folder.path.join(&self.shards[shard].name), e))?;
        file.synced = file.bytes;
        self.folder.reached = (shard, file.bytes);
        self.folder.write_journal()
    }

    /// Gives the open file its name.
    ///
    /// # Errors
    /// `Write`.
    pub(super) fn close(&mut self) -> Result<()> {
        let Some(Open { shard, mut out, .. }) = self.file.take() else { return Ok(()) };
        let (path, partial) = self.folder.paths(&self.shards[shard].name);
        let mut close = || {
            out.flush()?;
            out.get_ref().sync_all()?;
            fs::rename(&partial, &path)
        };
        close().map_err(|error| Error::write(&path, error))
    }
}

/// Opens a file that a killed run was at, to go on after `bytes`.
fn open(path: &Path, shard: usize, bytes: u64) -> std::io::Result<Open> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.set_len(bytes)?;
    file.seek(SeekFrom::Start(bytes))?;
    let out = BufWriter::with_capacity(BUFFER_BYTES, file);
    Ok(Open { shard, out, bytes, synced: bytes })
}

//! Brings a revision's files into the cache: several at once, continued where they stopped, checked against
//! the hashes by which the Hub names them.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use ring::digest;

use super::cache::RepoCache;
use super::client::{Client, Failure, FileInfo, Outcome, content_length, content_range};
use super::{HubOptions, Progress, ProgressListener};

const BUFFER_BYTES: usize = 256 << 10;
/// Where further chat templates lie.
const EXTRA_TEMPLATES: &str = "additional_chat_templates/";

/// What a checkpoint consists of here. Folders hold other formats (`onnx/`, `original/`); weights that mlx-lm
/// does not read (`consolidated.safetensors`, `*.bin`, `*.gguf`) stay where they are.
fn is_wanted(name: &str) -> bool {
    let is_plain = |name: &str| !name.contains(['/', '\\']) && !name.starts_with('.');
    if let Some(template) = name.strip_prefix(EXTRA_TEMPLATES) {
        return is_plain(template) && template.ends_with(".jinja");
    }
    let ends = [".json", ".jinja", ".tiktoken"].iter().any(|end| name.ends_with(end));
    is_plain(name) && (is_weights(name) || ends || name == "tiktoken.model")
}

fn is_weights(name: &str) -> bool {
    name.starts_with("model") && name.ends_with(".safetensors")
}

/// Brings what the cache lacks of the revision, and returns its snapshot folder.
///
/// - `has_fallback`: the cache could stand in, so an unreachable Hub is given up at once
pub(super) fn download(
    model: &str,
    options: &HubOptions,
    cache: &RepoCache,
    has_fallback: bool,
    listener: Option<ProgressListener<'_>>,
) -> Outcome<PathBuf> {
    let client = Client::new(model, options)?;
    let (commit, names) = client.list(if has_fallback { 0 } else { options.retries })?;
    let names: BTreeSet<String> = names.into_iter().collect();
    for (what, is_there) in [
        ("config.json", names.contains("config.json")),
        ("model*.safetensors", names.iter().any(|name| is_weights(name))),
    ] {
        if !is_there {
            let reason = format!(
                "the repo has no {what}; expected a checkpoint in mlx-community or transformers layout"
            );
            return Err(Failure::Refused(reason));
        }
    }
    let snapshot = cache.snapshot(&commit);
    let missing: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| is_wanted(name) && !snapshot.join(name).exists())
        .collect();
    let infos = in_parallel(&missing, options.parallel, |name| client.file_info(&commit, name))?;
    let mut files: Vec<(&str, FileInfo)> = missing.into_iter().zip(infos).collect();
    // Small files first: a snapshot that has its weights then has everything.
    files.sort_by_key(|(_, info)| info.size.unwrap_or(u64::MAX));
    let task = Task { client: &client, cache, commit: &commit, retries: options.retries };
    fetch_all(&task, &files, options.parallel, listener)?;
    cache.finish(&options.revision, &commit, &names).map_err(|error| disk(&snapshot, &error))?;
    Ok(snapshot)
}

/// Runs `work` on every item, some at a time; the first failure ends it.
fn in_parallel<I: Sync, T: Send>(
    items: &[I],
    parallel: usize,
    work: impl Fn(&I) -> Outcome<T> + Sync,
) -> Outcome<Vec<T>> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..parallel.clamp(1, items.len().max(1)) {
            let (sender, next, failed, work) = (sender.clone(), &next, &failed, &work);
            scope.spawn(move || {
                while !failed.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return };
                    let outcome = work(item);
                    failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                    if sender.send((index, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
    });
    drop(sender);
    let mut done = receiver
        .into_iter()
        .map(|(index, outcome)| outcome.map(|value| (index, value)))
        .collect::<Outcome<Vec<_>>>()?;
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, value)| value).collect())
}

/// Downloads all files. The listener is called on this thread.
fn fetch_all(
    task: &Task<'_>,
    files: &[(&str, FileInfo)],
    parallel: usize,
    mut listener: Option<ProgressListener<'_>>,
) -> Outcome<()> {
    let total_bytes = files.iter().filter_map(|(_, info)| info.size).sum();
    let numbered: Vec<_> = files.iter().enumerate().collect();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            in_parallel(&numbered, parallel, |(index, (name, info))| {
                // Nobody listening is no reason to stop.
                let on_bytes = |bytes| _ = sender.send((*index, bytes));
                task.fetch(name, info, &on_bytes)
            })
            .map(drop)
        });
        let mut arrived = vec![0; files.len()];
        let mut shown = 0;
        // Ends when the worker drops its sender.
        for (index, bytes) in receiver {
            arrived[index] = bytes;
            // A file that starts again does not turn the bar back.
            shown = arrived.iter().sum::<u64>().min(total_bytes).max(shown);
            if let Some(listener) = &mut listener {
                listener(Progress { bytes: shown, total_bytes });
            }
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What the files of one download share.
struct Task<'a> {
    client: &'a Client<'a>,
    cache: &'a RepoCache,
    commit: &'a str,
    retries: u32,
}

impl Task<'_> {
    /// Brings one file into the snapshot.
    ///
    /// - `on_bytes`: told how many bytes of it are on disk
    fn fetch(&self, name: &str, info: &FileInfo, on_bytes: &dyn Fn(u64)) -> Outcome<()> {
        let blob = self.cache.blob(&info.etag);
        let on_disk = |error: io::Error| disk(&blob, &error);
        let _lock = self.cache.lock(&info.etag).map_err(on_disk)?;
        if !blob.exists() {
            if let Some(folder) = blob.parent() {
                fs::create_dir_all(folder).map_err(on_disk)?;
            }
            let part = blob.with_file_name(format!("{}.incomplete", info.etag));
            self.complete(name, info, &part, on_bytes)?;
            fs::rename(&part, &blob).map_err(on_disk)?;
        }
        on_bytes(fs::metadata(&blob).map_err(on_disk)?.len());
        self.cache.link(self.commit, name, &info.etag).map_err(on_disk)
    }

    /// Continues the part until it is the file. Attempts that get further do not count as failures.
    fn complete(
        &self,
        name: &str,
        info: &FileInfo,
        part: &Path,
        on_bytes: &dyn Fn(u64),
    ) -> Outcome<()> {
        let mut failures = 0;
        let mut furthest = 0;
        let mut was_damaged = false;
        loop {
            let failure = match self.attempt(name, info, part, on_bytes) {
                Ok(Arrival::Whole) => return Ok(()),
                Ok(Arrival::Damaged(reason)) => {
                    fs::remove_file(part).map_err(|error| disk(part, &error))?;
                    if was_damaged {
                        return Err(Failure::Refused(format!(
                            "{name} arrived damaged twice: {reason}; try again later, \
                             and see whether a proxy or HF_ENDPOINT changes files"
                        )));
                    }
                    was_damaged = true;
                    continue;
                }
                Err(failure) => failure,
            };
            let length = fs::metadata(part).map_or(0, |meta| meta.len());
            if length > furthest {
                (failures, furthest) = (0, length);
            }
            if failures >= self.retries {
                return Err(named(name, failure));
            }
            self.client.pause(failure, failures).map_err(|failure| named(name, failure))?;
            failures += 1;
        }
    }

    fn attempt(
        &self,
        name: &str,
        info: &FileInfo,
        part: &Path,
        on_bytes: &dyn Fn(u64),
    ) -> Outcome<Arrival> {
        let on_disk = |error: io::Error| disk(part, &error);
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(part)
            .map_err(on_disk)?;
        let mut have = file.metadata().map_err(on_disk)?.len();
        if info.size.is_some_and(|size| have > size) {
            have = 0;
        }
        let mut expected = info.size;
        let mut body = None;
        if expected != Some(have) {
            let reply = self.client.open(self.commit, name, have)?;
            let total = match (reply.status, content_range(&reply.headers)) {
                (206, Some((from, total))) if from == have => total,
                (200, _) => {
                    have = 0;
                    content_length(&reply.headers)
                }
                // The part is no beginning of this file.
                (status, range) => {
                    file.set_len(0).map_err(on_disk)?;
                    return Err(Failure::passing(format!("status {status}, range {range:?}")));
                }
            };
            if let (Some(size), Some(total)) = (expected, total)
                && size != total
            {
                return Ok(Arrival::Damaged(format!("{total} bytes, {size} were announced")));
            }
            expected = expected.or(total);
            body = Some(reply.body);
        }
        file.set_len(have).map_err(on_disk)?;
        let mut check = Check::new(&info.etag, expected);
        check.read(&mut (&mut file).take(have)).map_err(on_disk)?;
        file.seek(SeekFrom::Start(have)).map_err(on_disk)?;
        on_bytes(have);
        if let Some(body) = body {
            let mut reader = body.into_reader();
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                let read = match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(Failure::of_read(&error)),
                };
                file.write_all(&buffer[..read]).map_err(on_disk)?;
                check.update(&buffer[..read]);
                have += read as u64;
                on_bytes(have);
            }
        }
        match expected {
            Some(size) if have < size => {
                Err(Failure::passing(format!("ended after {have} of {size} bytes")))
            }
            Some(size) if have > size => {
                Ok(Arrival::Damaged(format!("{have} bytes, {size} were announced")))
            }
            _ => Ok(check.finish()),
        }
    }
}

/// How an attempt ended that got all bytes.
enum Arrival {
    Whole,
    Damaged(String),
}

/// Compares a file with its etag, where that is a hash: SHA-256 for large files, git's id for others.
struct Check<'a> {
    etag: &'a str,
    context: Option<digest::Context>,
}

impl<'a> Check<'a> {
    fn new(etag: &'a str, size: Option<u64>) -> Self {
        let is_hex = etag.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let context = match (etag.len(), size) {
            (64, _) if is_hex => Some(digest::Context::new(&digest::SHA256)),
            (40, Some(size)) if is_hex => {
                let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {size}\0").as_bytes());
                Some(context)
            }
            _ => None,
        };
        Self { etag, context }
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Some(context) = &mut self.context {
            context.update(bytes);
        }
    }

    fn read(&mut self, reader: &mut impl Read) -> io::Result<()> {
        if self.context.is_none() {
            return Ok(());
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(()),
                read => self.update(&buffer[..read]),
            }
        }
    }

    fn finish(self) -> Arrival {
        let Some(context) = self.context else { return Arrival::Whole };
        let digest = context.finish();
        let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if hash == self.etag {
            return Arrival::Whole;
        }
        Arrival::Damaged(format!("its hash is {hash}, the Hub announces {}", self.etag))
    }
}

/// The failure, with the file that it happened to.
fn named(name: &str, failure: Failure) -> Failure {
    match failure {
        Failure::Unreachable { reason, pause, may_pass } => {
            Failure::Unreachable { reason: format!("{name}: {reason}"), pause, may_pass }
        }
        refused => refused,
    }
}

fn disk(path: &Path, error: &io::Error) -> Failure {
    Failure::Refused(format!("cannot write {}: {error}", path.display()))
}

//! Finding the source of MLX: the user's folder, git, or the copy on crates.io.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Pin, Result, Warn, patches::isolated_git, verify, verify::copy_pinned};

/// How long a git host has to answer before it gives way.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// How long the fetch may take once it has answered.
const FETCH_WITHIN: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);

/// Where to look for MLX.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `MLX_SOURCE_DIR`. When set, nothing else is tried.
    pub source_dir: Option<PathBuf>,
    /// Take `source_dir` as it is.
    pub allow_unverified: bool,
    /// Stay off the network.
    pub offline: bool,
    /// How long the git host has to answer, usually [`ANSWER_WITHIN`].
    pub answer_within: Duration,
    /// The cargo program.
    pub cargo: PathBuf,
    /// The manifest of this package, whose lock file names the copy on crates.io.
    pub manifest: PathBuf,
}

/// Puts the pinned paths of a verified MLX into the folder `to`, and says where they came from.
///
/// A source that cannot be reached, or that differs from the pin, gives way to the next.
///
/// # Errors
/// For `source_dir` those of [`verify`]; otherwise `NoSource`, with what became of each.
pub fn locate(places: &Places, git: &Path, pin: &Pin, to: &Path, warn: Warn<'_>) -> Result<String> {
    if let Some(dir) = &places.source_dir {
        match verify(dir, pin) {
            Ok(()) => {}
            Err(error @ Error::ContentDiffers { .. }) if places.allow_unverified => {
                warn(&format!("building an MLX that is not the pinned one: {error}"));
            }
            Err(error) => return Err(error),
        }
        fresh(to)?;
        copy_pinned(dir, to, pin)?;
        return Ok(format!("MLX_SOURCE_DIR={}", dir.display()));
    }

    let mut tried = Vec::new();
    let mut give_way = |name: &str, Refusal { reason, suspicious }: Refusal| {
        if suspicious {
            warn(&format!("passing over the MLX from {name}: {reason}"));
        }
        tried.push(format!("{name}: {reason}"));
    };
    fresh(to)?;
    match from_git(places, git, pin, to) {
        Ok(from) => return Ok(from),
        Err(refusal) => give_way("git", refusal),
    }
    fresh(to)?;
    match from_package(places, pin, to) {
        Ok(from) => return Ok(from),
        Err(refusal) => give_way("crates.io", refusal),
    }
    Err(Error::NoSource { version: pin.version.clone(), tried })
}

/// Why a source gives way; a suspicious one was reached and had other content.
struct Refusal {
    reason: String,
    suspicious: bool,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Refusal {
        Refusal { reason, suspicious: false }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let suspicious =
            matches!(error, Error::ContentDiffers { .. } | Error::ContentMissing { .. });
        Refusal { reason: error.to_string(), suspicious }
    }
}

fn fresh(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(Error::io("remove", folder))?;
    }
    fs::create_dir_all(folder).map_err(Error::io("create", folder))
}

fn from_git(
    places: &Places,
    program: &Path,
    pin: &Pin,
    to: &Path,
) -> std::result::Result<String, Refusal> {
    if places.offline {
        return Err("offline".to_owned().into());
    }
    let clone = to.with_extension("git");
    fresh(&clone)?;
    let git = |arguments: &[&str], within: Duration| {
        let mut command = isolated_git(program, &clone);
        command.env("GIT_TERMINAL_PROMPT", "0").args(["-c", "core.autocrlf=false"]);
        command.args(arguments);
        run_within(command, within)
    };
    let url = pin.repository.as_str();
    git(&["ls-remote", "--exit-code", url, "HEAD"], places.answer_within)?;
    git(&["init", "--quiet"], FETCH_WITHIN)?;
    git(&["fetch", "--quiet", "--depth=1", "--no-tags", url, &pin.commit], FETCH_WITHIN)?;
    git(&["checkout", "--quiet", "--detach", "FETCH_HEAD"], FETCH_WITHIN)?;
    verify(&clone, pin)?;
    copy_pinned(&clone, to, pin)?;
    let _ = fs::remove_dir_all(&clone);
    Ok(format!("{url} at {}", pin.commit))
}

fn from_package(places: &Places, pin: &Pin, to: &Path) -> std::result::Result<String, Refusal> {
    let package = find_package(places, pin)?;
    let root = package.join(&pin.package.folder);
    verify(&root, pin)?;
    copy_pinned(&root, to, pin)?;
    Ok(format!("{} {} on crates.io", pin.package.name, pin.package.version))
}

/// Asks cargo where the package lies, which downloads it when it has to.
fn find_package(places: &Places, pin: &Pin) -> std::result::Result<PathBuf, String> {
    let mut command = Command::new(&places.cargo);
    command.args(["metadata", "--locked", "--format-version", "1", "--manifest-path"]);
    command.arg(&places.manifest);
    if places.offline {
        command.arg("--offline");
    }
    let output = command.output().map_err(|e| format!("cannot run cargo: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cargo metadata failed: {}", said.trim()));
    }
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    let wanted = &pin.package;
    let found = metadata["packages"].as_array().into_iter().flatten().find(|package| {
        package["name"] == wanted.name.as_str() && package["version"] == wanted.version.as_str()
    });
    let manifest = found.and_then(|package| package["manifest_path"].as_str());
    let folder = manifest.and_then(|path| Path::new(path).parent());
    folder
        .map(Path::to_owned)
        .ok_or_else(|| format!("{} {} is not in the lock file", wanted.name, wanted.version))
}

/// Runs `command` to its end, or kills it after `within`.
fn run_within(mut command: Command, within: Duration) -> std::result::Result<(), String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("cannot run git: {e}"))?;
    let end = Instant::now() + within;
    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(_) => return Err(last_words(child)),
            None if Instant::now() >= end => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer within {} s", within.as_secs()));
            }
            None => thread::sleep(POLL),
        }
    }
}

fn last_words(child: Child) -> String {
    let output = child.wait_with_output().map(|o| o.stderr).unwrap_or_default();
    let text = String::from_utf8_lossy(&output);
    text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("git failed").trim().to_owned()
}

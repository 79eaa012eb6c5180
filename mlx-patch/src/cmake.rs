//! Running CMake.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Error, Result, prerequisites::Machine};

/// Lines of output shown when a step fails.
const TAIL_LINES: usize = 30;

/// CMake and what it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CMake {
    /// The program.
    pub program: PathBuf,
    /// Ninja; make where there is none.
    pub ninja: Option<PathBuf>,
}

impl CMake {
    /// The programs of `machine`.
    pub fn find(machine: &Machine) -> Option<CMake> {
        let ninja = machine.program(&["ninja", "ninja-build"]);
        Some(CMake { program: machine.program(&["cmake"])?, ninja })
    }

    /// Writes the build of `source` into the folder `build`, compiled for release.
    pub fn configure(&self, source: &Path, build: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-S").arg(source).arg("-B").arg(build);
        match &self.ninja {
            Some(ninja) => {
                command.args(["-G", "Ninja"]);
                define(&mut command, "CMAKE_MAKE_PROGRAM", ninja);
            }
            None => {
                command.args(["-G", "Unix Makefiles"]);
            }
        }
        command.arg("-DCMAKE_BUILD_TYPE=Release");
        command
    }

    /// Compiles what has changed in the folder `build`, `jobs` files at once.
    pub fn build(&self, build: &Path, jobs: usize) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--build").arg(build).args(["--parallel", &jobs.max(1).to_string()]);
        command
    }
}

/// Sets a CMake variable to a path.
pub fn define(command: &mut Command, name: &str, path: &Path) {
    command.arg(format!("-D{name}={}", path.display()));
}

/// Runs one of the commands above and returns what it printed, which is kept in the file `log`.
///
/// # Errors
/// `Command` when it fails, with what it printed from the first error on.
pub fn run(command: &mut Command, purpose: &str, log: &Path) -> Result<String> {
    let file = File::create(log).map_err(Error::io("create", log))?;
    let errors = file.try_clone().map_err(Error::io("create", log))?;
    let program = command.get_program().to_string_lossy().into_owned();
    // cargo's own make flags would reach CMake's make with a job server that is not its own
    command.env_remove("MAKEFLAGS").env_remove("CARGO_MAKEFLAGS");
    let status =
        command.stdout(file).stderr(errors).status().map_err(Error::io("run", &program))?;
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    if status.success() {
        return Ok(text);
    }
    Err(Error::Command {
        program,
        status: status.to_string(),
        purpose: purpose.to_owned(),
        detail: tail(&text, log),
    })
}

/// The end of a log, from its first error on if it has one.
fn tail(text: &str, path: &Path) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let is_error = |l: &&str| l.contains("error:") || l.contains("CMake Error");
    let last = lines.len().saturating_sub(TAIL_LINES);
    let start = lines.iter().position(is_error).unwrap_or(last);
    let end = (start + TAIL_LINES).min(lines.len());
    let shown = &lines[start..end];
    format!("\n{}\n(all of it: {})", shown.join("\n"), path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_starts_at_the_first_error() {
        let text = "one\ntwo\nx.cpp:1: error: no\nthree\n";
        let shown = tail(text, Path::new("compile.log"));
        assert!(shown.starts_with("\nx.cpp:1: error: no\nthree\n"), "{shown}");
    }

    #[test]
    fn failing_step_says_what_it_was_for_and_what_was_printed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let log = dir.path().join("step.log");
        let mut step = Command::new("cargo");
        let error = run(step.arg("--no-such-option"), "configure a thing", &log);
        let message = error.expect_err("fails").to_string();
        assert!(message.contains("configure a thing"), "{message}");
        assert!(message.contains("error: unexpected argument '--no-such-option'"), "{message}");
    }
}

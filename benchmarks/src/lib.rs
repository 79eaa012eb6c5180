//! What the programs here have in common: they measure calls by the protocol of [`zmlx_bench`] and write capsules.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
pub use zmlx_bench::model::short;
use zmlx_capsule::{Capsule, Software};

/// A capsule in the making, on disk as soon as something is known, so that a run that is cut off keeps what it measured.
pub struct Out {
    /// What is known.
    pub capsule: Capsule,
    path: Option<PathBuf>,
}

impl Out {
    /// - `variants`: names; the first is the reference
    /// - `path`: a file; without one nothing is written
    pub fn new(program: &str, variants: &[&str], runs: usize, path: Option<PathBuf>) -> Self {
        let mut capsule = zmlx_bench::call::capsule(program, software(), variants, runs);
        capsule.interrupted = true;
        capsule.machine.hints.push(zmlx_bench::machine::hints("start"));
        Self { capsule, path }
    }

    /// Writes what is known until now.
    pub fn save(&self) -> Result<()> {
        match &self.path {
            Some(path) => {
                self.capsule.write(path).with_context(|| format!("write {}", path.display()))
            }
            None => Ok(()),
        }
    }

    /// The same at the end.
    pub fn finish(mut self) -> Result<()> {
        self.capsule.interrupted = false;
        self.capsule.machine.hints.push(zmlx_bench::machine::hints("end"));
        self.save()
    }
}

/// What the programs are built from.
fn software() -> Software {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git =
        Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(root).output();
    let commit = git.ok().filter(|output| output.status.success());
    let commit = commit.and_then(|output| String::from_utf8(output.stdout).ok());
    Software {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: commit.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned()),
    }
}

/// The machine in a line, to stand above a table.
pub fn machine(capsule: &Capsule) -> String {
    let (machine, mlx) = (&capsule.machine, &capsule.mlx);
    format!(
        "{}, {} threads, {}, MLX {} ({})",
        machine.cpu, machine.threads, machine.isa, mlx.version, mlx.mode
    )
}

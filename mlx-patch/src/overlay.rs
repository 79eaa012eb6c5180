//! The overlay: the C++ files that zmlx adds beside MLX, listed in `overlay/SOURCES`.
//!
//! A line names one file and, where it needs them, flags and a condition:
//!
//! ```text
//! primitives: gather_qmm_swiglu, moe_router
//! zmlx/gather_qmm_swiglu.cpp
//! zmlx/cpu/qmv_avx512.cpp  flags: avx512f,avx512bw  cfg: x86_64
//! zmlx/cuda/qmv.cu         cfg: cuda
//! zmlx/no_cuda/qmv.cpp     cfg: !cuda
//! ```
//!
//! A flag is a target feature (`avx2` means `-mavx2`) or, with a leading dash, itself. A condition
//! is an architecture, an operating system or a backend, or several with `|` between them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// What the overlay is compiled for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As in `CARGO_CFG_TARGET_ARCH`.
    pub arch: String,
    /// As in `CARGO_CFG_TARGET_OS`.
    pub os: String,
    /// `cpu`, `cuda`, `metal`.
    pub backends: Vec<String>,
}

impl Target {
    fn has(&self, name: &str) -> bool {
        self.arch == name || self.os == name || self.backends.iter().any(|b| b == name)
    }
}

/// One file to compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Path from the overlay's root.
    pub path: PathBuf,
    /// Arguments for the compiler.
    pub flags: Vec<String>,
    condition: Vec<String>,
}

/// The table in `SOURCES`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Names of the primitives that the files define.
    pub primitives: Vec<String>,
    /// All files, for every target.
    pub sources: Vec<Source>,
}

impl Overlay {
    /// Reads `SOURCES` in `root`; a folder without it has nothing to compile.
    ///
    /// # Errors
    /// `Syntax` for a line that cannot be read, `Io` for a file that is listed but not there.
    pub fn read(root: &Path) -> Result<Overlay> {
        let table = root.join("SOURCES");
        if !table.exists() {
            return Ok(Overlay::default());
        }
        let text = fs::read_to_string(&table).map_err(Error::io("read", &table))?;
        let overlay = Overlay::parse(&text)?;
        for source in &overlay.sources {
            let path = root.join(&source.path);
            fs::metadata(&path).map_err(Error::io("read", path))?;
        }
        Ok(overlay)
    }

    /// Parses the text of a `SOURCES` file.
    pub fn parse(text: &str) -> Result<Overlay> {
        let mut overlay = Overlay::default();
        for (index, line) in text.lines().enumerate() {
            let problem = |problem: String| Error::Syntax {
                file: "SOURCES".to_owned(),
                line: index + 1,
                problem,
            };
            let line = line.split('#').next().unwrap_or_default();
            if let Some(names) = line.trim().strip_prefix("primitives:") {
                let names = names.split([',', ' ']).filter(|n| !n.is_empty());
                overlay.primitives.extend(names.map(str::to_owned));
                continue;
            }
            let line = line.replace(['[', ']'], " ");
            let mut words = line.split_whitespace();
            let Some(path) = words.next() else { continue };
            let mut source = Source { path: path.into(), flags: Vec::new(), condition: Vec::new() };
            let mut key = "";
            for word in words {
                let (new_key, values) = match word.split_once(':') {
                    Some((k, v)) => (k, v),
                    None => (key, word),
                };
                key = new_key;
                let values = values.split([',', '|']).filter(|v| !v.is_empty());
                match key {
                    "flags" => source.flags.extend(values.map(as_flag)),
                    "cfg" => source.condition.extend(values.map(str::to_owned)),
                    _ => return Err(problem(format!("`{word}` is neither flags: nor cfg:"))),
                }
            }
            overlay.sources.push(source);
        }
        Ok(overlay)
    }

    /// The files that `target` compiles.
    pub fn for_target(&self, target: &Target) -> Vec<&Source> {
        self.sources.iter().filter(|s| s.applies(target)).collect()
    }
}

impl Source {
    fn applies(&self, target: &Target) -> bool {
        self.condition.is_empty()
            || self.condition.iter().any(|term| match term.strip_prefix('!') {
                Some(name) => !target.has(name),
                None => target.has(term),
            })
    }
}

fn as_flag(value: &str) -> String {
    if value.starts_with('-') { value.to_owned() } else { format!("-m{value}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(arch: &str, backends: &[&str]) -> Target {
        Target {
            arch: arch.to_owned(),
            os: "linux".to_owned(),
            backends: backends.iter().map(|b| (*b).to_owned()).collect(),
        }
    }

    fn paths(overlay: &Overlay, target: &Target) -> Vec<String> {
        let files = overlay.for_target(target);
        files.iter().map(|s| s.path.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn sources_with_conditions_are_chosen_by_target() {
        let text = "# the table\nprimitives: a, b\na.cpp\nb.cpp flags: avx2,-mfma cfg: x86_64\n\
                    c.cpp [cfg: aarch64|riscv64]\nd.cu cfg: cuda\ne.cpp cfg: !cuda\n";
        let overlay = Overlay::parse(text).expect("table");
        assert_eq!(overlay.primitives, ["a", "b"]);
        assert_eq!(overlay.sources[1].flags, ["-mavx2", "-mfma"]);
        assert_eq!(paths(&overlay, &target("x86_64", &["cpu"])), ["a.cpp", "b.cpp", "e.cpp"]);
        assert_eq!(
            paths(&overlay, &target("aarch64", &["cpu", "cuda"])),
            ["a.cpp", "c.cpp", "d.cu"]
        );
    }

    #[test]
    fn source_with_unknown_key_names_it() {
        let error = Overlay::parse("a.cpp\nb.cpp isa:avx2").expect_err("isa");
        assert_eq!(error.to_string(), "SOURCES line 2: `isa:avx2` is neither flags: nor cfg:");
    }

    #[test]
    fn overlay_of_this_checkout_lists_files_that_exist() {
        Overlay::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("overlay")).expect("overlay");
    }
}

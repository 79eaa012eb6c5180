//! What a build needs from the machine, and where to get it.
//!
//! Everything is looked for before CMake starts, so that a missing package is reported by its
//! name, all of them at once, and not as the end of a CMake trace.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// One row of [`PREREQUISITES`].
#[derive(Debug, PartialEq, Eq)]
pub struct Prerequisite {
    /// What is missed when it is not there.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// How it is found.
    pub probe: Probe,
    /// Which builds need it.
    pub needed: Need,
    /// Package on Debian and Ubuntu.
    pub debian: &'static str,
    /// Formula on Homebrew, or what else to run there.
    pub homebrew: &'static str,
}

/// How a prerequisite is found.
#[derive(Debug, PartialEq, Eq)]
pub enum Probe {
    /// One of these programs is on the path.
    Program(&'static [&'static str]),
    /// This header is in one of the include folders.
    Header(&'static str),
    /// `xcrun` runs this tool of Xcode.
    Xcode(&'static str),
    /// One of these libraries is in one of the library folders; the name lacks `lib` and `.so`.
    Library(&'static [&'static str]),
}

/// Which builds need a prerequisite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// All, the overlay alone as well.
    Always,
    /// Those that compile MLX.
    Source,
    /// Those that compile MLX where there is no Accelerate.
    SourceWithoutAccelerate,
    /// Those that compile MLX for the CPU or for Metal.
    SourceWithoutCuda,
    /// Those with the Metal backend.
    Metal,
    /// Those with the `cuda` feature.
    Cuda,
}

/// Everything a build may need.
pub const PREREQUISITES: &[Prerequisite] = &[
    Prerequisite {
        name: "a C++ compiler",
        purpose: "compiles MLX and the overlay",
        probe: Probe::Program(&["c++", "g++", "clang++"]),
        needed: Need::Always,
        debian: "g++",
        homebrew: "xcode-select --install",
    },
    Prerequisite {
        name: "git",
        purpose: "applies the patches to MLX",
        probe: Probe::Program(&["git"]),
        needed: Need::Source,
        debian: "git",
        homebrew: "git",
    },
    Prerequisite {
        name: "cmake",
        purpose: "configures MLX and the overlay",
        probe: Probe::Program(&["cmake"]),
        needed: Need::Always,
        debian: "cmake",
        homebrew: "cmake",
    },
    Prerequisite {
        name: "ninja or make",
        purpose: "runs the compilation of MLX and the overlay",
        probe: Probe::Program(&["ninja", "ninja-build", "make", "gmake"]),
        needed: Need::Always,
        debian: "ninja-build",
        homebrew: "ninja",
    },
    Prerequisite {
        name: "nlohmann/json.hpp (JSON for Modern C++)",
        purpose: "reads safetensors headers",
        probe: Probe::Header("nlohmann/json.hpp"),
        needed: Need::Source,
        debian: "nlohmann-json3-dev",
        homebrew: "nlohmann-json",
    },
    Prerequisite {
        name: "fmt/format.h (the fmt library)",
        purpose: "formats MLX's messages",
        probe: Probe::Header("fmt/format.h"),
        needed: Need::SourceWithoutCuda,
        debian: "libfmt-dev",
        homebrew: "fmt",
    },
    Prerequisite {
        name: "cblas.h (BLAS headers)",
        purpose: "multiplies dense matrices on the CPU",
        probe: Probe::Header("cblas.h"),
        needed: Need::SourceWithoutAccelerate,
        debian: "libopenblas-dev",
        homebrew: "openblas",
    },
    Prerequisite {
        name: "a BLAS and LAPACK library",
        purpose: "multiplies dense matrices on the CPU",
        probe: Probe::Library(&["openblas", "lapack"]),
        needed: Need::SourceWithoutAccelerate,
        debian: "libopenblas-dev",
        homebrew: "openblas",
    },
    Prerequisite {
        name: "lapacke.h (LAPACK headers for C)",
        purpose: "solves linear systems on the CPU",
        probe: Probe::Header("lapacke.h"),
        needed: Need::SourceWithoutAccelerate,
        debian: "liblapacke-dev",
        homebrew: "openblas",
    },
    Prerequisite {
        name: "metal (Apple's shader compiler)",
        purpose: "compiles the Metal kernels",
        probe: Probe::Xcode("metal"),
        needed: Need::Metal,
        debian: "not on Linux",
        homebrew: "for Metal kernels see above, or link the official wheel, which takes no Xcode (docs/metal.md)",
    },
    Prerequisite {
        name: "nvcc (CUDA toolkit 12.0 or newer, not 13.1)",
        purpose: "compiles the CUDA backend",
        probe: Probe::Program(&["nvcc"]),
        needed: Need::Cuda,
        debian: "cuda-toolkit-13-0 (from NVIDIA's repository)",
        homebrew: "not on macOS: build without the `cuda` feature",
    },
    Prerequisite {
        name: "cudnn.h (cuDNN 9)",
        purpose: "runs convolutions and attention on CUDA",
        probe: Probe::Header("cudnn.h"),
        needed: Need::Cuda,
        debian: "cudnn9-cuda-13 (from NVIDIA's repository)",
        homebrew: "not on macOS: build without the `cuda` feature",
    },
];

/// What is going to be built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plan {
    /// MLX itself, not only the overlay.
    pub source: bool,
    /// On a system that has Apple's Accelerate.
    pub accelerate: bool,
    /// With the Metal backend.
    pub metal: bool,
    /// With the CUDA backend.
    pub cuda: bool,
}

/// Where to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Folders with programs.
    pub path: Vec<PathBuf>,
    /// Folders with headers.
    pub include: Vec<PathBuf>,
    /// Folders with libraries.
    pub library: Vec<PathBuf>,
}

/// Something the machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What it is.
    pub name: String,
    /// What it is for.
    pub purpose: &'static str,
    /// Package on Debian and Ubuntu.
    pub debian: &'static str,
    /// Formula on Homebrew.
    pub homebrew: &'static str,
}

impl Machine {
    /// The first of `names` on the path.
    pub fn program(&self, names: &[&str]) -> Option<PathBuf> {
        let exe = |dir: &Path, name: &str| {
            let path = dir.join(name);
            if is_program(&path) {
                return Some(path);
            }
            let path = dir.join(format!("{name}.exe"));
            path.is_file().then_some(path)
        };
        names.iter().find_map(|name| self.path.iter().find_map(|dir| exe(dir, name)))
    }

    /// The include folder in which `header` lies.
    pub fn header_root(&self, header: &str) -> Option<&Path> {
        self.include.iter().find(|dir| dir.join(header).is_file()).map(PathBuf::as_path)
    }

    /// Whether one of `names` is in a library folder.
    pub fn has_library(&self, names: &[&str]) -> bool {
        let endings = ["so", "dylib", "tbd", "a"];
        self.library.iter().any(|dir| {
            names
                .iter()
                .any(|n| endings.iter().any(|ending| dir.join(format!("lib{n}.{ending}")).exists()))
        })
    }

    /// What keeps a tool of Xcode from running, with what to do about it. Xcode has programs of all names also where the
    /// component that they belong to is not installed, so the tool is run.
    fn lacks_xcode_tool(&self, tool: &str) -> Option<String> {
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(self.program(&[program])?).args(arguments).output().ok()?;
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success().then_some(said)
        };
        if self.program(&["xcrun"]).is_none() {
            return Some("found no xcrun: run xcode-select --install".to_owned());
        }
        if run("xcrun", &["-sdk", "macosx", tool, "--version"]).is_some() {
            return None;
        }
        let folder = run("xcode-select", &["-p"]).unwrap_or_default();
        Some(match folder.as_str() {
            "" => "found no developer folder: install Xcode, then sudo xcode-select -s \
                   /Applications/Xcode.app"
                .to_owned(),
            tools if tools.contains("CommandLineTools") => format!(
                "found only the command line tools in {tools}: install Xcode, then sudo \
                 xcode-select -s /Applications/Xcode.app"
            ),
            xcode => format!(
                "{xcode} has no Metal toolchain: run xcodebuild -downloadComponent MetalToolchain"
            ),
        })
    }

    /// Everything that `plan` needs and the machine lacks.
    pub fn missing(&self, plan: Plan) -> Vec<Missing> {
        let lacks = |p: &Prerequisite| match p.probe {
            Probe::Program(names) => self.program(names).is_none().then(String::new),
            Probe::Header(header) => self.header_root(header).is_none().then(String::new),
            Probe::Library(names) => (!self.has_library(names)).then(String::new),
            Probe::Xcode(tool) => self.lacks_xcode_tool(tool),
        };
        let needed = PREREQUISITES.iter().filter(|p| plan.needs(p.needed));
        let missing = needed.filter_map(|p| {
            let found = lacks(p)?;
            Some(if found.is_empty() { Missing::from(p) } else { Missing::unfit(p, &found) })
        });
        missing.collect()
    }
}

impl Plan {
    fn needs(self, need: Need) -> bool {
        match need {
            Need::Always => true,
            Need::Source => self.source,
            Need::SourceWithoutAccelerate => self.source && !self.accelerate,
            Need::SourceWithoutCuda => self.source && !self.cuda,
            Need::Metal => self.source && self.metal,
            Need::Cuda => self.source && self.cuda,
        }
    }
}

impl From<&Prerequisite> for Missing {
    fn from(p: &Prerequisite) -> Missing {
        Missing {
            name: p.name.to_owned(),
            purpose: p.purpose,
            debian: p.debian,
            homebrew: p.homebrew,
        }
    }
}

impl Missing {
    fn unfit(row: &Prerequisite, found: &str) -> Self {
        Self { name: format!("{} ({found})", row.name), ..row.into() }
    }
}

/// The row whose name starts with `name`, as missing, with a word on what was found instead.
pub fn unfit(name: &str, found: &str) -> Option<Missing> {
    PREREQUISITES.iter().find(|p| p.name.starts_with(name)).map(|row| Missing::unfit(row, found))
}

/// The message for a list of missing things.
pub(crate) fn report(missing: &[Missing]) -> String {
    let mut text = "the build of MLX lacks:\n".to_owned();
    for m in missing {
        let _ = writeln!(text, "  - {}, which {}", m.name, m.purpose);
    }
    let packages = |of: fn(&Missing) -> &'static str| {
        let mut names: Vec<&str> = missing.iter().map(of).collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    let (notes, formulas): (Vec<&str>, Vec<&str>) =
        packages(|m| m.homebrew).into_iter().partition(|name| name.contains(' '));
    let _ = writeln!(text, "Debian, Ubuntu: apt-get install {}", packages(|m| m.debian).join(" "));
    let mut brew = notes;
    let install = format!("brew install {}", formulas.join(" "));
    if !formulas.is_empty() {
        brew.push(&install);
    }
    let _ = writeln!(text, "macOS: {}", brew.join("; "));
    text.push_str("or run scripts/bootstrap, which installs what is missing");
    text
}

#[cfg(unix)]
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(path: &Path) -> bool {
    path.is_file()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    const LINUX: Plan = Plan { source: true, accelerate: false, metal: false, cuda: false };
    const ALL: Plan = Plan { metal: true, cuda: true, ..LINUX };

    /// A machine on which everything in the table is installed, without `absent`.
    fn machine_without(root: &Path, absent: &[&str]) -> Machine {
        let folder = |name: &str| root.join(name);
        let touch = |path: &Path| {
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, "#!/bin/sh\n").expect("file");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
        };
        for p in PREREQUISITES.iter().filter(|p| !absent.contains(&p.name)) {
            match p.probe {
                Probe::Program(names) => touch(&folder("bin").join(names[0])),
                Probe::Xcode(_) => touch(&folder("bin/xcrun")),
                Probe::Header(header) => touch(&folder("include").join(header)),
                Probe::Library(names) => touch(&folder("lib").join(format!("lib{}.so", names[0]))),
            }
        }
        Machine {
            path: vec![folder("bin")],
            include: vec![folder("include")],
            library: vec![folder("lib")],
        }
    }

    #[test]
    fn complete_machine_lacks_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let machine = machine_without(dir.path(), &[]);
        assert_eq!(machine.missing(ALL), []);
    }

    #[test]
    fn each_missing_prerequisite_is_named_with_its_packages() {
        for p in PREREQUISITES {
            let dir = tempfile::tempdir().expect("tempdir");
            let machine = machine_without(dir.path(), &[p.name]);
            let cuda = p.needed != Need::SourceWithoutCuda;
            let missing = machine.missing(Plan { cuda, ..ALL });
            assert_eq!(missing.len(), 1, "{}", p.name);
            let message = report(&missing);
            for part in [p.name, p.purpose, p.debian, p.homebrew] {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    #[test]
    fn empty_machine_lists_all_at_once() {
        let missing = Machine::default().missing(LINUX);
        let message = report(&missing);
        assert!(message.contains(
            "apt-get install cmake g++ git libfmt-dev liblapacke-dev libopenblas-dev ninja-build"
        ));
        assert!(message.contains("brew install cmake fmt git ninja nlohmann-json openblas"));
    }

    #[test]
    fn plan_decides_what_is_needed() {
        let lacks = |plan| Machine::default().missing(plan).len();
        assert_eq!(lacks(Plan { source: false, ..LINUX }), 3);
        assert_eq!(lacks(LINUX) - lacks(Plan { accelerate: true, ..LINUX }), 3);
        assert_eq!(lacks(Plan { metal: true, ..LINUX }) - lacks(LINUX), 1);
        // nvcc and cuDNN, but not fmt
        assert_eq!(lacks(Plan { cuda: true, ..LINUX }) - lacks(LINUX), 1);
    }

    #[test]
    fn file_that_cannot_run_is_no_program() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join("cmake"), "").expect("file");
        let machine = Machine { path: vec![dir.path().to_owned()], ..Machine::default() };
        assert_eq!(machine.program(&["cmake"]), None);
    }

    #[test]
    fn metal_compiler_that_does_not_run_says_what_is_missing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let machine = machine_without(dir.path(), &["metal (Apple's shader compiler)"]);
        let script = |name: &str, text: &str| {
            let path = dir.path().join("bin").join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("script");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
        };
        let name = || machine.missing(Plan { metal: true, ..LINUX })[0].name.clone();
        assert!(name().contains("found no xcrun: run xcode-select --install"), "{}", name());
        // as Xcode 26 does without the component
        script("xcrun", "echo 'missing Metal Toolchain' >&2; exit 1");
        script("xcode-select", "echo /Library/Developer/CommandLineTools");
        assert!(name().contains("found only the command line tools"), "{}", name());
        script("xcode-select", "echo /Applications/Xcode.app/Contents/Developer");
        assert!(name().contains("xcodebuild -downloadComponent MetalToolchain"), "{}", name());
        script("xcrun", "exit 0");
        assert_eq!(machine.missing(Plan { metal: true, ..LINUX }), []);
    }

    #[test]
    fn unfit_tool_says_what_was_found() {
        let missing = unfit("cmake", "found 3.22, needs 3.25").expect("row");
        assert_eq!(missing.name, "cmake (found 3.22, needs 3.25)");
        assert_eq!(unfit("perl", ""), None);
    }
}

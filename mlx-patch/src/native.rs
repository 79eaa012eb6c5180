//! Compiling MLX with CMake into an install prefix.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Error, Pin, Result, Warn,
    cache::{Cache, Key},
    cmake::{self, CMake, define},
    locate::{self, Places},
    object_id::blob_id,
    patches::{self, Patch},
    prerequisites::{Machine, Plan, unfit},
    verify,
    verify::actual_ids,
};

/// Raised when the same ingredients are to give another build.
const RECIPE: u32 = 1;
/// File of a prefix that says where MLX came from.
pub const SOURCE_NOTE: &str = "SOURCE";
/// The oldest CMake that MLX accepts.
const OLDEST_CMAKE: [u32; 2] = [3, 25];
/// The oldest CMake whose `FindCUDAToolkit` finds CUDA 13.
const OLDEST_CMAKE_FOR_CUDA: [u32; 2] = [4, 0];
/// The flags of CMake's release builds, and no contraction of `a * b + c`. They come after `CXXFLAGS`, so that stock
/// computes what the official wheels compute, which are built for processors that cannot fuse.
const UNCONTRACTED: &str = "CMAKE_CXX_FLAGS_RELEASE=-O3 -DNDEBUG -ffp-contract=off";

/// What to build, and with what.
#[derive(Debug, Clone, Default)]
pub struct Native {
    /// Where MLX comes from.
    pub places: Places,
    /// The patches to apply.
    pub patches: Vec<Patch>,
    /// Where programs, headers and libraries are looked for.
    pub machine: Machine,
    /// The C compiler.
    pub cc: PathBuf,
    /// The C++ compiler.
    pub cxx: PathBuf,
    /// Target triple.
    pub target: String,
    /// On a system that has Apple's Accelerate.
    pub accelerate: bool,
    /// With the Metal backend.
    pub metal: bool,
    /// With the CUDA backend.
    pub cuda: Option<Cuda>,
    /// The oldest macOS that it runs on, such as `14.0`.
    pub macos: Option<String>,
    /// Variables that change what the compiler does, such as `CXXFLAGS`.
    pub environment: Vec<(String, String)>,
    /// How many files to compile at once.
    pub jobs: usize,
}

/// Programs and folders that only compiling takes, not linking what is in the cache.
struct Tools {
    git: PathBuf,
    cmake: CMake,
    json_include: PathBuf,
    fmt_include: PathBuf,
}

/// What the CUDA backend needs beside nvcc.
#[derive(Debug, Clone, Default)]
pub struct Cuda {
    /// The nvcc program; looked for on the path when absent.
    pub nvcc: Option<PathBuf>,
    /// Architectures to compile for, such as `90a`; those of this machine when absent.
    pub architectures: Option<String>,
    /// A folder with `cccl`, `cutlass`, `cudnn`, `nvtx3`, each laid out as CMake would download it;
    /// what it lacks, CMake downloads.
    pub sources: Option<PathBuf>,
}

/// An MLX that can be linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The install prefix, with `include` and `lib`.
    pub prefix: PathBuf,
    /// Libraries that the static library needs, in linker order.
    pub libraries: Vec<Library>,
}

/// Something to link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Library {
    /// `-l name`, looked for in `folder` first.
    Named {
        /// Name without `lib` and ending.
        name: String,
        /// Where it lies, if not where the linker looks anyway.
        folder: Option<PathBuf>,
    },
    /// A framework of macOS.
    Framework(String),
}

/// Where a build works, what it installs to, and where that lies when all of it is there.
struct Folders<'a> {
    work: &'a Path,
    prefix: &'a Path,
    home: &'a Path,
}

impl Native {
    /// The build of this MLX in `cache`, compiled now if it is not there.
    ///
    /// # Errors
    /// Those of [`locate::locate`] and [`patches::apply`]; `Command` when CMake or the compiler
    /// fails, with the end of what they printed.
    pub fn build(&self, pin: &Pin, cache: &Cache, warn: Warn<'_>) -> Result<Built> {
        if let Some(dir) = self.places.source_dir.as_ref().filter(|_| !self.places.allow_unverified)
        {
            // even if the pinned content is in the cache: the user means this folder
            verify(dir, pin)?;
        }
        let key = self.key(pin)?;
        let home = cache.path(&pin.version, &key);
        let compile = |work: &Path, prefix: &Path| {
            self.compile(pin, &Folders { work, prefix, home: &home }, warn)
        };
        let prefix = cache.entry(&pin.version, &key, compile)?;
        let libraries = libraries(&prefix)?;
        self.require(&libraries)?;
        Ok(Built { prefix, libraries })
    }

    /// Everything that decides what the build contains.
    fn key(&self, pin: &Pin) -> Result<Key> {
        let mut key = Key::default();
        key.add("recipe", RECIPE);
        key.add("commit", &pin.commit);
        // unverified content, where it is allowed, has a build of its own
        let ids = match &self.places.source_dir {
            Some(dir) if self.places.allow_unverified => actual_ids(dir, pin)?,
            _ => pin.objects.iter().map(|o| o.id).collect(),
        };
        for (object, id) in pin.objects.iter().zip(ids) {
            key.add(&object.path, id);
        }
        for patch in &self.patches {
            key.add(&patch.name, crate::ObjectId::of("blob", patch.text.as_bytes()));
        }
        key.add("target", &self.target);
        for option in self.options() {
            key.add("option", option);
        }
        for program in [Some(self.cc.clone()), Some(self.cxx.clone()), self.nvcc()] {
            let Some(program) = program else { continue };
            key.add("compiler", program.display());
            key.add("version", version_of(&program)?);
        }
        if self.cuda.is_some() {
            let stand_in = Path::new(crate::ROOT).join("stand-ins/fmt/format.h");
            key.add("fmt", blob_id(&stand_in)?);
        }
        for (name, value) in &self.environment {
            key.add(name, value);
        }
        Ok(key)
    }

    fn nvcc(&self) -> Option<PathBuf> {
        let cuda = self.cuda.as_ref()?;
        cuda.nvcc.clone().or_else(|| self.machine.program(&["nvcc"]))
    }

    /// Says when a library is gone that was there when the cached MLX was compiled.
    fn require(&self, libraries: &[Library]) -> Result<()> {
        for library in libraries {
            let Library::Named { name, folder: Some(folder) } = library else { continue };
            let here = Machine { library: vec![folder.clone()], ..Machine::default() };
            if !here.has_library(&[name]) {
                let found = format!("lib{name} is no longer in {}", folder.display());
                let missing = unfit("a BLAS", &found).into_iter().collect();
                return Err(Error::Prerequisites { missing });
            }
        }
        Ok(())
    }

    /// Finds the tools, or says everything that is missing.
    fn tools(&self) -> Result<Tools> {
        let plan = Plan {
            source: true,
            accelerate: self.accelerate,
            metal: self.metal,
            cuda: self.cuda.is_some(),
        };
        let machine = &self.machine;
        let mut missing = machine.missing(plan);
        let cmake = CMake::find(machine);
        let oldest = if self.cuda.is_some() { OLDEST_CMAKE_FOR_CUDA } else { OLDEST_CMAKE };
        if let Some(found) = cmake.as_ref().and_then(|cmake| older_than(oldest, &cmake.program)) {
            missing.extend(unfit("cmake", &found));
        }
        let git = machine.program(&["git"]);
        let json_include = machine.header_root("nlohmann/json.hpp").map(Path::to_owned);
        let fmt_include = match self.cuda {
            // releases of fmt that distributions carry do not get through nvcc
            Some(_) => Some(Path::new(crate::ROOT).join("stand-ins")),
            None => machine.header_root("fmt/format.h").map(Path::to_owned),
        };
        match (git, cmake, json_include, fmt_include) {
            (Some(git), Some(cmake), Some(json_include), Some(fmt_include))
                if missing.is_empty() =>
            {
                Ok(Tools { git, cmake, json_include, fmt_include })
            }
            _ => Err(Error::Prerequisites { missing }),
        }
    }

    /// CMake options that are the same on every machine.
    fn options(&self) -> Vec<String> {
        let on_off = |name: &str, on: bool| format!("{name}={}", if on { "ON" } else { "OFF" });
        let mut options = vec![
            "CMAKE_BUILD_TYPE=Release".to_owned(),
            "CMAKE_INSTALL_LIBDIR=lib".to_owned(),
            "CMAKE_INSTALL_INCLUDEDIR=include".to_owned(),
            on_off("BUILD_SHARED_LIBS", false),
            on_off("MLX_BUILD_TESTS", false),
            on_off("MLX_BUILD_EXAMPLES", false),
            on_off("MLX_BUILD_BENCHMARKS", false),
            on_off("MLX_BUILD_PYTHON_BINDINGS", false),
            on_off("MLX_BUILD_GGUF", false),
            on_off("MLX_BUILD_METAL", self.metal),
            on_off("MLX_BUILD_CUDA", self.cuda.is_some()),
            on_off("USE_SYSTEM_FMT", false),
            // Metal's C++ headers and what CUDA needs are downloaded by CMake
            on_off("FETCHCONTENT_FULLY_DISCONNECTED", !self.metal && self.cuda.is_none()),
        ];
        if self.target.starts_with("x86_64") && !self.accelerate {
            options.push(UNCONTRACTED.to_owned());
        }
        if let Some(macos) = &self.macos {
            options.push(format!("CMAKE_OSX_DEPLOYMENT_TARGET={macos}"));
        }
        if let Some(architectures) = self.cuda.as_ref().and_then(|c| c.architectures.as_ref()) {
            options.push(format!("MLX_CUDA_ARCHITECTURES={architectures}"));
        }
        options
    }

    fn compile(&self, pin: &Pin, folders: &Folders<'_>, warn: Warn<'_>) -> Result<()> {
        let Folders { work, prefix, home } = *folders;
        let tools = self.tools()?;
        let (source, build) = (work.join("mlx"), work.join("build"));
        let from = locate::locate(&self.places, &tools.git, pin, &source, warn)?;
        patches::apply(&tools.git, &source, &self.patches)?;
        fs::write(prefix.join(SOURCE_NOTE), &from).map_err(Error::io("write", prefix))?;

        let mut configure = tools.cmake.configure(&source, &build);
        define(&mut configure, "CMAKE_C_COMPILER", &self.cc);
        define(&mut configure, "CMAKE_CXX_COMPILER", &self.cxx);
        define(&mut configure, "CMAKE_INSTALL_PREFIX", prefix);
        if self.cuda.is_some() {
            define(&mut configure, "MLX_HEADER_DIR", &home.join("include"));
        }
        for (name, folder) in self.stand_ins(&tools, work)? {
            define(&mut configure, &format!("FETCHCONTENT_SOURCE_DIR_{name}"), &folder);
        }
        configure.args(self.options().iter().map(|option| format!("-D{option}")));
        self.run(&mut configure, "configure MLX", work)?;

        let mut compile = tools.cmake.build(&build, self.jobs);
        self.run(&mut compile, "compile MLX", work)?;
        let mut install = Command::new(&tools.cmake.program);
        install.arg("--install").arg(&build);
        self.run(&mut install, "install MLX", work)
    }

    /// Folders that stand for what CMake would download.
    fn stand_ins(&self, tools: &Tools, work: &Path) -> Result<Vec<(String, PathBuf)>> {
        let json = work.join("json");
        let cmake = format!("target_include_directories(mlx PRIVATE {:?})\n", tools.json_include);
        write(&json.join("CMakeLists.txt"), &cmake)?;
        write(
            &json.join("single_include/nlohmann/json.hpp"),
            "#pragma once\n#include <nlohmann/json.hpp>\n",
        )?;

        let fmt = work.join("fmt");
        let cmake = format!(
            "add_library(fmt-header-only INTERFACE)\n\
             add_library(fmt::fmt-header-only ALIAS fmt-header-only)\n\
             target_compile_definitions(fmt-header-only INTERFACE FMT_HEADER_ONLY=1)\n\
             target_include_directories(fmt-header-only INTERFACE {:?})\n",
            tools.fmt_include
        );
        write(&fmt.join("CMakeLists.txt"), &cmake)?;

        let mut folders = vec![("JSON".to_owned(), json), ("FMT".to_owned(), fmt)];
        if let Some(root) = self.cuda.as_ref().and_then(|cuda| cuda.sources.as_ref()) {
            for name in ["cccl", "cutlass", "cudnn", "nvtx3"] {
                if root.join(name).is_dir() {
                    folders.push((name.to_uppercase(), root.join(name)));
                }
            }
        }
        Ok(folders)
    }

    fn run(&self, command: &mut Command, purpose: &str, work: &Path) -> Result<()> {
        let log = work.join(format!("{}.log", purpose.split(' ').next().unwrap_or("run")));
        if let Some(nvcc) = self.nvcc() {
            command.env("CUDACXX", nvcc);
        }
        cmake::run(command, purpose, &log)?;
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    fs::write(path, text).map_err(Error::io("write", path))
}

/// What a compiler says about itself.
pub fn version_of(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(Error::io("run", program))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" / "))
}

/// The version of `cmake` in words, when it is older than `oldest`.
fn older_than(oldest: [u32; 2], cmake: &Path) -> Option<String> {
    let text = version_of(cmake).ok()?;
    let version = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let numbers: Vec<u32> = version.split('.').map_while(|n| n.parse().ok()).collect();
    let [major, minor] = oldest;
    let too_old = numbers.as_slice() < oldest.as_slice();
    too_old.then(|| {
        format!("found {version}, MLX needs {major}.{minor} or newer; `pip install cmake` has it")
    })
}

/// What `libmlx.a` has to be linked with, as CMake recorded it on installing.
fn libraries(prefix: &Path) -> Result<Vec<Library>> {
    let path = prefix.join("share/cmake/MLX/MLXTargets.cmake");
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    Ok(parse_libraries(&text))
}

fn parse_libraries(targets: &str) -> Vec<Library> {
    let mut libraries: Vec<Library> = Vec::new();
    let line = targets.lines().find_map(|l| l.trim().strip_prefix("INTERFACE_LINK_LIBRARIES"));
    let list = line.unwrap_or_default().trim().trim_matches('"');
    for entry in list.split(';') {
        let entry = entry.trim_start_matches("\\$<LINK_ONLY:").trim_end_matches('>');
        if let Some(library) = as_library(entry)
            && !libraries.contains(&library)
        {
            libraries.push(library);
        }
    }
    libraries
}

fn as_library(entry: &str) -> Option<Library> {
    let named = |name: &str, folder: Option<&Path>| {
        Some(Library::Named { name: name.to_owned(), folder: folder.map(Path::to_owned) })
    };
    let path = Path::new(entry);
    let stem = path.file_stem().and_then(|s| s.to_str())?;
    if entry.ends_with(".framework") {
        return Some(Library::Framework(stem.to_owned()));
    }
    if path.is_absolute() {
        let folder = path.parent();
        return named(stem.strip_prefix("lib").unwrap_or(stem), folder);
    }
    if let Some(name) = entry.strip_prefix("-framework ") {
        return Some(Library::Framework(name.to_owned()));
    }
    match entry.strip_prefix("CUDA::").or_else(|| entry.strip_prefix("CUDNN::")) {
        Some("cuda_driver") => return named("cuda", None),
        Some("cudnn_all") => return named("cudnn", None),
        Some(name) => return named(name, None),
        None => {}
    }
    let name = entry.strip_prefix("-l").unwrap_or(entry);
    let plain = !name.is_empty() && !name.contains([':', '$', '-', '/', '<']);
    if plain { named(name, None) } else { named(entry.strip_prefix('-')?.strip_prefix('l')?, None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_cmake_targets() {
        let targets = "set_target_properties(mlx PROPERTIES\n  INTERFACE_LINK_LIBRARIES \
                       \"\\$<LINK_ONLY:dl>;\\$<LINK_ONLY:/usr/lib/libopenblas.so>;\\$<LINK_ONLY:-lm>;\
                       \\$<LINK_ONLY:-ldl>;/System/Library/Frameworks/Metal.framework;\
                       \\$<LINK_ONLY:CUDA::cublasLt>;\\$<LINK_ONLY:MLX::x>\"\n)";
        let named = |name: &str, folder: Option<&str>| Library::Named {
            name: name.to_owned(),
            folder: folder.map(PathBuf::from),
        };
        assert_eq!(
            parse_libraries(targets),
            [
                named("dl", None),
                named("openblas", Some("/usr/lib")),
                named("m", None),
                Library::Framework("Metal".to_owned()),
                named("cublasLt", None),
            ]
        );
    }

    #[test]
    fn key_changes_with_every_ingredient() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pin = Pin::current();
        // any program that answers `--version` will do
        let native = Native { cc: "cargo".into(), cxx: "cargo".into(), ..Native::default() };
        let patch = Patch {
            name: "0001-a.patch".to_owned(),
            path: dir.path().into(),
            text: "a".to_owned(),
        };
        let environment = vec![("CXXFLAGS".to_owned(), "-g".to_owned())];
        let variants = [
            native.clone(),
            Native { patches: vec![patch], ..native.clone() },
            Native { target: "other".to_owned(), ..native.clone() },
            Native { metal: true, ..native.clone() },
            Native { macos: Some("14.0".to_owned()), ..native.clone() },
            Native { environment, ..native.clone() },
            Native { cxx: "rustc".into(), ..native },
        ];
        let mut ids: Vec<_> = variants.iter().map(|n| n.key(pin).expect("key").id()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), variants.len());
    }

    #[test]
    fn contraction_is_switched_off_where_the_wheels_cannot_fuse() {
        for (target, expected) in
            [("x86_64-unknown-linux-gnu", true), ("aarch64-unknown-linux-gnu", false)]
        {
            let native = Native { target: target.to_owned(), ..Default::default() };
            let pinned = native.options().iter().any(|o| o.ends_with("-ffp-contract=off"));
            assert_eq!(pinned, expected, "{target}");
        }
    }
}

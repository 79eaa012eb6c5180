//! What the environment says about a build.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use zmlx_patch::{
    Error as PatchError,
    cmake::CMake,
    locate::{ANSWER_WITHIN, Places},
    native::{Cuda, Native, version_of},
    patches::Patch,
    prerequisites::{Machine, Plan, unfit},
};

use crate::Result;

/// Variables that change what a compiler does without being arguments.
const COMPILER_VARIABLES: &[&str] = &[
    "CFLAGS",
    "CXXFLAGS",
    "CPPFLAGS",
    "LDFLAGS",
    "CPATH",
    "CPLUS_INCLUDE_PATH",
    "LIBRARY_PATH",
    "CMAKE_PREFIX_PATH",
    "LAPACK_ROOT",
    "BLAS_HOME",
    "MACOSX_DEPLOYMENT_TARGET",
    "SDKROOT",
];

/// Folders in which Homebrew installs.
const HOMEBREW: &[&str] = &["/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew"];

/// Settings of this build.
pub(crate) struct Environment {
    pub(crate) manifest_dir: PathBuf,
    pub(crate) out_dir: PathBuf,
    pub(crate) os: String,
    pub(crate) arch: String,
    target: String,
    pub(crate) jobs: usize,
    pub(crate) custom_primitive: bool,
    pub(crate) cuda: Option<Cuda>,
    pub(crate) prebuilt_dir: Option<PathBuf>,
    pub(crate) source_dir: Option<PathBuf>,
    pub(crate) allow_unverified: bool,
    offline: bool,
    cargo: PathBuf,
    pub(crate) cache_root: PathBuf,
    cc: PathBuf,
    pub(crate) cxx: PathBuf,
    machine: Machine,
    compiler_variables: Vec<(String, String)>,
    /// The oldest macOS that the C++ runs on.
    pub(crate) macos: Option<String>,
}

impl Environment {
    /// Reads every variable that has a say, and asks cargo to run again when one changes.
    pub(crate) fn read() -> Result<Environment> {
        let out_dir = PathBuf::from(from_cargo("OUT_DIR")?);
        let os = from_cargo("CARGO_CFG_TARGET_OS")?;
        let target = from_cargo("TARGET")?;
        let host = from_cargo("HOST")?;
        if target != host {
            let text =
                format!("MLX is built on the machine it runs on, not on {host} for {target}");
            return Err(text.into());
        }
        let cuda = has_feature("CUDA").then(|| Cuda {
            nvcc: variable("CUDACXX").map(PathBuf::from),
            architectures: variable("MLX_CUDA_ARCHITECTURES"),
            sources: variable("ZMLX_CUDA_SOURCES").map(PathBuf::from),
        });
        let path = env::var_os("PATH").unwrap_or_default();
        let mut machine = Machine { path: env::split_paths(&path).collect(), ..Machine::default() };
        for name in ["CUDA_HOME", "CUDA_PATH"] {
            if let (Some(home), Some(_)) = (variable(name), &cuda) {
                let home = PathBuf::from(home);
                machine.path.push(home.join("bin"));
                machine.include.push(home.join("include"));
                machine.library.extend([home.join("lib64"), home.join("lib")]);
            }
        }
        let cc = compiler(&machine, "CC", &["cc", "gcc", "clang"])?;
        let cxx = compiler(&machine, "CXX", &["c++", "g++", "clang++"])?;
        add_search_folders(&mut machine, &cxx, &os);

        let macos = macos(&machine, &target);
        let compiler_variables = COMPILER_VARIABLES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), variable(name)?)))
            .collect();
        Ok(Environment {
            manifest_dir: from_cargo("CARGO_MANIFEST_DIR")?.into(),
            os,
            arch: from_cargo("CARGO_CFG_TARGET_ARCH")?,
            target,
            jobs: from_cargo("NUM_JOBS")?.parse().unwrap_or(1),
            custom_primitive: has_feature("CUSTOM_PRIMITIVE"),
            cuda,
            prebuilt_dir: folder("MLX_PREBUILT_DIR")?,
            source_dir: folder("MLX_SOURCE_DIR")?,
            allow_unverified: variable("ZMLX_ALLOW_UNVERIFIED_MLX").is_some_and(|v| v != "0"),
            offline: variable("CARGO_NET_OFFLINE").is_some_and(|v| v == "true"),
            cargo: from_cargo("CARGO")?.into(),
            cache_root: cache_root(&out_dir)?,
            out_dir,
            cc,
            cxx,
            macos,
            machine,
            compiler_variables,
        })
    }

    /// Runs this script again when the file, or a file in the folder, changes.
    pub(crate) fn watch(&self, path: &Path) {
        println!("cargo:rerun-if-changed={}", path.display());
    }

    /// What a build from source takes.
    pub(crate) fn plan(&self) -> Plan {
        Plan {
            source: true,
            accelerate: self.os == "macos",
            metal: self.has_metal(),
            cuda: self.cuda.is_some(),
        }
    }

    fn has_metal(&self) -> bool {
        self.os == "macos" && self.arch == "aarch64"
    }

    /// Stops with a list when the machine lacks something that `plan` takes.
    pub(crate) fn require(&self, plan: Plan) -> Result<()> {
        let mut missing = self.machine.missing(plan);
        if !missing.is_empty() && self.prebuilt_dir.is_none() {
            // without a compiler the rest is going to be missed as well: say it all at once
            missing = self.machine.missing(self.plan());
        } else if missing.is_empty() && !speaks_cxx20(&self.cxx) {
            let found = format!("{} does not know C++20", self.cxx.display());
            missing.extend(unfit("a C++ compiler", &found));
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(PatchError::Prerequisites { missing }.into())
    }

    /// The build of MLX from source.
    pub(crate) fn native(&self, patches: Vec<Patch>) -> Native {
        Native {
            places: Places {
                source_dir: self.source_dir.clone(),
                allow_unverified: self.allow_unverified,
                offline: self.offline,
                answer_within: ANSWER_WITHIN,
                cargo: self.cargo.clone(),
                manifest: Path::new(zmlx_patch::ROOT).join("Cargo.toml"),
            },
            patches,
            machine: self.machine.clone(),
            cc: self.cc.clone(),
            cxx: self.cxx.clone(),
            target: self.target.clone(),
            accelerate: self.os == "macos",
            metal: self.has_metal(),
            cuda: self.cuda.clone(),
            macos: self.macos.clone(),
            environment: self.compiler_variables.clone(),
            jobs: self.jobs,
        }
    }

    /// Folders with the libraries of the CUDA toolkit; `stubs` has a driver to link against.
    pub(crate) fn cuda_libraries(&self) -> Vec<PathBuf> {
        let nvcc = self.nvcc().and_then(|nvcc| nvcc.canonicalize().ok());
        let home = nvcc.as_deref().and_then(|nvcc| nvcc.parent()?.parent());
        let of_home = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
        let of_home = home.into_iter().flat_map(|h| of_home.iter().map(|l| h.join(l)));
        let folders = of_home.chain(self.machine.library.iter().cloned());
        folders
            .flat_map(|folder| [folder.join("stubs"), folder])
            .filter(|folder| {
                ["libcudart_static.a", "libcuda.so"].iter().any(|l| folder.join(l).exists())
            })
            .collect()
    }

    /// CMake, which a build that got this far has found.
    pub(crate) fn cmake(&self) -> Result<CMake> {
        CMake::find(&self.machine).ok_or_else(|| "cmake is not on the path".into())
    }

    /// Everything that CMake looks at once, when it configures a folder for the first time.
    pub(crate) fn toolchain(&self) -> Result<String> {
        let mut text = format!("{:?}", self.compiler_variables);
        let programs = [Some(self.cxx.clone()), self.nvcc(), Some(self.cmake()?.program)];
        for program in programs.into_iter().flatten() {
            text += &format!("\n{} {}", program.display(), version_of(&program)?);
        }
        Ok(text)
    }

    /// ccache with its settings, if it is there: what it compiles lies beside MLX's cache, and the
    /// folder of the checkout is no part of a key, so that others find it.
    pub(crate) fn launcher(&self) -> Result<String> {
        let Some(ccache) = self.machine.program(&["ccache"]) else { return Ok(String::new()) };
        let folder = variable("CCACHE_DIR").map(PathBuf::from);
        let folder = folder.unwrap_or_else(|| self.cache_root.join("ccache"));
        let checkout = self.manifest_dir.parent().unwrap_or(&self.manifest_dir);
        let settings = [
            format!("CCACHE_DIR={}", folder.display()),
            format!("CCACHE_BASEDIR={}", checkout.display()),
            "CCACHE_NOHASHDIR=true".to_owned(),
            // what it asks for to store precompiled headers, which none of our definitions changes
            "CCACHE_SLOPPINESS=pch_defines,time_macros".to_owned(),
            // its version, not the time at which it was installed
            "CCACHE_COMPILERCHECK=%compiler% --version".to_owned(),
        ];
        let cmake = self.cmake()?.program;
        Ok(format!("{};-E;env;{};{}", cmake.display(), settings.join(";"), ccache.display()))
    }

    pub(crate) fn nvcc(&self) -> Option<PathBuf> {
        let named = self.cuda.as_ref()?.nvcc.clone();
        named.or_else(|| self.machine.program(&["nvcc"]))
    }
}

/// A variable that changes the build, unless it is empty.
fn variable(name: &str) -> Option<String> {
    println!("cargo:rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// A variable that cargo sets.
fn from_cargo(name: &str) -> Result<String> {
    env::var(name).map_err(|e| format!("{name}: {e}; this is to be run by cargo").into())
}

fn has_feature(name: &str) -> bool {
    env::var_os(format!("CARGO_FEATURE_{name}")).is_some()
}

fn folder(name: &str) -> Result<Option<PathBuf>> {
    let Some(value) = variable(name) else { return Ok(None) };
    let path = PathBuf::from(&value);
    match path.canonicalize() {
        Ok(full) if path.is_absolute() && full.is_dir() => Ok(Some(path)),
        Ok(_) => Err(format!("{name}={value} has to be the absolute path of a folder").into()),
        Err(error) => Err(format!("{name}={value}: {error}").into()),
    }
}

/// `ZMLX_CACHE_DIR`, or `zmlx` in the user's cache; `off` means in the target folder.
fn cache_root(out_dir: &Path) -> Result<PathBuf> {
    let user_cache = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = variable("HOME").or_else(|| variable("USERPROFILE"));
    match variable("ZMLX_CACHE_DIR") {
        Some(value) if value == "off" => Ok(out_dir.to_owned()),
        Some(value) if Path::new(&value).is_absolute() => Ok(value.into()),
        Some(value) => Err(format!("ZMLX_CACHE_DIR={value} is neither absolute nor `off`").into()),
        None => {
            let user_cache = user_cache.or_else(|| Some(Path::new(&home?).join(".cache")));
            Ok(user_cache.map_or_else(|| out_dir.to_owned(), |cache| cache.join("zmlx")))
        }
    }
}

/// `MACOSX_DEPLOYMENT_TARGET`, or the macOS of this machine. MLX has kernels for recent chips only where it is compiled
/// for a macOS that knows them, so the oldest is not a good default.
fn macos(machine: &Machine, target: &str) -> Option<String> {
    if !target.ends_with("-apple-darwin") {
        return None;
    }
    let named = variable("MACOSX_DEPLOYMENT_TARGET");
    let here = || {
        let output = Command::new(machine.program(&["sw_vers"])?).arg("-productVersion").output();
        let version = String::from_utf8(output.ok()?.stdout).ok()?;
        let mut parts = version.trim().split('.');
        Some(format!("{}.{}", parts.next().filter(|v| !v.is_empty())?, parts.next().unwrap_or("0")))
    };
    named.or_else(here)
}

fn compiler(machine: &Machine, name: &str, usual: &[&str]) -> Result<PathBuf> {
    let Some(value) = variable(name) else {
        // the overlay's own check reports a compiler that is not there
        return Ok(machine.program(usual).unwrap_or_else(|| usual[0].into()));
    };
    if Path::new(&value).is_absolute() && Path::new(&value).is_file() {
        return Ok(value.into());
    }
    machine.program(&[&value]).ok_or_else(|| {
        format!("{name}={value} is not on the path; {name} has to name one program").into()
    })
}

/// Adds the folders in which the compiler and Homebrew look.
fn add_search_folders(machine: &mut Machine, cxx: &Path, os: &str) {
    for name in ["CPATH", "CPLUS_INCLUDE_PATH"] {
        machine.include.extend(env::split_paths(&env::var_os(name).unwrap_or_default()));
    }
    machine.library.extend(env::split_paths(&env::var_os("LIBRARY_PATH").unwrap_or_default()));

    let asked = |arguments: &[&str]| {
        let output = Command::new(cxx).env("LC_ALL", "C").args(arguments).output();
        output.map(|o| {
            let both = [o.stdout, o.stderr].concat();
            String::from_utf8_lossy(&both).into_owned()
        })
    };
    if let Ok(text) = asked(&["-E", "-v", "-x", "c++", "/dev/null"]) {
        let folders = text.lines().skip_while(|l| !l.starts_with("#include <...>"));
        let folders = folders.skip(1).take_while(|l| l.starts_with(' '));
        machine.include.extend(folders.map(|l| PathBuf::from(l.trim())));
    }
    if let Ok(text) = asked(&["-print-search-dirs"]) {
        let line = text.lines().find_map(|l| l.strip_prefix("libraries: ="));
        machine.library.extend(env::split_paths(line.unwrap_or_default()));
    }
    let prefixes = env::var("CMAKE_PREFIX_PATH").unwrap_or_default();
    let prefixes = prefixes.split([';', ':']).filter(|p| !p.is_empty()).map(PathBuf::from);
    let homebrew = HOMEBREW.iter().map(PathBuf::from);
    for prefix in prefixes.chain(homebrew) {
        machine.include.push(prefix.join("include"));
        machine.include.push(prefix.join("opt/openblas/include"));
        machine.library.push(prefix.join("lib"));
        machine.library.push(prefix.join("opt/openblas/lib"));
    }
    if os == "linux" {
        machine.library.extend(["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from));
        // where the compiler looks, for when there is none to ask
        let multiarch = format!("{}-linux-gnu", env::consts::ARCH);
        machine.include.extend(["/usr/include".into(), Path::new("/usr/include").join(&multiarch)]);
        machine.library.push(Path::new("/usr/lib").join(multiarch));
    }
}

fn speaks_cxx20(cxx: &Path) -> bool {
    let source = "concept.cc";
    let out_dir = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    let path = out_dir.join(source);
    let text = "#include <bit>\n#include <span>\ntemplate <typename T> concept C = requires(T t) \
                { t + t; };\nstatic_assert(C<int> && std::popcount(3u) == 2);\n";
    std::fs::write(&path, text).is_ok()
        && Command::new(cxx)
            .args(["-std=c++20", "-fsyntax-only"])
            .arg(path)
            .output()
            .is_ok_and(|output| output.status.success())
}

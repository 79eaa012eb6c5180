//! The C++ that a Mac compiles, compiled for one where there is none: the overlay with its Metal backends, and the shim.
//!
//! Zig's compiler knows the headers of macOS but not Apple's frameworks; what MLX's Metal headers and our Metal host code
//! name of these is declared in `overlay/tests/metal/apple`. `scripts/zig` installs the compiler.
#![cfg(feature = "custom-primitive")]
#![expect(clippy::print_stdout, reason = "what was skipped, and what was compiled")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Mutex,
    thread,
};

/// The oldest macOS that MLX's wheels are for.
const TARGET: &str = "aarch64-macos.14.0";

/// Instruction sets of other processors.
const ELSEWHERE: &[&str] = &["_amx", "_avx2", "_avx512"];

fn overlay() -> PathBuf {
    Path::new(zmlx_patch::ROOT).join("overlay")
}

fn cache() -> PathBuf {
    let set = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache");
    set.unwrap_or_else(home).join("zmlx/zig")
}

/// Zig, unless this machine has none.
fn zig() -> Option<PathBuf> {
    let named = env::var_os("ZMLX_ZIG").map(PathBuf::from);
    let installed = || {
        let folders = fs::read_dir(cache()).ok()?.flatten();
        folders.map(|folder| folder.path().join("zig")).find(|zig| zig.is_file())
    };
    let found = named.or_else(installed);
    if found.is_none() {
        let reason = "there is no Zig on this machine; scripts/zig installs it";
        assert!(env::var_os("CI").is_none(), "{reason}, and CI does not skip this");
        println!("SKIPPED: the C++ of a Mac is not compiled: {reason}");
    }
    found
}

/// Zig through ccache, if the build found it, with the settings of our C++.
fn compiler(zig: &Path) -> Command {
    let Some((settings, ccache)) = env!("ZMLX_SYS_LAUNCHER").rsplit_once(';') else {
        return Command::new(zig);
    };
    let mut words = settings.split(';');
    let mut command = Command::new(words.next().unwrap_or_default());
    // it does not know Zig by name, and Zig tells its version in another way
    command
        .args(words)
        .args(["CCACHE_COMPILERTYPE=clang", "CCACHE_COMPILERCHECK=%compiler% version"]);
    command.arg(ccache).arg(zig);
    command
}

fn compile(zig: &Path, unit: &Path, object: &Path) -> Output {
    let generated = Path::new(env!("ZMLX_SYS_CPP")).with_file_name("cxxbridge");
    let mut command = compiler(zig);
    command.args(["c++", "-target", TARGET, "-std=c++20", "-c", "-fno-sanitize=undefined"]);
    // MLX's macros have parameters that they do not use
    command.args(["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]);
    command.arg("-Wno-unused-command-line-argument");
    command.args(["-DZMLX_CUSTOM_PRIMITIVE=1", "-DZMLX_BACKEND_METAL=1"]);
    command.args(["-DZMLX_METALLIB=\"\"", "-DZMLX_KERNELS_METALLIB=\"\""]);
    if env!("ZMLX_SYS_MODE") == "source" {
        command.arg("-DZMLX_MLX_PATCHED=1");
    }
    command.arg("-I").arg(overlay());
    command.arg("-I").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/shim"));
    for folder in ["include", "crate"] {
        command.arg("-isystem").arg(generated.join(folder));
    }
    command.arg("-isystem").arg(env!("ZMLX_SYS_INCLUDE"));
    command.arg("-isystem").arg(overlay().join("tests/metal/apple"));
    command.arg("-o").arg(object).arg(unit);
    command.env("ZIG_GLOBAL_CACHE_DIR", cache().join("cache"));
    command.env("ZIG_LOCAL_CACHE_DIR", cache().join("cache"));
    command.output().expect("zig")
}

fn files(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
    let name = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let mut files: Vec<_> = entries.filter(|path| name(path).is_some_and(|n| wanted(&n))).collect();
    files.sort();
    files
}

/// What CMake would compile on a Mac.
fn units() -> Vec<PathBuf> {
    let is_unit = |name: &str| name.ends_with(".cpp");
    let mut units = Vec::new();
    for folder in files(&overlay(), |name| name != "tests") {
        if folder.join("op.cpp").exists() {
            let parts = ["op.cpp", "cpu.cpp", "metal.cpp"].map(|name| folder.join(name));
            units.extend(parts.into_iter().filter(|part| part.exists()));
        } else if ["cpu", "metal", "zmlx"].iter().any(|name| folder.ends_with(name)) {
            let here =
                |name: &str| is_unit(name) && !ELSEWHERE.iter().any(|isa| name.contains(isa));
            units.extend(files(&folder, here));
        }
    }
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/shim");
    units.extend(files(&shim, |name| name.ends_with(".cc")));
    units
}

#[test]
fn what_a_mac_compiles_compiles() {
    let Some(zig) = zig() else { return };
    let folder = tempfile::tempdir().expect("tempdir");
    let units = units();
    assert!(units.iter().any(|unit| unit.ends_with("metal/host.cpp")), "{units:?}");
    let (todo, failed) = (Mutex::new(units.iter().enumerate()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let next = todo.lock().expect("lock").next();
            let Some((i, unit)) = next else { return };
            let output = compile(&zig, unit, &folder.path().join(format!("{i}.o")));
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                failed.lock().expect("lock").push(format!("{}:\n{said}", unit.display()));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().expect("lock");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    println!("{} units compiled for {TARGET}", units.len());
}

/// The check would be worth nothing if it let this pass.
#[test]
fn type_error_in_a_metal_host_file_is_found() {
    let Some(zig) = zig() else { return };
    let folder = tempfile::tempdir().expect("tempdir");
    let good = fs::read_to_string(overlay().join("metal/host.cpp")).expect("unit");
    let errors = [
        // an argument of another type than Metal's
        ("d.get_kernel(kernel.name, library)", "d.get_kernel(library, kernel.name)"),
        // a member that MLX's header does not have
        ("d.get_library(\"zmlx\", metallib())", "d.load_library(\"zmlx\", metallib())"),
    ];
    let object = folder.path().join("unit.o");
    for (right, wrong) in errors {
        assert!(good.contains(right), "metal/host.cpp no longer has {right}");
        let unit = folder.path().join("host.cpp");
        fs::write(&unit, good.replace(right, wrong)).expect("write");
        let output = compile(&zig, &unit, &object);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("host.cpp:"), "{wrong}: {said}");
    }
    let unit = folder.path().join("host.cpp");
    fs::write(&unit, good).expect("write");
    let output = compile(&zig, &unit, &object);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

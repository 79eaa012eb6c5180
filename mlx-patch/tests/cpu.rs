//! Parts of the overlay that need no MLX, compiled here with the machine's own C++ compiler.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn compile(folder: &Path, flags: &[&str], sources: &[&str]) -> PathBuf {
    let root = Path::new(zmlx_patch::ROOT).join("overlay");
    let program = folder.join("program");
    let cxx = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut command = Command::new(&cxx);
    command.args(["-std=c++20", "-pthread", "-rdynamic", "-I"]).arg(&root).args(flags);
    command.args(sources.iter().map(|s| root.join(s))).arg("-o").arg(&program);
    let output = command.args(["-ldl"]).output().unwrap();
    assert!(output.status.success(), "{cxx}: {}", String::from_utf8_lossy(&output.stderr));
    program
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Each case in a process of its own: some limit what the process may have.
#[test]
#[cfg(target_os = "linux")]
fn thread_pool_passes_its_cases() {
    let folder = tempfile::tempdir().unwrap();
    let sources = ["tests/thread_pool.cpp", "cpu/thread_pool.cpp", "cpu/profile.cpp"];
    let program = compile(folder.path(), &["-O1"], &sources);
    let cases = stdout(&Command::new(&program).output().unwrap());
    assert!(cases.lines().count() > 5, "{cases}");
    let failed: Vec<String> = cases
        .lines()
        .filter_map(|case| {
            let output = Command::new(&program).arg(case).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            (!output.status.success()).then(|| format!("{case}: {}: {said}", output.status))
        })
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Tiles in plain C++, and the processor's own where it has some: the same kernel, the same cases.
#[test]
#[cfg(target_arch = "x86_64")]
fn products_of_tiles_are_within_rounding_of_the_sums() {
    let folder = tempfile::tempdir().unwrap();
    // of MLX the kernels want to know the version, and nothing else
    std::fs::create_dir(folder.path().join("mlx")).unwrap();
    std::fs::write(folder.path().join("mlx/version.h"), "#define MLX_VERSION_NUMERIC 32002\n")
        .unwrap();
    let include = format!("-I{}", folder.path().display());
    let flags = "-O2 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mavx512vbmi \
                 -mamx-tile -mamx-bf16";
    let flags: Vec<&str> = flags.split_whitespace().chain([include.as_str()]).collect();
    let program = compile(folder.path(), &flags, &["tests/tiles.cpp", "cpu/tiles_permission.cpp"]);
    for arguments in [&[][..], &["--hardware"]] {
        let said = stdout(&Command::new(&program).args(arguments).output().unwrap());
        assert!(said.contains("cases") || said.starts_with("SKIPPED"), "{said}");
        println!("{arguments:?}: {said}");
    }
}

#[test]
fn probe_of_stock_tells_how_its_loop_was_compiled() {
    let folder = tempfile::tempdir().unwrap();
    let probe = |flags: &[&str]| {
        let program = compile(folder.path(), flags, &["tests/stock_probe.cpp"]);
        stdout(&Command::new(program).output().unwrap())
    };
    assert_eq!(probe(&["-O3", "-ffp-contract=off"]), "alike");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        assert_eq!(probe(&["-O3", "-mfma", "-ffp-contract=off"]), "alike");
        assert_eq!(probe(&["-O3", "-mfma", "-ffp-contract=fast"]), "different");
    } else {
        println!("skipped: this processor cannot fuse");
    }
    #[cfg(target_arch = "aarch64")]
    assert_eq!(probe(&["-O3", "-ffp-contract=fast"]), "different");
}

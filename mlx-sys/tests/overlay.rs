//! The C++ that this package builds, beyond what can be seen through the bridge.
#![cfg(feature = "custom-primitive")]
#![expect(clippy::print_stdout, reason = "what the programs printed")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// CMake's folder, with our libraries and more targets.
const CPP: &str = env!("ZMLX_SYS_CPP");

/// The programs in `overlay/tests`, built on the first call.
fn program(name: &str) -> PathBuf {
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        let mut build = Command::new(env!("ZMLX_SYS_CMAKE"));
        build.args(["--build", CPP, "--target", "overlay_tests"]);
        // cargo's own make flags are not for CMake's make
        build.env_remove("MAKEFLAGS").env_remove("CARGO_MAKEFLAGS");
        let output = build.output().expect("cmake");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
    });
    Path::new(CPP).join("overlay/tests").join(name)
}

fn run(name: &str, arguments: &[&str]) {
    let output = Command::new(program(name)).args(arguments).output().expect(name);
    let text = String::from_utf8_lossy(&output.stdout);
    let skipped = text.lines().find(|line| line.starts_with("SKIPPED"));
    // 2: what was asked for is not here
    let fits = output.status.success() || (skipped.is_some() && output.status.code() == Some(2));
    assert!(fits, "{name}: {}\n{text}", output.status);
    if let Some(reason) = skipped {
        println!("{name}: {reason}");
        return;
    }
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains("cases") && !last.starts_with('0'), "{name} compared nothing: {text}");
    println!("{name}: {last}");
}

#[test]
fn rows_of_the_table_are_whole() {
    run("registry", &[]);
}

// one test for each type, so that cores share them

#[test]
fn products_of_bf16_equal_stock() {
    run("equivalence", &["--quick", "--dtype", "bf16"]);
}

#[test]
fn products_of_f16_equal_stock() {
    run("equivalence", &["--quick", "--dtype", "f16"]);
}

#[test]
fn products_of_f32_equal_stock() {
    run("equivalence", &["--quick", "--dtype", "f32"]);
}

#[test]
fn fast_products_of_each_instruction_set_are_within_tolerance() {
    for isa in ["amx", "avx512bf16", "avx512", "avx2", "neon", "scalar"] {
        run("equivalence", &["--quick", "--fast", "--isa", isa]);
    }
}

#[test]
fn routers_equal_stock() {
    run("router_equivalence", &["--quick"]);
}

#[test]
fn decode_steps_equal_stock() {
    run("step_equivalence", &["--quick"]);
}

#[test]
fn recurrent_layers_equal_stock() {
    run("recurrent_equivalence", &["--quick"]);
}

/// A function that several units define as inline is linked once, from whichever comes first. If a
/// unit for one instruction set has such a function, other units may run it on machines without.
#[test]
#[cfg(target_os = "linux")]
fn units_for_one_instruction_set_define_nothing_that_others_could_link() {
    let archive = Path::new(CPP).join("lib/libzmlx_overlay.a");
    let mut nm = Command::new("nm");
    nm.args(["--demangle", "--print-file-name", "--defined-only"]).arg(&archive);
    let output = nm.output().expect("nm");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.lines().count() > 100, "nm: {text}");
    let mut wide = 0;
    for line in text.lines() {
        // archive:unit.cpp.o:address kind name
        let Some((place, symbol)) = line.rsplit_once(".cpp.o:") else { continue };
        let unit = place.rsplit(':').next().unwrap_or_default();
        let mut words = symbol.splitn(3, ' ').skip(1);
        let (Some(kind), Some(name)) = (words.next(), words.next()) else { continue };
        if !["_amx", "_avx2", "_avx512", "_neon"].iter().any(|isa| unit.contains(isa)) {
            continue;
        }
        wide += 1;
        // the address of the C++ runtime's exception handler
        let data_of_runtime = name.starts_with("DW.ref.");
        let is_weak = matches!(kind, "W" | "w" | "V" | "v" | "u");
        assert!(!is_weak || data_of_runtime, "{unit}.cpp defines {name}, which others may link");
    }
    assert!(wide > 0, "no unit for an instruction set in {}", archive.display());
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_kernels_equal_stock() {
    run("product", &["--quick"]);
}

#[cfg(feature = "cuda")]
#[test]
fn stock_attention_of_caches_as_they_are_repeats_itself() {
    run("repeat", &[]);
}

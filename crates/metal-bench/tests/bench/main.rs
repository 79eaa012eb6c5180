//! Stock's Metal kernels and ours, on the bench.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{path::Path, sync::LazyLock};

use metal_bench::Compiler;

mod add_rms_norm;
mod elementwise;
mod gather_qmm_combine;
mod gather_qmm_swiglu;
mod glu;
mod kernels;
mod machine;
mod moe_router;
mod qk_norm_rope;
mod quantized;
mod reduce;
mod rows;
mod stock;
mod swiglu_mlp;
mod values;

/// The compiler, with what it has compiled in cargo's folder for tests.
fn compiler() -> &'static Compiler {
    static COMPILER: LazyLock<Compiler> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("metal-bench");
        Compiler::find(&folder).unwrap_or_else(|error| panic!("{error}"))
    });
    &COMPILER
}

/// Says it also where the output of tests is captured.
fn say(what: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// How much was compared.
fn report(what: &str, cases: usize) {
    assert!(cases > 0, "{what}: nothing was compared");
    say(&format!("{what}: {cases} cases have the bits of stock"));
}

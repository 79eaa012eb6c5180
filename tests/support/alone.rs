//! Tests about the state of the whole process run alone, in a process of their own.

use std::process::Command;

/// Runs the ignored test `name` (path from the crate's root) in a fresh process.
pub(crate) fn run(name: &str) {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--exact", name, "--ignored", "--test-threads=1", "--nocapture"];
    let output = Command::new(program).args(arguments).output().unwrap();
    // The end names what was tried last.
    let text = &output.stdout[output.stdout.len().saturating_sub(4000)..];
    let text = String::from_utf8_lossy(text);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{text}\n{error}", output.status);
    assert!(text.contains("1 passed"), "{name} did not run:\n{text}");
}

/// `alone!(fn name() { .. })`: the body as a test in a process of its own.
macro_rules! alone {
    ($(#[$meta:meta])* fn $name:ident() $body:block) => {
        mod $name {
            #[allow(unused_imports, reason = "a body may need nothing from around it")]
            use super::*;

            #[test]
            #[ignore = "run by the test beside it, alone in its process"]
            fn inner() $body

            $(#[$meta])*
            #[test]
            fn alone() {
                let path = module_path!().split_once("::").unwrap().1;
                crate::support::alone::run(&format!("{path}::inner"));
            }
        }
    };
}
pub(crate) use alone;

//! `cargo xtask VERB`: checks of this repository that need more than cargo.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

mod figures;
mod tidy;

use std::{
    path::Path,
    process::{Command, ExitCode},
};

const USAGE: &str = "\
cargo xtask VERB
  check     formatting, then clippy with warnings denied
  families  writes the README's table of families, as the code has them
  tidy      invariants that no compiler checks: tables, patch headers, paths in documents, sizes,
            figures of the README";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let ok = match arguments.as_slice() {
        ["check"] => check(&root),
        ["families"] => families(&root),
        ["tidy"] => tidy(&root),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The release profile throughout: one build of the dependencies serves lints, tests and binary.
fn check(root: &Path) -> bool {
    let clippy = "clippy --workspace --all-targets --release --locked -- -D warnings";
    cargo(root, "fmt --all --check") && cargo(root, clippy)
}

/// The test that compares the table writes it where it is told to: it knows the models, and this tool does without MLX.
fn families(root: &Path) -> bool {
    let test =
        "test -p zmlx-lm --lib --locked -- --exact tests::table::table_in_the_readme_is_current";
    println!("cargo {test}");
    is_done(cargo_at(root).args(test.split(' ')).env("ZMLX_WRITE_FAMILIES", "1"))
}

fn cargo(root: &Path, arguments: &str) -> bool {
    println!("cargo {arguments}");
    is_done(cargo_at(root).args(arguments.split(' ')))
}

fn cargo_at(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

fn is_done(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}

fn tidy(root: &Path) -> bool {
    match tidy::run(root) {
        Ok(report) => {
            for problem in &report.problems {
                println!("tidy: {problem}");
            }
            println!("tidy: {} files, {} problems", report.num_files, report.problems.len());
            report.problems.is_empty()
        }
        Err(error) => {
            eprintln!("tidy: {error}");
            false
        }
    }
}

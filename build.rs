//! Lets the program find a prebuilt MLX at run time, and records the commit it is built from.

use std::{path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_ZMLX_RPATH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
    let hash = git(&["rev-parse", "--short=12", "HEAD"]);
    println!("cargo:rustc-env=ZMLX_GIT_HASH={}", hash.as_deref().unwrap_or("unknown"));
    if hash.is_some() {
        let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
        for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
            let path = git(&["rev-parse", "--git-path", name]);
            // a path that is not there would make cargo run this every time
            if let Some(path) = path.filter(|path| Path::new(path).exists()) {
                println!("cargo:rerun-if-changed={path}");
            }
        }
    }
}

/// One line from git about this checkout; nothing where zmlx is not in a repository of its own.
fn git(arguments: &[&str]) -> Option<String> {
    let root = Path::new(".").canonicalize().ok()?;
    let ceiling = root.parent()?;
    let mut command = Command::new("git");
    command.env("GIT_CEILING_DIRECTORIES", ceiling).current_dir(&root).args(arguments);
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

//! The command line contract, through the binary: what goes where, exit codes, JSON Lines, refusals.

mod answers;
mod bench;
mod cache;
mod chat;
mod convert;
mod help;
mod patterns;
mod refusals;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// The binary, cut off from anybody's cache and from the network.
fn command(arguments: &[&str]) -> Command {
    static HOME: OnceLock<TempDir> = OnceLock::new();
    let home = HOME.get_or_init(|| tempfile::tempdir().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmlx"));
    command.args(arguments).stdin(Stdio::null());
    for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT", "ZMLX_DEMO_MODEL"] {
        command.env_remove(name);
    }
    command
        .env("HF_HOME", home.path())
        .env("HF_HUB_OFFLINE", "1")
        .env("ZMLX_CHAT_HISTORY", "")
        .env("ZMLX_SMART_DIR", "");
    command
}

fn zmlx(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// A random checkpoint without a tokenizer, made once.
fn tiny() -> &'static str {
    static TINY: OnceLock<(TempDir, String)> = OnceLock::new();
    let (_folder, path) = TINY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny").to_str().unwrap().to_owned();
        let output = zmlx(&["synth", "--like", "qwen3-moe-tiny", "--out", &path]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        (folder, path)
    });
    path
}

fn demo() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    folder.to_str().unwrap().to_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The lines of `--json`, each an object with a `type`.
fn lines(output: &Output) -> Vec<Value> {
    let lines: Vec<Value> =
        stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["type"].is_string()), "{lines:?}");
    lines
}

/// The last line of a command that succeeded.
fn summary(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    let lines = lines(output);
    assert_eq!(lines[0]["type"], "begin");
    assert!(lines[0]["stock"].as_str().unwrap().starts_with("MLX "), "{}", lines[0]);
    assert_eq!(lines[0]["schema"], 1);
    let last = lines.last().unwrap().clone();
    assert_eq!(last["type"], "summary");
    last
}

/// The keys of an object, in order.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[track_caller]
fn assert_has_keys(value: &Value, wanted: &[&str]) {
    for key in wanted {
        assert!(value.get(key).is_some(), "`{key}` is missing from {:?}", keys(value));
    }
}

use std::process::Stdio;

use super::{command, demo, lines, stderr, tiny, zmlx};

/// Runs, expects exit code 2, and an error that mentions every part.
#[track_caller]
fn refused(arguments: &[&str], parts: &[&str]) {
    let output = zmlx(arguments);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert!(message.contains("zmlx: error: "), "{arguments:?}: {message}");
    says_it_once(&message);
    for part in parts {
        assert!(message.contains(part), "{arguments:?}: `{part}` is missing from: {message}");
    }
}

/// A cause that its wrapper has named already is not named again.
#[track_caller]
fn says_it_once(message: &str) {
    let first = message.lines().find(|line| line.contains("zmlx: error: ")).unwrap();
    let clauses: Vec<&str> = first.split(": ").collect();
    for (index, clause) in clauses.iter().enumerate() {
        assert!(!clauses[..index].contains(clause), "`{clause}` twice in: {first}");
    }
}

#[test]
fn bad_numbers_are_refused() {
    let generate = |more: &[&'static str], parts: &[&str]| {
        refused(&[&["generate", tiny(), "--prompt-tokens", "1"], more].concat(), parts);
    };
    generate(&["--max-tokens", "0"], &["--max-tokens", "at least 1"]);
    generate(&["--max-tokens", "-3"], &["-3"]);
    generate(&["--max-tokens", "many"], &["many", "whole number"]);
    generate(&["--temp", "-1"], &["-1"]);
    generate(&["--temp", "NaN"], &["temperature", "NaN"]);
    generate(&["--top-p", "1.5"], &["top_p", "1.5"]);
    generate(&["--min-p", "2"], &["min_p", "2"]);
    generate(&["--top-k", "99999999"], &["top_k", "vocabulary"]);
    generate(&["--repetition-penalty=-1"], &["repetition_penalty", "-1"]);
    generate(&["--presence-penalty", "NaN"], &["presence_penalty", "NaN"]);
    generate(&["--frequency-penalty", "inf"], &["frequency_penalty", "inf"]);
    generate(&["--stop", ""], &["--stop"]);
    generate(&["--stop", "text"], &["--stop", "tokenizer.json"]);
    generate(&["--threads", "0"], &["--threads", "0"]);
    generate(&["--device", "tpu"], &["tpu", "auto, cpu, gpu"]);
    generate(&["--precision", "best"], &["best", "exact, fast"]);
    refused(&["validate", tiny(), "--runs", "0"], &["--runs", "0"]);
}

#[test]
fn bad_conversions_are_refused() {
    let convert = |more: &[&'static str], parts: &[&str]| {
        let out = concat!(env!("CARGO_TARGET_TMPDIR"), "/never-made");
        refused(&[&["convert", tiny(), "--out", out], more].concat(), parts);
        assert!(!std::path::Path::new(out).exists());
    };
    refused(&["convert", tiny()], &["--out"]);
    convert(&["--recipe", "mixed_1_2"], &["mixed_1_2", "mixed_2_6, mixed_3_4"]);
    convert(&["--recipe", "mixed_2_6", "--bits", "4"], &["--recipe", "cannot be used with"]);
    convert(&["--override", "lm_head"], &["lm_head", "GLOB=SETTING"]);
    convert(&["--max-shard-size", "5 elephants"], &["5 elephants", "5GiB"]);
    convert(&["-q", "--dequantize"], &["--dequantize", "cannot be used with"]);
    convert(&["--dtype", "int8"], &["int8", "float16, bfloat16, float32"]);
}

#[test]
fn bad_targets_are_refused() {
    for name in ["generate", "chat", "validate", "inspect"] {
        refused(&[name, tiny(), "--exclude", "a[b"], &["--exclude", "a[b"]);
        refused(&[name, tiny(), "--layers", "3-1"], &["--layers", "backwards", "0-3,7"]);
        refused(&[name, tiny(), "--layers", "all"], &["`all`", "0-3,7"]);
    }
}

#[test]
fn bad_prompts_are_refused() {
    refused(&["generate", &demo(), "--prompt", ""], &["prompt is empty"]);
    refused(&["generate", &demo(), "--prompt", " \n"], &["prompt is empty"]);
    refused(&["validate", &demo(), "--prompt", ""], &["prompt is empty"]);
    refused(&["generate", tiny(), "--prompt", "text"], &["tokenizer.json", "--prompt-tokens"]);
    refused(
        &["generate", &demo(), "-p", "a", "--system", "b", "--no-chat-template"],
        &["--system", "cannot be used with"],
    );
    refused(&["generate", tiny(), "--prompt-tokens", ""], &["no token id", "1,5,9"]);
    refused(&["generate", tiny(), "--prompt-tokens", "1,,2"], &["no token id"]);
    refused(&["generate", tiny(), "--prompt-tokens", "1,x"], &["`x`"]);
    refused(&["generate", tiny(), "--prompt-tokens=-1"], &["`-1`"]);
    refused(&["generate", tiny(), "--prompt-tokens", "4294967296"], &["4294967296"]);
    refused(&["generate", tiny(), "--prompt-tokens", "1,1024"], &["1024", "vocabulary"]);
    refused(&["validate", tiny(), "--prompt-tokens", "5000"], &["5000", "vocabulary"]);
    refused(&["generate", "--prompt", "a", "--prompt-tokens", "1"], &["cannot be used with"]);
}

#[test]
fn bad_prompt_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.txt");
    let latin1 = folder.path().join("latin1.txt");
    std::fs::write(&latin1, b"caf\xe9").unwrap();
    let empty = folder.path().join("empty.txt");
    std::fs::write(&empty, "").unwrap();
    for (path, part) in [
        (missing.as_path(), "No such file"),
        (latin1.as_path(), "not UTF-8: byte 3"),
        (empty.as_path(), "prompt is empty"),
        (folder.path(), "cannot read the prompt file"),
    ] {
        refused(&["generate", &demo(), "--prompt-file", path.to_str().unwrap()], &[part]);
    }
}

#[test]
fn a_silent_pipe_is_refused_and_not_waited_for() {
    let mut child = command(&["generate", &demo(), "--max-tokens", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let open = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(open);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    for part in ["standard input", "--prompt TEXT", "--prompt-file -"] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}

#[test]
fn unknown_patterns_are_refused_with_the_known_ones() {
    for option in [["generate", "--patch"], ["validate", "--patterns"], ["inspect", "--patch"]] {
        refused(&[option[0], tiny(), option[1], "moe_mlp,warp"], &["`warp`", "moe_mlp", "auto"]);
    }
    refused(&["validate", tiny(), "--patterns", "off"], &["nothing to validate"]);
}

#[test]
fn unknown_models_are_refused_with_what_was_tried() {
    for name in ["generate", "validate", "inspect"] {
        refused(&[name, "no/such-model"], &["no/such-model", "offline", "local folder"]);
        refused(&[name, "nowhere"], &["nowhere", "no such folder", "owner/name"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    for name in ["generate", "chat", "validate", "inspect"] {
        refused(&[name, empty], &["config.json", "No such file"]);
    }
    let output = command(&["generate"]).env("ZMLX_DEMO_MODEL", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("ZMLX_DEMO_MODEL"), "{}", stderr(&output));
    let endpoint = command(&["inspect", "a/b"]).env("HF_ENDPOINT", "example.org").output().unwrap();
    assert!(stderr(&endpoint).contains("HF_ENDPOINT"), "{}", stderr(&endpoint));
}

#[test]
fn synth_refuses_what_it_cannot_write() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    let synth = |more: &[&str], parts: &[&str]| {
        refused(&[&["synth", "--like", "qwen3-moe-tiny", "--out", out], more].concat(), parts);
    };
    synth(&["--bits", "7"], &["7 bits"]);
    synth(&["--group-size", "48"], &["group size 48"]);
    synth(&["--mode", "mxfp4", "--bits", "8"], &["mxfp4"]);
    synth(&["--layers", "0"], &["layers is 0"]);
    refused(&["synth", "--like", "gpt-2", "--out", out], &["gpt-2", "qwen3-30b-a3b"]);
    refused(&["synth", "--like", "qwen3-moe-tiny"], &["--out"]);
    assert!(!folder.path().join("out").exists());
    refused(&["synth", "--like", "qwen3-moe-tiny", "--out", tiny()], &["new or empty"]);
}

#[test]
fn json_errors_end_the_lines_with_one_that_says_so() {
    for arguments in [
        vec!["generate", "nowhere", "--json"],
        vec!["generate", tiny(), "--prompt-tokens", "99999", "--json"],
        vec!["validate", tiny(), "--patterns", "warp", "--json"],
        vec!["no-such-command", "--json"],
    ] {
        let output = zmlx(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let last = lines(&output).pop().unwrap();
        assert_eq!(last["type"], "error", "{arguments:?}");
        assert!(!last["message"].as_str().unwrap().is_empty());
        assert!(!stderr(&output).is_empty(), "people are told too");
    }
}

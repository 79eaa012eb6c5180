use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{assert_has_keys, lines, stderr, stdout, summary, zmlx};

/// A dense checkpoint and where to convert it to.
fn dense(folder: &Path) -> (String, String) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (from, out) = (path("dense"), path("out"));
    let like = "qwen3-moe-tiny";
    let output = zmlx(&["synth", "--like", like, "--bits", "16", "--out", &from]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    (from, out)
}

#[test]
fn a_dense_checkpoint_is_quantised_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (from, out) = dense(folder.path());
    let output = zmlx(&["convert", &from, "--recipe", "mixed_4_6", "--out", &out, "--json"]);
    let found = summary(&output);
    let keys = ["out", "num_files", "bytes", "resumed_bytes", "num_parameters", "bits_per_weight"];
    assert_has_keys(&found, &keys);
    assert!((4.5..6.5).contains(&found["bits_per_weight"].as_f64().unwrap()), "{found}");
    assert_eq!(lines(&output)[0]["recipe"], "mixed_4_6");
    let config: Value =
        serde_json::from_slice(&fs::read(format!("{out}/config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization"]["lm_head"]["bits"], 6);
    let run = ["generate", &out, "--prompt-tokens", "1,2", "-n", "4", "--json"];
    assert_eq!(summary(&zmlx(&run))["generated_tokens"], 4);
    // what is there is not overwritten
    let again = zmlx(&["convert", &from, "-q", "--out", &out]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("choose a new or empty folder"), "{}", stderr(&again));
}

#[test]
fn the_answer_for_people_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let (from, out) = dense(folder.path());
    let output = zmlx(&["convert", &from, "--dtype", "float16", "-o", &out]);
    let text = stdout(&output);
    assert!(text.ends_with(" in 1 files\n") && text.contains("at 16.000 bits"), "{text}");
    let back = zmlx(&["convert", &out, "-d", "-o", &format!("{out}2")]);
    assert_eq!(back.status.code(), Some(2));
    assert!(stderr(&back).contains("nothing in the checkpoint is quantised"), "{}", stderr(&back));
}

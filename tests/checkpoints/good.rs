//! Checkpoints that load, and forms of one that say the same.

use std::path::Path;

use serde_json::{Value, json};

use super::{Tiny, config, generate, summary};
use crate::support::alone::alone;

fn ids(folder: &Tiny, more: &[&str]) -> Value {
    summary(&generate(folder.path(), more))["token_ids"].clone()
}

#[test]
fn tiny_checkpoint_says_the_same_patched_and_unpatched() {
    let tiny = Tiny::new();
    let patched = summary(&generate(tiny.path(), &["--patch", "auto"]));
    let unpatched = summary(&generate(tiny.path(), &["--patch", "off"]));
    assert_eq!(patched["token_ids"].as_array().unwrap().len(), 8);
    assert_eq!(patched["token_ids"], unpatched["token_ids"]);
    assert_eq!(unpatched["patched_modules"], 0);
    assert_eq!(patched["patched_modules"].as_u64().unwrap() > 0, fused_is_built());
}

fn fused_is_built() -> bool {
    !mlx::build_info().primitives.is_empty()
}

#[test]
fn shards_say_what_one_file_says() {
    let one = Tiny::new();
    let sharded = Tiny::new();
    sharded.shard(3);
    assert_eq!(ids(&one, &[]), ids(&sharded, &[]));
}

#[test]
fn number_of_threads_does_not_change_tokens() {
    let tiny = Tiny::new();
    let one = ids(&tiny, &["--threads", "1"]);
    assert_eq!(one, ids(&tiny, &["--threads", "2"]));
    assert_eq!(one, ids(&tiny, &["--threads", "5"]));
}

#[test]
fn quantization_inferred_from_shapes_says_the_same() {
    // Checkpoints name their quantisation once or per layer; both readings have to agree.
    let tiny = Tiny::new();
    let expected = ids(&tiny, &[]);
    let mut spelled = config();
    for layer in 0..2 {
        let path = format!("model.layers.{layer}.mlp.gate");
        spelled["quantization"][path] = json!({ "group_size": 64, "bits": 4 });
    }
    tiny.write_config(&spelled);
    assert_eq!(expected, ids(&tiny, &[]));
    let mut modeless = config();
    modeless["quantization"] = json!({ "group_size": 64, "bits": 4 });
    modeless["quantization_config"] = modeless["quantization"].clone();
    tiny.write_config(&modeless);
    assert_eq!(expected, ids(&tiny, &[]));
    // As in mlx-lm, what the weights' shapes say wins over a default that contradicts them.
    modeless["quantization"] = json!({ "group_size": 32, "bits": 8 });
    tiny.write_config(&modeless);
    assert_eq!(expected, ids(&tiny, &[]));
}

#[test]
fn unknown_keys_are_told_and_change_nothing_nor_do_spare_files() {
    let tiny = Tiny::new();
    let expected = ids(&tiny, &[]);
    let mut more = config();
    more["transformers_version"] = json!("9.9");
    more["something_new"] = json!({ "a": [1, 2] });
    tiny.write_config(&more);
    std::fs::write(tiny.file("README.md"), "# a card").unwrap();
    more["rope_scaling"] = json!({ "type": "linear", "factor": 2 });
    tiny.write_config(&more);
    std::fs::write(tiny.file("tokenizer.model"), [0u8; 16]).unwrap();
    let output = generate(tiny.path(), &[]);
    assert_eq!(expected, summary(&output)["token_ids"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    for field in ["something_new", "rope_scaling"] {
        assert!(told.contains(&format!("`{field}` is not used by qwen3_moe")), "{told}");
    }
    assert!(!told.contains("transformers_version"), "{told}");
}

alone! {
    fn loading_takes_little_more_memory_than_the_checkpoint() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let bytes = std::fs::metadata(folder.join("model.safetensors")).unwrap().len() as usize;
        mlx::memory::reset_peak().unwrap();
        let before = mlx::memory::active_bytes().unwrap();
        let loaded = zmlx::lm::load(&folder).unwrap();
        let peak = mlx::memory::peak_bytes().unwrap() - before;
        assert!(peak <= bytes * 11 / 10, "{peak} bytes at most for a file of {bytes}");
        assert!(mlx::memory::active_bytes().unwrap() - before >= bytes / 2, "nothing was read");
        drop(loaded);
        assert_eq!(mlx::memory::active_bytes().unwrap(), before);
    }
}

#[test]
fn validate_finds_the_tiny_checkpoint_identical() {
    let tiny = Tiny::new();
    let folder = tiny.path().to_str().unwrap();
    let arguments =
        ["validate", folder, "--prompt-tokens", "1,5,9", "--max-tokens", "12", "--json"];
    let value = summary(&super::zmlx(&arguments));
    assert_eq!(value["identical"], true);
    assert!(value["tokens_compared"].as_u64().unwrap() >= 12, "{value}");
    assert_eq!(value["first_divergence"], Value::Null);
}

//! Damaged and hostile checkpoints: a clear error and exit code 2, never a crash.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Output;

use mlx::{Array, Dtype, ops};
use serde_json::{Value, json};

use super::{Tiny, config, generate, tensors, zmlx};

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{}\n{error}", output.status);
    for sign in ["panicked", "terminate called", "RUST_BACKTRACE", "core dumped"] {
        assert!(!error.contains(sign), "a crash, not an error:\n{error}");
    }
    assert!(error.contains("zmlx: error: "), "no error line:\n{error}");
    for word in words {
        assert!(error.contains(word), "`{word}` is not in:\n{error}");
    }
    // With --json the same comes as an event; nothing else may stand on stdout.
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_ne!(event["type"], "summary", "a summary although it failed");
    }
}

/// The tiny checkpoint after `spoil` has been at it is refused with `words`.
#[track_caller]
fn spoiled(spoil: impl FnOnce(&Tiny), words: &[&str]) {
    let tiny = Tiny::new();
    spoil(&tiny);
    refused(&generate(tiny.path(), &[]), words);
}

#[track_caller]
fn with_config(key: &str, value: Value, words: &[&str]) {
    let mut all = config();
    all[key] = value;
    spoiled(|t| t.write_config(&all), words);
}

#[track_caller]
fn with_tensor(name: &str, change: impl FnOnce(&Array) -> Option<Array>, words: &[&str]) {
    let mut all = tensors();
    let at = all.iter().position(|(n, _)| n == name).unwrap();
    match change(&all[at].1) {
        Some(array) => all[at].1 = array,
        None => drop(all.remove(at)),
    }
    spoiled(|t| t.write_weights("model.safetensors", &all), words);
}

fn truncate(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// A safetensors file of this header and `data` zero bytes.
fn write_raw(path: &Path, header: &[u8], claimed: u64, data: usize) {
    let mut bytes = claimed.to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data, 0);
    fs::write(path, bytes).unwrap();
}

#[test]
fn model_that_is_absent_is_refused() {
    refused(&generate(Path::new("./no/such/folder"), &[]), &["no/such/folder"]);
    refused(&generate(Path::new("/no/such/folder"), &[]), &["/no/such/folder"]);
}

#[test]
fn model_that_is_a_file_is_refused() {
    let tiny = Tiny::new();
    refused(&generate(&tiny.file("model.safetensors"), &[]), &["model.safetensors"]);
    refused(&generate(&tiny.file("config.json"), &[]), &["config.json"]);
}

#[test]
fn empty_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    refused(&generate(folder.path(), &[]), &["config.json"]);
}

#[test]
fn config_that_is_not_json_is_refused() {
    for text in
        ["", "{", "[1, 2]", "null", "{\"model_type\": \"qwen3_moe\"", "\u{feff}{}", "\0\0\0"]
    {
        spoiled(|t| fs::write(t.file("config.json"), text).unwrap(), &["config.json"]);
    }
    spoiled(|t| fs::write(t.file("config.json"), [0xff, 0xfe, 0x80]).unwrap(), &["config.json"]);
    let deep = "[".repeat(200_000);
    spoiled(|t| fs::write(t.file("config.json"), deep).unwrap(), &["config.json"]);
}

#[test]
fn config_with_unknown_model_type_names_it_and_the_known_ones() {
    with_config("model_type", json!("qwen9_moe"), &["qwen9_moe", "qwen3_moe"]);
    with_config("model_type", json!(3), &["model_type"]);
    with_config("model_type", json!("../../qwen3_moe"), &["../../qwen3_moe"]);
}

#[test]
fn config_without_a_needed_field_names_it() {
    for field in ["hidden_size", "num_hidden_layers", "num_experts", "vocab_size", "model_type"] {
        let mut all = config();
        all.as_object_mut().unwrap().remove(field);
        spoiled(|t| t.write_config(&all), &[field]);
    }
}

#[test]
fn config_with_nan_or_infinity_is_refused() {
    for (from, to) in [
        ("\"rms_norm_eps\":1e-6", "\"rms_norm_eps\":NaN"),
        ("\"rope_theta\":10000.0", "\"rope_theta\":Infinity"),
        ("\"rope_theta\":10000.0", "\"rope_theta\":1e999"),
        ("\"hidden_size\":64", "\"hidden_size\":NaN"),
    ] {
        let text = config().to_string();
        assert!(text.contains(from), "{from} is not in {text}");
        let text = text.replace(from, to);
        spoiled(|t| fs::write(t.file("config.json"), text).unwrap(), &["config.json"]);
    }
    with_config("rms_norm_eps", json!({ "__float__": "NaN" }), &["rms_norm_eps"]);
    with_config("rms_norm_eps", json!(-1.0), &["rms_norm_eps"]);
    with_config("rope_theta", json!(0.0), &["rope_theta"]);
}

#[test]
fn config_with_absurd_sizes_names_the_field() {
    for (field, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(64.5)),
        ("hidden_size", json!("64")),
        ("num_hidden_layers", json!(0)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(0)),
        ("num_experts_per_tok", json!(5)),
        ("num_experts_per_tok", json!(0)),
        ("decoder_sparse_step", json!(0)),
        ("vocab_size", json!(0)),
        ("moe_intermediate_size", json!(0)),
    ] {
        with_config(field, value, &[field]);
    }
    // Consistent with itself, but not with the weights, and far beyond any memory.
    for field in ["hidden_size", "vocab_size", "num_experts", "num_hidden_layers"] {
        with_config(field, json!(2_000_000_000), &[]);
        with_config(field, json!(u64::MAX), &[]);
    }
}

#[test]
fn config_with_unusable_quantization_is_refused() {
    for quantization in [
        json!({ "group_size": 0, "bits": 4 }),
        json!({ "group_size": 64, "bits": 7 }),
        json!({ "group_size": 64, "bits": 0 }),
        json!({ "group_size": -64, "bits": 4 }),
        json!({ "group_size": 64, "bits": 4, "mode": "int9" }),
        json!({ "bits": "four" }),
        json!(3),
    ] {
        with_config("quantization", quantization, &["quantization"]);
    }
}

#[test]
fn weights_that_are_missing_are_named() {
    spoiled(|t| fs::remove_file(t.file("model.safetensors")).unwrap(), &["safetensors"]);
    let name = "model.layers.1.mlp.switch_mlp.up_proj.weight";
    with_tensor(name, |_| None, &["model.layers.1.mlp.switch_mlp.up_proj"]);
    let name = "model.layers.0.mlp.switch_mlp.gate_proj.scales";
    with_tensor(name, |_| None, &["model.layers.0.mlp.switch_mlp.gate_proj"]);
    with_tensor("model.norm.weight", |_| None, &["model.norm.weight"]);
    with_tensor("lm_head.biases", |_| None, &["lm_head"]);
}

#[test]
fn weights_of_wrong_shape_are_named() {
    let name = "model.layers.0.mlp.switch_mlp.gate_proj.weight";
    with_tensor(name, |a| ops::slice_axis(a, 0, 0, 3).ok(), &[name]);
    with_tensor(name, |a| ops::flatten(a, 0, 1).ok(), &[name]);
    let name = "model.layers.1.self_attn.q_proj.scales";
    with_tensor(name, |a| ops::slice_axis(a, 0, 0, 32).ok(), &["model.layers.1.self_attn.q_proj"]);
    let name = "model.norm.weight";
    with_tensor(name, |a| ops::slice_axis(a, 0, 0, 8).ok(), &[name]);
    let name = "model.layers.1.self_attn.k_norm.weight";
    with_tensor(name, |a| ops::expand_dims(a, &[0]).ok(), &[name]);
    let name = "model.embed_tokens.weight";
    with_tensor(name, |a| ops::slice_axis(a, 0, 0, 90).ok(), &["model.embed_tokens"]);
}

#[test]
fn weights_of_wrong_dtype_are_named() {
    let name = "model.layers.0.mlp.switch_mlp.gate_proj.weight";
    with_tensor(name, |a| a.astype(Dtype::I64).ok(), &[name]);
    with_tensor(name, |a| a.astype(Dtype::F32).ok(), &[name]);
    let name = "model.layers.0.mlp.switch_mlp.gate_proj.scales";
    with_tensor(name, |a| a.astype(Dtype::U32).ok(), &[name]);
    let name = "model.norm.weight";
    with_tensor(name, |a| a.astype(Dtype::I32).ok(), &[name]);
}

#[test]
fn weights_that_nobody_asked_for_are_named() {
    let mut all = tensors();
    let spare = all[0].1.clone();
    all.push(("model.layers.7.mlp.gate.weight".to_owned(), spare));
    spoiled(|t| t.write_weights("model.safetensors", &all), &["model.layers.7.mlp.gate.weight"]);
}

#[test]
fn truncated_weights_are_refused_at_every_length() {
    let whole = fs::metadata(Tiny::new().file("model.safetensors")).unwrap().len();
    for len in [0, 1, 7, 8, 9, 100, 2000, whole / 2, whole - 1] {
        spoiled(|t| truncate(&t.file("model.safetensors"), len), &["model.safetensors"]);
    }
}

#[test]
fn header_that_lies_is_refused() {
    let path = |t: &Tiny| t.file("model.safetensors");
    let words = &["model.safetensors"];
    for claimed in [u64::MAX, 1 << 63, 1 << 40, 200_000_000, 3] {
        spoiled(|t| write_raw(&path(t), b"{}", claimed, 64), words);
    }
    let tensor = |dtype: &str, shape: Value, offsets: Value| {
        let name = "model.norm.weight";
        json!({ name: { "dtype": dtype, "shape": shape, "data_offsets": offsets } }).to_string()
    };
    for header in [
        tensor("BF16", json!([64]), json!([0, 1_000_000])),
        tensor("BF16", json!([64]), json!([128, 0])),
        tensor("BF16", json!([64]), json!([-1, 127])),
        tensor("BF16", json!([64]), json!([0])),
        tensor("BF16", json!([64, u64::MAX]), json!([0, 128])),
        tensor("BF16", json!([1u64 << 40, 1u64 << 40]), json!([0, 128])),
        tensor("BF16", json!([-64]), json!([0, 128])),
        tensor("Q4", json!([64]), json!([0, 128])),
        tensor("F32", json!([64]), json!([0, 128])),
        "[]".to_owned(),
        "{\"a\":".to_owned(),
        "[".repeat(100_000),
    ] {
        let len = header.len() as u64;
        spoiled(|t| write_raw(&path(t), header.as_bytes(), len, 128), words);
    }
    spoiled(|t| write_raw(&path(t), &[0xff; 40], 40, 0), words);
}

#[test]
fn shards_that_are_missing_or_misplaced_are_named() {
    let shard = "model-00002-of-00003.safetensors";
    spoiled(
        |t| {
            t.shard(3);
            fs::remove_file(t.file(shard)).unwrap();
        },
        &[shard],
    );
    spoiled(
        |t| {
            t.shard(3);
            truncate(&t.file(shard), 20);
        },
        &[shard],
    );
    let edit = |t: &Tiny, change: fn(&mut Value)| {
        t.shard(2);
        let path = t.file("model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut index);
        fs::write(&path, index.to_string()).unwrap();
    };
    let words = &["model.safetensors.index.json"];
    spoiled(
        |t| edit(t, |i| i["weight_map"]["lm_head.weight"] = json!("../model.safetensors")),
        words,
    );
    spoiled(|t| edit(t, |i| i["weight_map"]["lm_head.weight"] = json!("/etc/passwd")), words);
    spoiled(|t| edit(t, |i| i["weight_map"]["lm_head.weight"] = json!(4)), words);
    spoiled(|t| edit(t, |i| i["weight_map"] = json!([])), words);
    spoiled(|t| edit(t, |i| *i = json!({})), words);
    spoiled(
        |t| {
            edit(t, |i| {
                i["weight_map"]["no.such.tensor"] = i["weight_map"]["lm_head.weight"].clone()
            })
        },
        words,
    );
}

#[test]
fn shards_without_index_load_or_name_what_is_missing() {
    spoiled(
        |t| {
            t.shard(3);
            fs::remove_file(t.file("model.safetensors.index.json")).unwrap();
            fs::remove_file(t.file("model-00001-of-00003.safetensors")).unwrap();
        },
        &["model"],
    );
}

#[test]
fn prompt_tokens_beyond_the_vocabulary_are_refused() {
    let tiny = Tiny::new();
    for tokens in ["97", "1,4294967295", "1,99999999999999", "-1", "a", "", "1,,2"] {
        let folder = tiny.path().to_str().unwrap();
        let flag = format!("--prompt-tokens={tokens}");
        let output = zmlx(&["generate", folder, &flag, "--max-tokens", "2", "--no-chat-template"]);
        refused(&output, &[]);
    }
}

#[test]
fn folder_that_cannot_be_read_as_text_is_refused() {
    let tiny = Tiny::new();
    fs::write(tiny.file("tokenizer.json"), "{\"version\": 1").unwrap();
    let folder = tiny.path().to_str().unwrap();
    refused(&zmlx(&["generate", folder, "--prompt", "hello"]), &["tokenizer.json"]);
    fs::remove_file(tiny.file("tokenizer.json")).unwrap();
    refused(&zmlx(&["generate", folder, "--prompt", "hello"]), &["tokenizer"]);
}

#[test]
fn inspect_refuses_what_generate_refuses() {
    let tiny = Tiny::new();
    truncate(&tiny.file("model.safetensors"), 40);
    let folder = tiny.path().to_str().unwrap();
    refused(&zmlx(&["inspect", folder]), &["model.safetensors"]);
    refused(&zmlx(&["validate", folder, "--prompt-tokens", "1"]), &["model.safetensors"]);
}

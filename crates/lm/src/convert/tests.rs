//! Conversions of small checkpoints, and what a killed one leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mlx::quantization::{Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::synth::Draft;

/// Two layers with six experts, names as Hugging Face has them.
fn source() -> TempDir {
    let config = json!({
        "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2,
        "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "num_experts": 6, "num_experts_per_tok": 2,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 64,
        "rms_norm_eps": 1e-6, "vocab_size": 96, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "max_position_embeddings": 1024,
        "norm_topk_prob": true, "eos_token_id": 1, "torch_dtype": "bfloat16",
    });
    let mut draft = Draft::new(config, Dtype::Bf16, 7).unwrap();
    let stacks: Vec<String> =
        draft.weights.keys().filter(|name| name.contains("switch_mlp")).cloned().collect();
    for name in stacks {
        let stack = draft.weights.remove(&name).unwrap();
        let rows = mlx::ops::split(&stack, &[1, 2, 3, 4, 5], 0).unwrap();
        for (expert, row) in rows.iter().enumerate() {
            let name = name.replace("switch_mlp", &format!("experts.{expert}"));
            let row = mlx::ops::contiguous(&mlx::ops::squeeze(row, &[0]).unwrap()).unwrap();
            draft.weights.insert(name, row);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    draft.write_shards(dir.path(), 3).unwrap();
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    fs::write(dir.path().join("notes.md"), "not of the checkpoint").unwrap();
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [1, 5]}"#).unwrap();
    dir
}

fn affine(bits: i32) -> ConvertOptions {
    ConvertOptions { quantize: Some(recipe(Quantization::affine(32, bits))), ..Default::default() }
}

fn recipe(setting: Quantization) -> Recipe {
    let Quantization { group_size, bits, mode } = setting;
    let (bits, group_size) = (Some(bits), Some(group_size));
    Recipe { mode, bits, group_size, mixed: None, overrides: Vec::new() }
}

fn run(from: &Path, out: &Path, options: &ConvertOptions) -> Result<ConvertReport> {
    convert(from, out, options, &mut |_, _| {})
}

/// Every file of a folder.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    fs::read_dir(dir).unwrap().map(read).collect()
}

fn tensors(dir: &Path) -> BTreeMap<String, Array> {
    let names = files(dir).into_keys().filter(|name| name.ends_with(".safetensors"));
    names.flat_map(|name| mlx::io::load_safetensors(&dir.join(name)).unwrap().arrays).collect()
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn experts_are_stacked_and_packed_as_one_launch_packs_them() {
    let (from, out) = (source(), tempfile::tempdir().unwrap());
    let report = run(from.path(), out.path(), &affine(4)).unwrap();
    assert_eq!(report.num_files, 1);
    let (before, after) = (tensors(from.path()), tensors(out.path()));
    for (layer, part) in [(0, "gate_proj"), (1, "down_proj")] {
        let at = format!("model.layers.{layer}.mlp");
        let experts = (0..6).map(|e| &before[&format!("{at}.experts.{e}.{part}.weight")]);
        let stack = mlx::ops::stack(experts, 0).unwrap();
        let packed = QuantizedWeight::quantize(&stack, Quantization::affine(32, 4)).unwrap();
        let biases = packed.biases.unwrap();
        for (name, expected) in
            [("weight", packed.w), ("scales", packed.scales), ("biases", biases)]
        {
            let got = &after[&format!("{at}.switch_mlp.{part}.{name}")];
            assert_eq!(got.shape(), expected.shape());
            assert_eq!(got.to_bytes().unwrap(), expected.to_bytes().unwrap(), "{at} {part} {name}");
        }
    }
    let config = config(out.path());
    assert_eq!(config["quantization"]["bits"], 4);
    assert_eq!(config["quantization"], config["quantization_config"]);
    let router = json!({"group_size": 64, "bits": 8});
    assert_eq!(config["quantization"]["model.layers.1.mlp.gate"], router);
    assert_eq!(config["eos_token_id"], json!([1, 5]));
    let loaded = crate::load(out.path()).unwrap();
    assert!(loaded.notes.is_empty(), "{:?}", loaded.notes);
}

#[test]
fn every_mode_and_type_loads() {
    let from = source();
    let all = Mode::ALL.iter().map(|mode| Some(Quantization::default_of(*mode)));
    for setting in all.chain([None]) {
        for dtype in [Dtype::F32, Dtype::F16] {
            let out = tempfile::tempdir().unwrap();
            let options = ConvertOptions {
                quantize: setting.map(recipe),
                dtype: Some(dtype),
                ..Default::default()
            };
            run(from.path(), out.path(), &options).unwrap();
            let norm = &tensors(out.path())["model.norm.weight"];
            assert_eq!(norm.dtype(), dtype);
            crate::load(out.path()).unwrap();
        }
    }
}

#[test]
fn what_was_packed_is_unpacked_again() {
    let (from, packed, dense) =
        (source(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(from.path(), packed.path(), &affine(8)).unwrap();
    let options = ConvertOptions { dequantize: true, ..Default::default() };
    run(packed.path(), dense.path(), &options).unwrap();
    assert!(config(dense.path()).get("quantization").is_none());
    let (packed, dense) = (tensors(packed.path()), tensors(dense.path()));
    let module = "model.layers.0.mlp.switch_mlp.up_proj";
    let expected = QuantizedWeight {
        w: packed[&format!("{module}.weight")].clone(),
        scales: packed[&format!("{module}.scales")].clone(),
        biases: Some(packed[&format!("{module}.biases")].clone()),
        quantization: Quantization::affine(32, 8),
    };
    let (got, expected) = (&dense[&format!("{module}.weight")], expected.dequantize().unwrap());
    assert_eq!((got.shape(), got.dtype()), (expected.shape(), expected.dtype()));
    assert_eq!(got.to_bytes().unwrap(), expected.to_bytes().unwrap());
    let again = ConvertOptions { dequantize: true, ..Default::default() };
    let message = run(from.path(), &packed_path(&from), &again).unwrap_err().to_string();
    assert!(message.contains("nothing in the checkpoint is quantised"), "{message}");
}

fn packed_path(beside: &TempDir) -> std::path::PathBuf {
    beside.path().join("out")
}

#[test]
fn overrides_win_the_last_one_most_and_have_to_match() {
    let (from, out) = (source(), tempfile::tempdir().unwrap());
    let with = |modules: &str, setting| Override {
        modules: glob::Pattern::new(modules).unwrap(),
        setting,
    };
    let mut options = affine(4);
    let recipe = options.quantize.as_mut().unwrap();
    recipe.overrides = vec![
        with("*.self_attn.*", Some(Quantization::affine(64, 8))),
        with("*.v_proj", None),
        with("lm_head", Some(Quantization::default_of(Mode::Mxfp4))),
    ];
    run(from.path(), out.path(), &options).unwrap();
    let quantization = &config(out.path())["quantization"];
    let of = |module: &str| quantization[format!("model.layers.0.self_attn.{module}")].clone();
    assert_eq!(of("q_proj"), json!({"group_size": 64, "bits": 8, "mode": "affine"}));
    assert_eq!(of("v_proj"), json!(false));
    let tensors = tensors(out.path());
    assert!(!tensors.contains_key("model.layers.0.self_attn.v_proj.scales"));
    assert_eq!(tensors["lm_head.scales"].dtype(), Dtype::U8);
    crate::load(out.path()).unwrap();

    let refused = |overrides: Vec<Override>| {
        let mut options = affine(4);
        options.quantize.as_mut().unwrap().overrides = overrides;
        let out = tempfile::tempdir().unwrap();
        let message = run(from.path(), out.path(), &options).unwrap_err().to_string();
        assert!(files(out.path()).is_empty());
        message
    };
    assert!(refused(vec![with("*.nothing", None)]).contains("no module matches"));
    let wide = Some(Quantization::affine(128, 4));
    assert!(refused(vec![with("*.q_proj", wide)]).contains("64 columns"));
    let odd = Some(Quantization::affine(32, 7));
    assert!(refused(vec![with("*.q_proj", odd)]).contains("7 bits"));
}

#[test]
fn killed_anywhere_it_goes_on_and_ends_with_the_same_bytes() {
    let (from, whole) = (source(), tempfile::tempdir().unwrap());
    let options = ConvertOptions { max_shard_bytes: 40_000, ..affine(4) };
    let report = run(from.path(), whole.path(), &options).unwrap();
    assert!(report.num_files > 3 && report.resumed_bytes == 0);
    for stop_after in [0, report.bytes / 3, report.bytes / 2, report.bytes - 1] {
        let out = tempfile::tempdir().unwrap();
        // what a panic leaves behind is what a kill leaves behind: nothing is tidied up
        let killed = std::panic::catch_unwind(|| {
            convert(from.path(), out.path(), &options, &mut |done, _| {
                assert!(done <= stop_after, "killed on purpose");
            })
        });
        assert!(killed.is_err());
        let held = files(out.path());
        assert!(!held.contains_key("config.json") && !held.contains_key(INDEX));
        for (name, bytes) in &held {
            if name.ends_with(".safetensors") {
                assert_eq!(bytes, &files(whole.path())[name], "half a file looks whole");
            }
        }
        // with other options it is not continued
        let other = run(from.path(), out.path(), &affine(8)).unwrap_err().to_string();
        assert!(other.contains("unfinished conversion with another configuration"), "{other}");
        let again = run(from.path(), out.path(), &options).unwrap();
        assert_eq!(again.resumed_bytes > 0, stop_after > 40_000, "{stop_after}");
        assert!(files(out.path()) == files(whole.path()), "{stop_after}");
    }
}

#[test]
fn file_in_the_making_is_continued_at_the_last_tensor_that_is_on_disk() {
    let (from, whole) = (source(), tempfile::tempdir().unwrap());
    run(from.path(), whole.path(), &affine(4)).unwrap();
    let bytes = files(whole.path())["model.safetensors"].clone();
    let out = tempfile::tempdir().unwrap();
    let killed = std::panic::catch_unwind(|| {
        convert(from.path(), out.path(), &affine(4), &mut |done, _| assert!(done == 0))
    });
    assert!(killed.is_err());
    // as a longer run leaves it: most of the file, of which a part is known to be on disk
    let mut partial = bytes[..bytes.len() * 3 / 4].to_vec();
    let known = bytes.len() / 2;
    partial[known..].fill(0);
    fs::write(out.path().join("model.safetensors.partial"), partial).unwrap();
    let journal = out.path().join(".zmlx-convert.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&journal).unwrap()).unwrap();
    value["bytes"] = json!(known);
    fs::write(&journal, value.to_string()).unwrap();
    let report = run(from.path(), out.path(), &affine(4)).unwrap();
    assert!((1..=known as u64).contains(&report.resumed_bytes), "{}", report.resumed_bytes);
    assert!(files(out.path()) == files(whole.path()));
}

#[test]
fn folders_with_something_in_them_are_left_alone() {
    let (from, out) = (source(), tempfile::tempdir().unwrap());
    fs::write(out.path().join("mine.txt"), "mine").unwrap();
    let message = run(from.path(), out.path(), &affine(4)).unwrap_err().to_string();
    assert!(message.contains("it holds mine.txt; choose a new or empty folder"), "{message}");
    let message = run(from.path(), &out.path().join("mine.txt"), &affine(4)).unwrap_err();
    assert!(message.to_string().contains("it is a file"), "{message}");
    assert_eq!(files(out.path()).len(), 1);
    let done = tempfile::tempdir().unwrap();
    run(from.path(), done.path(), &affine(4)).unwrap();
    let before = files(done.path());
    let message = run(from.path(), done.path(), &affine(4)).unwrap_err().to_string();
    assert!(message.contains("choose a new or empty folder"), "{message}");
    assert!(files(done.path()) == before);
    assert!(before.contains_key("tokenizer.json") && !before.contains_key("notes.md"));
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let from = source();
    let refused = |options: &ConvertOptions| {
        let out = tempfile::tempdir().unwrap();
        let message = run(from.path(), out.path(), options).unwrap_err().to_string();
        assert!(files(out.path()).is_empty());
        message
    };
    assert!(refused(&affine(7)).contains("7 bits"));
    assert!(refused(&ConvertOptions { dequantize: true, ..affine(4) }).contains("choose either"));
    let mut mixed = affine(4);
    let recipe = mixed.quantize.as_mut().unwrap();
    (recipe.mixed, recipe.mode) = (Mixed::from_name("mixed_3_6"), Mode::Mxfp4);
    (recipe.bits, recipe.group_size) = (None, None);
    assert!(refused(&mixed).contains("is affine, not mxfp4"));
}

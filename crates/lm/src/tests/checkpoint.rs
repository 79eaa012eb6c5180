//! Damaged, incomplete and hostile checkpoints; what must load although it looks odd.

use std::fs;
use std::path::Path;

use mlx::{Array, Dtype};
use serde_json::json;

use super::fixture::{EXPERTS, Fixture, q4};
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::models::{ALIASES, MODELS, load};

fn fixture() -> Fixture {
    Fixture::dense(Dtype::Bf16).quantized(q4())
}

fn error(dir: &Path) -> Error {
    match load(dir) {
        Ok(_) => panic!("loaded"),
        Err(error) => error,
    }
}

/// The complaint about a folder whose only weight file has these bytes.
fn complaint(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
    error.to_string()
}

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

#[test]
fn file_cut_anywhere_is_refused() {
    let dir = fixture().write();
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for keep in [0, 7, 8, 100, 2000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..keep]).unwrap();
        let message = error(dir.path()).to_string();
        assert!(message.contains("model.safetensors"), "{keep}: {message}");
        assert!(message.contains("truncated") || message.contains("too few"), "{keep}: {message}");
    }
}

#[test]
fn header_of_absurd_length_is_refused_before_it_is_read() {
    for length in [u64::MAX, 1 << 40, 100_000_001] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend([b'{'; 64]);
        assert!(complaint(&bytes).contains("claims a header of"), "{length}");
    }
}

#[test]
fn header_lies_are_refused() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{a}}},
                 "b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    for (what, header, data) in [
        ("no JSON", "not json at all".to_owned(), 0),
        ("no object", "[1, 2]".to_owned(), 0),
        ("overlap", two("[0,8]", "[4,12]"), 12),
        ("hole", two("[0,8]", "[12,20]"), 20),
        ("backwards", one("F32", "[2]", "[8,0]"), 8),
        ("negative", one("F32", "[2]", "[-8,0]"), 8),
        ("shape too large", one("F32", "[3]", "[0,8]"), 8),
        ("shape overflows", one("F32", "[4294967296,4294967296,4294967296]", "[0,8]"), 8),
        ("unknown dtype", one("F99", "[2]", "[0,8]"), 8),
        ("dtype MLX lacks", one("F64", "[1]", "[0,8]"), 8),
        ("beyond the end", one("F32", "[4]", "[0,16]"), 8),
        ("bytes left over", one("F32", "[2]", "[0,8]"), 9),
        ("dimension beyond i32", one("U8", "[0,4294967296]", "[0,0]"), 0),
        ("deep", format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)), 0),
    ] {
        let message = complaint(&file(&header, data));
        assert!(message.contains("model.safetensors"), "{what}: {message}");
    }
}

#[test]
fn header_with_random_bytes_changed_never_panics() {
    let dir = fixture().write();
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..=next(3) {
            bytes[next(header)] = next(256) as u8;
        }
        fs::write(&path, &bytes).unwrap();
        // names and metadata may change without harm; anything else is an error
        let _ = load(dir.path());
    }
}

#[test]
fn folder_without_weights_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fixture().write_config(dir.path());
    assert!(error(dir.path()).to_string().contains("holds no model*.safetensors"));
}

#[test]
fn folder_without_config_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(error(dir.path()), Error::Io { path, .. } if path.ends_with("config.json")));
}

#[test]
fn model_type_unknown_lists_known_ones() {
    let mut fixture = fixture();
    fixture.config["model_type"] = json!("gpt9");
    let error = error(fixture.write().path());
    assert!(matches!(error, Error::UnknownModel { .. }));
    let message = error.to_string();
    let known = message.strip_prefix("model_type `gpt9` is not supported; known: ").unwrap();
    let known: Vec<&str> = known.split(", ").collect();
    let aliases = ALIASES.iter().map(|(alias, _)| alias);
    assert!(
        MODELS.iter().map(|row| &row.model_type).chain(aliases).all(|name| known.contains(name))
    );
}

#[test]
fn config_out_of_range_names_the_field() {
    for (field, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-64)),
        ("num_attention_heads", json!(0)),
        ("num_hidden_layers", json!(0)),
        ("num_experts", json!(-1)),
        ("num_experts_per_tok", json!(EXPERTS + 1)),
        ("num_experts_per_tok", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(31)),
        ("decoder_sparse_step", json!(0)),
        ("mlp_only_layers", json!([-1])),
        ("mlp_only_layers", json!("all")),
        ("rms_norm_eps", json!(-1e-6)),
        ("rope_theta", json!(0)),
        ("vocab_size", json!(1.5)),
        ("norm_topk_prob", json!("yes")),
        ("tie_word_embeddings", json!(null)),
    ] {
        let mut fixture = fixture();
        fixture.config[field] = value.clone();
        let error = error(fixture.write().path());
        assert!(
            matches!(&error, Error::Config { field: f, path, .. } if f.starts_with(field) && path.ends_with("config.json")),
            "{field} = {value}: {error}"
        );
    }
}

#[test]
fn weight_missing_is_named() {
    let mut fixture = fixture();
    let name = "model.layers.1.self_attn.k_proj.scales";
    fixture.weights.remove(name);
    // without scales the module counts as dense, and its packed weight then has the wrong shape
    assert!(matches!(error(fixture.write().path()), Error::WeightShape { .. }));
    let mut fixture = Fixture::dense(Dtype::F32);
    let name = "model.layers.1.self_attn.k_proj.weight";
    fixture.weights.remove(name);
    let error = error(fixture.write().path());
    assert!(matches!(&error, Error::MissingWeight { name: n, .. } if n == name), "{error}");
}

#[test]
fn weight_of_wrong_shape_shows_both() {
    let mut fixture = Fixture::dense(Dtype::F32);
    let norm = mlx::ops::ones(&[65], Dtype::F32).unwrap();
    fixture.weights.insert("model.norm.weight".into(), norm);
    let error = error(fixture.write().path());
    assert!(matches!(error, Error::WeightShape { .. }));
    let message = error.to_string();
    assert!(message.contains("[65]") && message.contains("[64]"), "{message}");
    assert!(message.contains("model.safetensors"), "{message}");
}

#[test]
fn weight_of_wrong_dtype_is_refused() {
    for (name, module_is_packed) in [
        ("model.norm.weight", false),
        ("model.layers.0.mlp.gate.weight", true),
        ("model.layers.0.mlp.gate.biases", true),
    ] {
        let mut fixture = if module_is_packed { fixture() } else { Fixture::dense(Dtype::Bf16) };
        let wrong = fixture.weights[name].astype(Dtype::I32).unwrap();
        fixture.weights.insert(name.into(), wrong);
        let error = error(fixture.write().path());
        assert!(matches!(&error, Error::WeightDtype { name: n, .. } if n == name), "{error}");
    }
}

#[test]
fn weight_packed_in_no_known_way_is_refused() {
    let mut fixture = fixture();
    let name = "model.layers.0.mlp.gate.scales";
    let narrow = mlx::ops::ones(&[EXPERTS, 3], Dtype::Bf16).unwrap();
    fixture.weights.insert(name.into(), narrow);
    let message = error(fixture.write().path()).to_string();
    assert!(message.contains("no quantization that MLX has"), "{message}");
}

#[test]
fn weight_nobody_asked_for_is_refused() {
    let mut fixture = fixture();
    let extra = Array::from_slice(&[1.0_f32], &[1]).unwrap();
    fixture.weights.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), extra);
    let error = error(fixture.write().path());
    assert!(matches!(&error, Error::UnexpectedWeight { names, .. } if names.len() == 1));
    assert!(error.to_string().contains("inv_freq"));
}

#[test]
fn weight_of_a_head_beside_tied_embeddings_is_ignored() {
    let mut fixture = Fixture::with(Dtype::F32, json!({"tie_word_embeddings": true}));
    let head = fixture.weights["model.embed_tokens.weight"].clone();
    fixture.weights.insert("lm_head.weight".into(), head);
    fixture.load();
}

#[test]
fn shards_incomplete_are_refused() {
    let first = "model-00001-of-00002.safetensors";
    let index = "model.safetensors.index.json";
    let fixture = fixture();

    let dir = fixture.write_shards();
    fs::remove_file(dir.path().join(first)).unwrap();
    let message = error(dir.path()).to_string();
    assert!(message.contains(first) && message.contains("does not exist"), "{message}");

    let rewrite = |change: &dyn Fn(&mut serde_json::Value)| {
        let dir = fixture.write_shards();
        let path = dir.path().join(index);
        let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(&path, value.to_string()).unwrap();
        error(dir.path()).to_string()
    };
    let norm = "model.norm.weight";
    let message = rewrite(&|v| v["weight_map"]["model.other.weight"] = json!(first));
    assert!(message.contains("does not hold `model.other.weight`"), "{message}");
    assert!(message.contains("no model*.safetensors holds"), "{message}");
    for outside in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""] {
        let message = rewrite(&|v| v["weight_map"][norm] = json!(outside));
        assert!(message.contains("expected a file name"), "{outside}: {message}");
    }
    assert!(rewrite(&|v| v["weight_map"] = json!({})).contains("is empty"));
    assert!(rewrite(&|v| *v = json!([])).contains("`weight_map` is missing"));

    let dir = fixture.write_shards();
    fs::write(dir.path().join(index), "{").unwrap();
    assert!(matches!(error(dir.path()), Error::Json { .. }));
}

#[test]
fn index_out_of_date_gives_way_to_the_files_with_a_warning() {
    let fixture = fixture();
    let index = "model.safetensors.index.json";
    let stale = json!({"weight_map": {
        "model.norm.weight": "model-00001-of-00009.safetensors",
        "lm_head.weight": "model.safetensors",
    }});
    let misplaced =
        json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
    for (dir, content, part) in [
        (fixture.write(), stale, "model-00001-of-00009.safetensors does not exist"),
        (fixture.write_shards(), misplaced, "does not hold `model.norm.weight`"),
    ] {
        let tensors = Checkpoint::open(dir.path()).unwrap().tensors().len();
        fs::write(dir.path().join(index), content.to_string()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.tensors().len(), tensors, "every tensor of every file");
        let [warning] = checkpoint.warnings() else { panic!("{:?}", checkpoint.warnings()) };
        assert!(warning.contains(part) && warning.contains(index), "{warning}");
        load(dir.path()).unwrap();
    }
}

#[test]
fn tensor_in_two_files_is_refused() {
    let fixture = fixture();
    let dir = fixture.write();
    fixture.write_part(dir.path(), "model-extra.safetensors", |name| name == "model.norm.weight");
    let message = error(dir.path()).to_string();
    assert!(message.contains("`model.norm.weight` is also in"), "{message}");
}

#[test]
fn experts_one_by_one_load_and_a_hostile_count_of_them_is_refused_at_once() {
    let mut fixture = Fixture::dense(Dtype::F32);
    let stacked: Vec<String> =
        (fixture.weights.keys()).filter(|name| name.contains("switch_mlp")).cloned().collect();
    assert_eq!(stacked.len(), 6);
    for name in stacked {
        let stack = fixture.weights.remove(&name).unwrap();
        for e in 0..EXPERTS {
            let one = mlx::ops::slice_axis(&stack, 0, e, e + 1).unwrap();
            let one = mlx::ops::squeeze(&one, &[0]).unwrap();
            let name = name.replace("switch_mlp", &format!("experts.{e}"));
            fixture.weights.insert(name, one);
        }
    }
    fixture.load();
    let start = std::time::Instant::now();
    fixture.config["num_experts"] = json!(2_000_000_000);
    let error = error(fixture.write().path());
    let name = format!("model.layers.0.mlp.experts.{EXPERTS}.down_proj.weight");
    assert!(matches!(&error, Error::MissingWeight { name: n, .. } if *n == name), "{error}");
    assert!(start.elapsed().as_secs() < 5);
}

#[test]
fn config_with_any_value_anywhere_never_panics() {
    let values = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(2),
        json!(7),
        json!(i32::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(0.5),
        json!(-0.0),
        json!(1e300),
        json!(1e-320),
        json!(""),
        json!("yarn"),
        json!("\u{0}é{l}"),
        json!([]),
        json!([[]]),
        json!([0, 1, 2]),
        json!([u64::MAX]),
        json!({}),
        json!({"a": {"b": []}}),
        json!({"type": "yarn", "factor": 0}),
        json!({"bits": 4, "group_size": 64}),
        json!({"bits": i64::MAX, "group_size": i64::MIN}),
    ];
    let mut fixture = fixture();
    let dir = fixture.write();
    let good = fixture.config.clone();
    let mut keys: Vec<String> = good.as_object().unwrap().keys().cloned().collect();
    keys.extend(
        ["text_config", "rope_scaling", "quantization_config", "unheard_of"].map(String::from),
    );
    let mut refused = 0;
    for key in &keys {
        for value in &values {
            fixture.config = good.clone();
            fixture.config[key] = value.clone();
            fixture.write_config(dir.path());
            if let Err(error) = load(dir.path()) {
                refused += 1;
                assert!(error.to_string().len() < 1000, "{key} = {value}: {error}");
            }
        }
    }
    assert!(refused > keys.len() * values.len() / 3, "{refused}");
}

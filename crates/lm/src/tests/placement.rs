//! Parts of a model: ranges of layers, and shares of matrices.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mlx::quantization::{Mode, Quantization};
use mlx::{Array, Dtype, ops};
use serde_json::json;

use super::fixture::{Fixture, q4};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::layers::{Embedding, Linear, SwitchLinear, Weight};
use crate::models::{load_placed, load_with, open};
use crate::patch::sites_of;
use crate::placement::{Placement, Split};
use crate::step::Step;
use crate::weights::{Scope, WeightRecord, Weights};

fn weights(dir: &Path, placement: Placement) -> Weights {
    let config = ModelConfig::load(dir).unwrap();
    Weights::new(Checkpoint::open(dir).unwrap(), config.quantization, placement).unwrap()
}

fn rank(rank: usize, size: usize) -> Placement {
    Placement { layers: None, rank, size }
}

fn parts(weight: &Weight) -> Vec<Array> {
    match weight {
        Weight::Dense(w) => vec![w.clone()],
        Weight::Quantized(q) => [Some(&q.w), Some(&q.scales), q.biases.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
    }
}

/// The shares of all ranks, joined along `axis`, are the whole.
#[track_caller]
fn shares_make_the_whole(
    dir: &Path,
    size: usize,
    axis: i32,
    load: impl Fn(&Scope<'_>) -> Weight,
    what: &str,
) {
    let taken = |placement| parts(&load(&weights(dir, placement).root()));
    let whole = taken(Placement::default());
    let shares: Vec<_> = (0..size).map(|r| taken(rank(r, size))).collect();
    for (i, whole) in whole.iter().enumerate() {
        let joined = ops::concatenate(shares.iter().map(|share| &share[i]), axis).unwrap();
        assert_eq!(joined.shape(), whole.shape(), "{what}, part {i}");
        assert_eq!(joined.to_bytes().unwrap(), whole.to_bytes().unwrap(), "{what}, part {i}");
        assert_ne!(shares[0][i].to_bytes().unwrap(), whole.to_bytes().unwrap());
    }
}

#[test]
fn shares_of_all_ranks_make_the_whole_dense_and_quantized() {
    let changes = json!({"hidden_size": 256, "moe_intermediate_size": 128});
    let formats = [
        None,
        Some(q4()),
        Some(Quantization::affine(64, 3)),
        Some(Quantization::default_of(Mode::Mxfp4)),
        Some(Quantization::default_of(Mode::Nvfp4)),
    ];
    for format in formats {
        let fixture = Fixture::with(Dtype::Bf16, changes.clone());
        let fixture = match format {
            None => fixture,
            Some(quantization) => fixture.quantized(quantization),
        };
        let dir = fixture.write();
        let dir = dir.path();
        let linear = |scope: &Scope<'_>, split| {
            let scope = scope.pp("model.layers.1.self_attn.q_proj").split(split);
            Linear::load(&scope, 256, 128).unwrap().weight().clone()
        };
        let experts = |scope: &Scope<'_>, split| {
            let scope = scope.pp("model.layers.0.mlp.switch_mlp.up_proj").split(split);
            SwitchLinear::load(&scope, 6, 256, 128).unwrap().weight().clone()
        };
        let table = |scope: &Scope<'_>, split| {
            let scope = scope.pp("model.embed_tokens").split(split);
            Embedding::load(&scope, 96, 256).unwrap().weight().clone()
        };
        for size in [2, 4] {
            for (split, axis) in [(Split::Outputs, -2), (Split::Inputs, -1)] {
                let what = format!("{format:?}, {size} ranks, {split:?}");
                shares_make_the_whole(dir, size, axis, |s| linear(s, split), &what);
                shares_make_the_whole(dir, size, axis, |s| experts(s, split), &what);
                shares_make_the_whole(dir, size, axis, |s| table(s, split), &what);
            }
            if size == 2 {
                let what = format!("{format:?}, {size} ranks, a stack");
                shares_make_the_whole(dir, 2, -3, |s| experts(s, Split::Stack), &what);
            }
        }
    }
}

#[test]
fn bias_is_shared_with_the_outputs_and_kept_with_the_inputs() {
    let mut fixture = Fixture::dense(Dtype::F32);
    let bias = ops::arange(0.0, 8.0, 1.0, Dtype::F32).unwrap();
    fixture.weights.insert("extra.bias".into(), bias);
    let dir = fixture.write();
    let bias = |split| {
        let weights = weights(dir.path(), rank(1, 2));
        let scope = weights.root().pp("extra").split(split);
        scope.take_float("bias", &[8]).unwrap().to_vec::<f32>().unwrap()
    };
    assert_eq!(bias(Split::Outputs), [4.0, 5.0, 6.0, 7.0]);
    assert_eq!(bias(Split::Inputs).len(), 8);
}

#[test]
fn sizes_that_ranks_cannot_share_are_refused_by_name() {
    let dir = Fixture::dense(Dtype::Bf16).quantized(q4()).write();
    let message = |size, name: &str, split| {
        let weights = weights(dir.path(), rank(0, size));
        let scope = weights.root().pp(name).split(split);
        let error = Linear::load(&scope, 64, 128).expect_err("refused");
        assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
        error.to_string()
    };
    let name = "model.layers.0.self_attn.q_proj";
    let outputs = message(3, name, Split::Outputs);
    assert!(outputs.contains(name) && outputs.contains("128 rows, which 3 ranks"), "{outputs}");
    // 64 columns would divide by 4, their 2 groups do not
    let inputs = message(4, name, Split::Inputs);
    assert!(inputs.contains("2 groups of 32 inputs, which 4 ranks"), "{inputs}");
    // whole models: two key heads
    let error = load_placed(dir.path(), rank(0, 4)).err().expect("refused").to_string();
    assert!(error.contains("2 key and value heads, which 4 ranks cannot share"), "{error}");
}

fn records(dir: &Path, placement: Placement) -> BTreeMap<String, WeightRecord> {
    let (_, taken) = open(dir, placement).unwrap();
    let records = taken.records.into_iter();
    records.map(|record| (format!("{}.{}", record.module, record.name), record)).collect()
}

fn layers(range: std::ops::Range<usize>) -> Placement {
    Placement { layers: Some(range), ..Placement::default() }
}

#[test]
fn ranges_of_layers_partition_the_weights() {
    for tied in [false, true] {
        let changes = json!({"num_hidden_layers": 5, "tie_word_embeddings": tied});
        let dir = Fixture::with(Dtype::Bf16, changes).quantized(q4()).write();
        let whole = records(dir.path(), Placement::default());
        let stages = [0..2, 2..3, 3..5].map(|range| records(dir.path(), layers(range)));
        let mut seen: Vec<_> = stages.iter().flat_map(BTreeMap::keys).cloned().collect();
        if tied {
            // both ends of the pipeline have it
            let at = seen.iter().position(|name| name == "model.embed_tokens.weight").unwrap();
            seen.remove(at);
        }
        seen.sort();
        assert_eq!(seen, whole.keys().cloned().collect::<Vec<_>>());
        assert!(stages[1].keys().all(|name| name.starts_with("model.layers.2.")));
    }
}

#[test]
fn layers_outside_the_range_are_neither_required_nor_read() {
    let fixture = Fixture::with(Dtype::Bf16, json!({"num_hidden_layers": 3})).quantized(q4());
    let dir = tempfile::tempdir().unwrap();
    // the index names both files
    fixture.write_config(dir.path());
    let file_of = |name: &str| {
        let first = name.contains("layers.0.") || name.contains("layers.1.");
        format!("model-0000{}-of-00002.safetensors", if first { 1 } else { 2 })
    };
    let map: BTreeMap<_, _> = fixture.weights.keys().map(|name| (name, file_of(name))).collect();
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    for file in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        fixture.write_part(dir.path(), file, |name| file_of(name) == file);
    }
    let shard = dir.path().join("model-00001-of-00002.safetensors");
    let loaded = load_placed(dir.path(), layers(2..3)).unwrap();
    assert_eq!(loaded.model.make_cache().layers.len(), 1);
    fs::remove_file(&shard).unwrap();
    let loaded = load_placed(dir.path(), layers(2..3)).unwrap();
    assert_eq!(loaded.model.make_cache().layers.len(), 1);
    assert!(load_placed(dir.path(), layers(1..3)).is_err());
}

#[test]
fn sharded_model_holds_its_part_and_no_more() {
    let dir = Fixture::dense(Dtype::Bf16).quantized(q4()).write();
    let bytes = |placement| -> u64 {
        records(dir.path(), placement).values().map(|record| record.bytes).sum()
    };
    let (whole, first, second) =
        (bytes(Placement::default()), bytes(rank(0, 2)), bytes(rank(1, 2)));
    assert_eq!(first, second);
    assert!(first < whole * 2 / 3, "{first} of {whole}");
    let sharded =
        &records(dir.path(), rank(1, 2))["model.layers.0.mlp.switch_mlp.down_proj.weight"];
    assert_eq!(sharded.shape, [6, 64, 32]);
}

#[test]
fn placement_that_contradicts_itself_is_refused() {
    let dir = Fixture::dense(Dtype::Bf16).write();
    for placement in [rank(2, 2), rank(0, 0), layers(1..1), layers(0..3), layers(7..9)] {
        let error = load_placed(dir.path(), placement.clone()).err().expect("refused");
        assert!(matches!(error, Error::Argument { .. }), "{placement:?}: {error}");
    }
}

#[test]
fn load_tells_how_far_it_is() {
    let dir = Fixture::dense(Dtype::Bf16).write();
    let mut seen = Vec::new();
    let on_progress = &mut |bytes, total| seen.push((bytes, total));
    let loaded = load_with(dir.path(), Placement::default(), on_progress).unwrap();
    let last = *seen.last().unwrap();
    assert_eq!(last.0, last.1);
    assert!(seen.len() > 10 && seen.iter().all(|(_, total)| *total == last.1), "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "{seen:?}");
    drop(loaded);
}

#[test]
fn part_of_a_model_refuses_to_run() {
    let dir = Fixture::dense(Dtype::F32).write();
    for placement in [rank(0, 2), layers(0..1)] {
        let loaded = load_placed(dir.path(), placement).unwrap();
        let tokens = mlx::Array::from_slice(&[1_u32], &[1, 1]).unwrap();
        let mut cache = loaded.model.make_cache();
        let error = loaded.model.forward(&Step::new(&tokens), &mut [&mut cache]).unwrap_err();
        assert!(error.to_string().contains("cannot run by itself"), "{error}");
    }
}

#[test]
fn sites_of_a_stage_are_named_as_in_the_whole_model() {
    let dir = Fixture::dense(Dtype::F32).write();
    let mut loaded = load_placed(dir.path(), layers(1..2)).unwrap();
    let sites = sites_of(loaded.model.as_mut());
    assert!(sites.iter().any(|site| site.module.as_str() == "model.layers.1.mlp"));
    assert!(sites.iter().all(|site| site.module.layer_index() != Some(0)));
}

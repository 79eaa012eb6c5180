//! What a model computes must not depend on how its tokens, weights or caches are cut up.

use mlx::{Array, Dtype, ops};
use serde_json::json;

use super::fixture::{EXPERTS, Fixture, VOCAB, q4};
use crate::cache::{Cache, GROW_STEP, KvCache, LayerCache, Position};
use crate::layers::Rope;
use crate::models::{LoadedModel, Model, load};
use crate::step::Step;

fn logits(model: &dyn Model, rows: &[&[u32]], cache: &mut Cache) -> Vec<Vec<f32>> {
    let shape = [rows.len() as i32, rows[0].len() as i32];
    let tokens = Array::from_slice(&rows.concat(), &shape).unwrap();
    let step = Step::new(&tokens).all_logits();
    let out = model.forward(&step, &mut [cache]).unwrap().astype(Dtype::F32).unwrap();
    assert_eq!(out.shape(), [shape[0], shape[1], VOCAB as i32]);
    let flat = out.to_vec::<f32>().unwrap();
    assert!(flat.iter().all(|x| x.is_finite()));
    flat.chunks(VOCAB as usize).map(<[f32]>::to_vec).collect()
}

fn fresh(loaded: &LoadedModel, rows: &[&[u32]]) -> Vec<Vec<f32>> {
    let model = loaded.model.as_ref();
    logits(model, rows, &mut model.make_cache())
}

/// Largest difference by the largest value. MLX's matrix products and attention take other routes for one row
/// than for many, so short types differ in their last bits.
fn assert_close(got: &[Vec<f32>], expected: &[Vec<f32>], part: f32) {
    assert_eq!(got.len(), expected.len());
    let pairs = || got.iter().flatten().zip(expected.iter().flatten());
    let worst = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = pairs().map(|(_, b)| b.abs()).fold(0.0, f32::max);
    assert!(worst <= part * largest, "{worst} of {largest}");
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + 5) % VOCAB).collect()
}

#[test]
fn prefill_equals_stepwise_decode_across_cache_growth() {
    // enough tokens for sorted experts (64 entries) and a second cache step
    let prompt = tokens(GROW_STEP as usize + 20);
    for (dtype, part) in [(Dtype::F32, 1e-5), (Dtype::Bf16, 0.04)] {
        let loaded = Fixture::dense(dtype).quantized(q4()).load();
        let model = loaded.model.as_ref();
        let at_once = fresh(&loaded, &[&prompt]);
        let mut cache = model.make_cache();
        let stepwise: Vec<_> =
            prompt.iter().flat_map(|t| logits(model, &[&[*t]], &mut cache)).collect();
        assert_eq!(cache.len() as usize, prompt.len());
        let LayerCache::Kv(first) = &cache.layers[0] else { panic!("not a growing cache") };
        assert_eq!(first.capacity(), 2 * GROW_STEP);
        assert_close(&stepwise, &at_once, part);
    }
}

#[test]
fn batch_row_equals_single_row() {
    let (a, b) = (tokens(40), tokens(80)[40..].to_vec());
    let loaded = Fixture::dense(Dtype::F32).quantized(q4()).load();
    let both = fresh(&loaded, &[&a, &b]);
    assert_close(&both[..40], &fresh(&loaded, &[&a]), 1e-5);
    assert_close(&both[40..], &fresh(&loaded, &[&b]), 1e-5);
}

#[test]
fn token_depends_on_none_after_it() {
    let loaded = Fixture::dense(Dtype::F32).load();
    let (mut a, mut b) = (tokens(30), tokens(30));
    a[29] = 0;
    b[29] = 1;
    let (a, b) = (fresh(&loaded, &[&a]), fresh(&loaded, &[&b]));
    assert_eq!(a[..29], b[..29]);
    assert_ne!(a[29], b[29]);
}

#[test]
fn shards_equal_one_file() {
    let fixture = Fixture::dense(Dtype::Bf16).quantized(q4());
    let sharded = load(fixture.write_shards().path()).unwrap();
    assert_eq!(sharded.checkpoint.files().len(), 2);
    let prompt = tokens(9);
    assert_eq!(fresh(&sharded, &[&prompt]), fresh(&fixture.load(), &[&prompt]));
}

#[test]
fn experts_stored_one_by_one_equal_stacked_ones() {
    let stacked = Fixture::dense(Dtype::F32);
    let mut single = Fixture::dense(Dtype::F32);
    for (name, stack) in &stacked.weights {
        let Some((prefix, rest)) = name.split_once("switch_mlp.") else { continue };
        single.weights.remove(name);
        for e in 0..EXPERTS {
            let one = ops::squeeze(&ops::slice_axis(stack, 0, e, e + 1).unwrap(), &[0]).unwrap();
            single.weights.insert(format!("{prefix}experts.{e}.{rest}"), one);
        }
    }
    let prompt = tokens(9);
    assert_eq!(fresh(&single.load(), &[&prompt]), fresh(&stacked.load(), &[&prompt]));
}

#[test]
fn dense_layers_follow_config() {
    for (changes, moe_layers) in [
        (json!({"mlp_only_layers": [1]}), 1),
        (json!({"decoder_sparse_step": 2}), 1),
        (json!({"mlp_only_layers": [0, 1]}), 0),
        (json!({}), 2),
    ] {
        let loaded = Fixture::with(Dtype::F32, changes).load();
        let row = crate::models::find(&loaded.config.model_type).unwrap();
        assert_eq!((row.describe)(&loaded.config).unwrap().facts["num_moe_layers"], moe_layers);
        fresh(&loaded, &[&tokens(5)]);
    }
}

#[test]
fn head_dim_defaults_to_an_equal_share() {
    let mut fixture = Fixture::with(Dtype::F32, json!({"head_dim": 16}));
    let expected = fresh(&fixture.load(), &[&tokens(5)]);
    fixture.config.as_object_mut().unwrap().remove("head_dim");
    assert_eq!(fresh(&fixture.load(), &[&tokens(5)]), expected);
}

#[test]
fn cache_returns_what_was_put_in() {
    let mut cache = KvCache::default();
    let mut held = Vec::new();
    let mut start = 0.0;
    for added in [1, 300, 1, 211, 5, 600] {
        let shape = [1, 2, added, 4];
        let count = (2 * added * 4) as f64;
        let rows = ops::arange(start, start + count, 1.0, Dtype::F32).unwrap();
        let rows = rows.reshape(&shape).unwrap();
        start += count;
        let values = ops::negative(&rows).unwrap();
        held.push(rows.clone());
        let (k, v) = cache.update(&rows, &values).unwrap();
        let expected = ops::concatenate(&held, 2).unwrap();
        assert!(ops::array_equal(&k, &expected, false).unwrap(), "{added}");
        assert!(ops::array_equal(&v, &ops::negative(&expected).unwrap(), false).unwrap());
        assert_eq!(cache.len(), expected.dim(2));
        assert!(cache.capacity() >= cache.len());
    }
}

#[test]
fn position_in_an_array_turns_as_a_fixed_one() {
    let rope = Rope::new(8, 10_000.0);
    let x = ops::arange(0.0, 96.0, 1.0, Dtype::F32).unwrap().reshape(&[1, 3, 4, 8]).unwrap();
    let fixed = rope.forward(&x, &Position::Static(300)).unwrap();
    let dynamic = Position::Dynamic(Array::scalar(300_i32).unwrap());
    assert!(ops::array_equal(&rope.forward(&x, &dynamic).unwrap(), &fixed, false).unwrap());
}

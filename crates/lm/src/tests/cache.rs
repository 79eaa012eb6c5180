//! Kinds of caches: what they return, what they can forget, and that they say what mlx-lm's say.

use std::ops::ControlFlow;
use std::path::Path;

use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, Dtype, fast, ops, random};

use super::fixture::{Fixture, PROMPT, q4};
use crate::cache::{
    AttentionMask, Cache, CacheOptions, KvCache, KvQuantization, LayerCache, QuantizedKvCache,
    StateCache, WindowCache, quantized_attention,
};
use crate::error::Error;
use crate::generate::{GenerateOptions, generate};
use crate::models::{LoadedModel, Model, load};
use crate::patch::{PatchOptions, patch};
use crate::step::Step;

/// Tokens `from..from + n`, each a single number in a head of its own kind.
fn numbered(from: i32, n: i32) -> (Array, Array) {
    let keys = ops::arange(f64::from(from), f64::from(from + n), 1.0, Dtype::F32).unwrap();
    let keys = keys.reshape(&[1, 1, n, 1]).unwrap();
    let values = ops::negative(&keys).unwrap();
    (keys, values)
}

fn mask_text(mask: &AttentionMask) -> String {
    match mask {
        AttentionMask::None => "n".to_owned(),
        AttentionMask::Causal => "c".to_owned(),
        AttentionMask::Array(mask) | AttentionMask::Window { array: mask, .. } => {
            let seen = mask.to_vec::<bool>().unwrap();
            seen.into_iter().map(|seen| if seen { '1' } else { '0' }).collect()
        }
    }
}

/// What `RotatingKVCache` of mlx-lm 0.32.0 returned for the same calls: tokens in the ring's order, and masks.
#[test]
fn window_is_written_in_the_order_of_mlx_lm() {
    let four = "11111111000011111111000011111111000011111111";
    // each of 12 queries sees 8 of the 19 keys, the next one always one further
    let many: String = (0..12_usize)
        .map(|row| "0".repeat(row) + &"1".repeat(8) + &"0".repeat(11_usize.saturating_sub(row)))
        .collect();
    let keeping: &[(i32, &[i32], &str)] = &[
        (3, &[0, 1, 2], "c"),
        (1, &[0, 1, 2, 3], "n"),
        (1, &[0, 1, 2, 3, 4], "n"),
        (1, &[0, 1, 2, 3, 4, 5], "n"),
        (1, &[0, 1, 2, 3, 4, 5, 6], "n"),
        (1, &[0, 1, 2, 3, 4, 5, 6, 7], "n"),
        (1, &[0, 1, 8, 3, 4, 5, 6, 7], "n"),
        (1, &[0, 1, 8, 9, 4, 5, 6, 7], "n"),
        (4, &[0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13], four),
        (1, &[0, 1, 14, 9, 10, 11, 12, 13], "n"),
        (1, &[0, 1, 14, 15, 10, 11, 12, 13], "n"),
        (12, &[0, 1, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27], &many),
        (1, &[0, 1, 28, 23, 24, 25, 26, 27], "n"),
        (1, &[0, 1, 28, 29, 24, 25, 26, 27], "n"),
    ];
    let narrow: &[(i32, &[i32], &str)] = &[
        (2, &[0, 1], "c"),
        (1, &[0, 1, 2], "n"),
        (1, &[0, 1, 2, 3], "0111"),
        (1, &[0, 1, 2, 3, 4], "00111"),
        (1, &[0, 1, 2, 3, 4, 5], "000111"),
        (1, &[6, 1, 2, 3, 4, 5], "100011"),
        (1, &[6, 7, 2, 3, 4, 5], "110001"),
        (3, &[3, 4, 5, 6, 7, 8, 9, 10], "000111000000111000000111"),
        (1, &[11, 6, 7, 8, 9, 10], "100011"),
        (1, &[11, 12, 7, 8, 9, 10], "110001"),
    ];
    for (max_size, keep, window, calls) in [(8, 2, None, keeping), (6, 0, Some(3), narrow)] {
        let mut cache = LayerCache::Window(WindowCache::new(max_size, keep));
        for (added, expected, mask) in calls {
            let (keys, values) = numbered(cache.len(), *added);
            assert_eq!(mask_text(&cache.mask(*added, window).unwrap()), *mask, "{expected:?}");
            let LayerCache::Window(ring) = &mut cache else { panic!("not a window") };
            let (k, v) = ring.update(&keys, &values).unwrap();
            let expected: Vec<f32> = expected.iter().map(|token| *token as f32).collect();
            assert_eq!(k.to_vec::<f32>().unwrap(), expected);
            assert!(ops::array_equal(&v, &ops::negative(&k).unwrap(), false).unwrap());
        }
    }
}

#[test]
fn window_takes_tokens_back_until_it_overwrites() {
    let mut ring = WindowCache::new(6, 1);
    let put = |ring: &mut WindowCache, from, n| {
        let (keys, values) = numbered(from, n);
        ring.update(&keys, &values).unwrap().0.to_vec::<f32>().unwrap()
    };
    put(&mut ring, 0, 3);
    put(&mut ring, 3, 1);
    assert_eq!(ring.trim(2), 2);
    assert_eq!(ring.len(), 2);
    assert_eq!(put(&mut ring, 20, 1), [0.0, 1.0, 20.0]);
    assert_eq!(ring.trim(1), 1);
    assert_eq!(put(&mut ring, 30, 2), [0.0, 1.0, 30.0, 31.0]);
    put(&mut ring, 32, 1);
    put(&mut ring, 33, 1);
    put(&mut ring, 34, 1);
    assert!(!ring.can_trim());
    assert_eq!(ring.trim(1), 0);
}

fn random_kv(seed: u64, shape: &[i32]) -> Array {
    random::normal(shape, Dtype::F32, 0.0, 1.0, Some(&random::key(seed).unwrap())).unwrap()
}

#[test]
fn quantized_cache_holds_what_quantizing_all_of_it_gives() {
    let packing = KvQuantization { bits: 4, group_size: 32, start: 0 };
    let mut cache = QuantizedKvCache::new(packing);
    let mut grown = KvCache::default();
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for (i, added) in [3, 1, 300, 1, 230, 40].into_iter().enumerate() {
        let k = random_kv(i as u64, &[2, 3, added, 64]);
        let v = random_kv(100 + i as u64, &[2, 3, added, 32]);
        let got = cache.update(&k, &v).unwrap();
        let dense = grown.update(&k, &v).unwrap();
        keys.push(k);
        values.push(v);
        for (got, parts, dense) in [(got.0, &keys, dense.0), (got.1, &values, dense.1)] {
            let all = ops::concatenate(parts, 2).unwrap();
            assert!(ops::array_equal(&dense, &all, false).unwrap());
            let expected = QuantizedWeight::quantize(&all, Quantization::affine(32, 4)).unwrap();
            assert!(ops::array_equal(&got.w, &expected.w, false).unwrap());
            assert!(ops::array_equal(&got.scales, &expected.scales, false).unwrap());
            let (a, b) = (got.biases.unwrap(), expected.biases.unwrap());
            assert!(ops::array_equal(&a, &b, false).unwrap());
        }
        // packed later instead of from the start
        let later = grown.to_quantized(packing).unwrap();
        assert_eq!(later.len(), cache.len());
    }
    assert_eq!(cache.trim(500), 500);
    assert_eq!(cache.len(), 75);
}

#[test]
fn attention_over_packed_keys_is_attention_over_what_they_stand_for() {
    let packed = |x: &Array| QuantizedWeight::quantize(x, Quantization::affine(32, 8)).unwrap();
    for (heads, l) in [(2, 1), (6, 1), (6, 5)] {
        let q = random_kv(1, &[2, heads, l, 64]);
        let k = packed(&random_kv(2, &[2, 2, 9, 64]));
        let v = packed(&random_kv(3, &[2, 2, 9, 32]));
        let (dense_k, dense_v) = (k.dequantize().unwrap(), v.dequantize().unwrap());
        let only =
            Array::from_slice(&[true, false, true, true, false, true, false, true, true], &[1, 9]);
        for mask in
            [AttentionMask::None, AttentionMask::Causal, AttentionMask::Array(only.unwrap())]
        {
            let got = quantized_attention(&q, &k, &v, 0.125, &mask).unwrap();
            let expected = fast::scaled_dot_product_attention(
                &q,
                &dense_k,
                &dense_v,
                0.125,
                mask.as_mask(),
                None,
            );
            let (got, expected) =
                (got.to_vec::<f32>().unwrap(), expected.unwrap().to_vec().unwrap());
            let worst = got.iter().zip(&expected).map(|(a, b): (_, &f32)| (a - b).abs());
            assert!(worst.fold(0.0, f32::max) < 1e-4, "{heads} heads, {l} queries, {mask:?}");
        }
    }
}

fn demo() -> LoadedModel {
    load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")).unwrap()
}

fn generated(loaded: &LoadedModel, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    let mut go_on = |_| ControlFlow::Continue(());
    generate(loaded.model.as_ref(), prompt, options, &mut go_on).unwrap().token_ids
}

/// Greedy tokens of `mlx_lm.generate.generate_step` (0.32.0, MLX 0.32.2 on an x86 CPU) with the same limits.
#[test]
fn limited_and_packed_caches_say_what_mlx_lm_says() {
    let prompt: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 4096).collect();
    let limited = |size| CacheOptions { max_kv_size: Some(size), quantized: None };
    let packed = |bits, group_size, start| CacheOptions {
        max_kv_size: None,
        quantized: Some(KvQuantization { bits, group_size, start }),
    };
    let mut loaded = demo();
    patch(&mut loaded, &PatchOptions::default()).unwrap();
    for (cache, expected) in [
        (
            CacheOptions::default(),
            [
                294, 416, 641, 79, 735, 414, 75, 37, 3089, 50, 750, 67, 874, 700, 293, 260, 2170,
                1375, 333, 2412, 1083, 316, 1322, 285,
            ],
        ),
        (
            limited(24),
            [
                294, 567, 461, 954, 265, 641, 79, 311, 1086, 379, 16, 2, 201, 1, 445, 391, 489,
                201, 416, 641, 47, 1236, 1086, 379,
            ],
        ),
        (
            limited(48),
            [
                294, 416, 641, 79, 735, 414, 75, 37, 3089, 50, 750, 293, 260, 1083, 316, 265, 3236,
                299, 260, 646, 641, 79, 735, 414,
            ],
        ),
        (
            packed(8, 64, 0),
            [
                294, 416, 641, 79, 735, 414, 75, 37, 3089, 50, 263, 3628, 37, 3089, 50, 263, 82,
                1076, 441, 293, 260, 1433, 1473, 334,
            ],
        ),
        (
            packed(4, 32, 45),
            [
                294, 416, 641, 79, 735, 414, 75, 37, 85, 9, 1326, 286, 299, 265, 641, 79, 735, 414,
                75, 37, 85, 293, 289, 1156,
            ],
        ),
    ] {
        let options = GenerateOptions { max_tokens: 24, cache, ..GenerateOptions::default() };
        assert_eq!(generated(&loaded, &prompt, &options), expected, "{cache:?}");
    }
}

#[test]
fn cache_limits_out_of_range_are_refused() {
    let loaded = Fixture::dense(Dtype::F32).load();
    let ok = KvQuantization::new(8);
    let packed = |quantized| CacheOptions { quantized: Some(quantized), max_kv_size: None };
    let sized = |size| CacheOptions { max_kv_size: Some(size), quantized: None };
    for (name, cache) in [
        ("max_kv_size", sized(4)),
        ("max_kv_size", sized(-1)),
        ("max_kv_size", CacheOptions { quantized: Some(ok), max_kv_size: Some(64) }),
        ("kv_bits", packed(KvQuantization { bits: 5, ..ok })),
        ("kv_group_size", packed(KvQuantization { group_size: 0, ..ok })),
        ("quantized_kv_start", packed(KvQuantization { start: -1, ..ok })),
    ] {
        let options = GenerateOptions { cache, ..GenerateOptions::default() };
        let mut go_on = |_| ControlFlow::Continue(());
        let error = generate(loaded.model.as_ref(), PROMPT, &options, &mut go_on).unwrap_err();
        assert!(matches!(&error, Error::Argument { name: n, .. } if *n == name), "{error}");
    }
}

fn forward(model: &dyn Model, tokens: &[u32], rows: i32, cache: &mut Cache) -> Vec<f32> {
    let shape = [rows, tokens.len() as i32 / rows];
    let tokens = Array::from_slice(tokens, &shape).unwrap();
    let logits = model.forward(&Step::new(&tokens), &mut [cache]).unwrap();
    logits.astype(Dtype::F32).unwrap().to_vec().unwrap()
}

fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    best.0 as u32
}

#[test]
fn clone_is_a_snapshot() {
    let loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
    let model = loaded.model.as_ref();
    let mut cache = model.make_cache();
    forward(model, PROMPT, 1, &mut cache);
    let snapshot = cache.clone();
    let expected = forward(model, &[5], 1, &mut cache);
    forward(model, &[6], 1, &mut cache);
    let mut restored = snapshot.clone();
    assert_eq!(forward(model, &[5], 1, &mut restored), expected);
    // and taking tokens back leads to the same place
    assert_eq!(cache.trim(2), 2);
    assert_eq!(cache.len(), snapshot.len());
    assert_eq!(forward(model, &[5], 1, &mut cache), expected);
    assert_eq!(cache.trim(1000), PROMPT.len() as i32 + 1);
    assert!(cache.is_empty());
}

#[test]
fn rows_are_merged_and_split() {
    let loaded = Fixture::dense(Dtype::F32).quantized(q4()).load();
    let model = loaded.model.as_ref();
    let other: Vec<u32> = PROMPT.iter().map(|id| id + 1).collect();
    let packing = KvQuantization { bits: 8, group_size: 32, start: 0 };
    for kind in ["growing", "window", "quantized"] {
        let start = |prompt: &[u32]| {
            let limits = match kind {
                "window" => CacheOptions { max_kv_size: Some(6), quantized: None },
                _ => CacheOptions::default(),
            };
            let mut cache = limits.limit(model.make_cache());
            forward(model, prompt, 1, &mut cache);
            if kind == "quantized" {
                cache.quantize(packing).unwrap();
            }
            // one of them has been decoding for a while, so that its buffers are others
            forward(model, &[2], 1, &mut cache);
            cache
        };
        let (a, b) = (start(PROMPT), start(&other));
        let mut both = Cache::merge(&[&a, &b]).unwrap();
        let alone =
            [forward(model, &[9], 1, &mut a.clone()), forward(model, &[8], 1, &mut b.clone())];
        let close = |got: &[f32], expected: &[f32]| {
            let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{kind}: {worst}");
        };
        close(&forward(model, &[9, 8], 2, &mut both.clone()), &alone.concat());
        let mut split = both.split().unwrap();
        assert_eq!(split.len(), 2);
        close(&forward(model, &[9], 1, &mut split[0]), &alone[0]);
        close(&forward(model, &[8], 1, &mut split[1]), &alone[1]);
        both.clear();
        assert!(both.is_empty());

        let mut longer = a.clone();
        forward(model, &[1], 1, &mut longer);
        let error = Cache::merge(&[&a, &longer]).unwrap_err();
        assert!(matches!(error, Error::Argument { name: "caches", .. }), "{error}");
    }
}

#[test]
fn recurrent_state_is_a_cache_too() {
    let mut layer = LayerCache::List(vec![
        LayerCache::State(StateCache::new(2)),
        LayerCache::Kv(KvCache::default()),
    ]);
    let (keys, values) = numbered(0, 3);
    {
        let [state, kv] = layer.as_list().unwrap() else { panic!("a list of two") };
        let state = state.as_state().unwrap();
        assert!(state.get(0).is_none());
        state.set(0, random_kv(1, &[1, 4]));
        state.set(1, random_kv(2, &[1, 2, 3]));
        state.advance(3);
        kv.update(&keys, &values).unwrap();
    }
    let mut cache = Cache { layers: vec![layer] };
    assert_eq!((cache.len(), cache.arrays().count()), (3, 4));
    assert_eq!(cache.bytes(), 4 * (4 + 6 + 2 * 256));
    assert!(!cache.can_trim());
    assert_eq!(cache.trim(1), 0);
    assert_eq!(cache.len(), 3);
    let both = Cache::merge(&[&cache, &cache]).unwrap();
    assert!(both.arrays().all(|array| array.dim(0) == 2));
    assert_eq!(both.split().unwrap().len(), 2);
    let error = cache.layers[0].update(&keys, &values).unwrap_err();
    assert!(matches!(error, Error::Argument { name: "layer cache", .. }), "{error}");
    cache.clear();
    assert!(cache.is_empty());
}

#[test]
fn fixed_cache_says_what_a_growing_one_says() {
    for patched in [false, true] {
        let mut loaded = demo();
        if patched {
            patch(&mut loaded, &PatchOptions::default()).unwrap();
        }
        let model = loaded.model.as_ref();
        let mut growing = model.make_cache();
        forward(model, &PROMPT[..6], 1, &mut growing);
        let mut fixed = growing.fixed(64).unwrap();
        assert_eq!(fixed.len(), 6);
        let (mut a, mut b) = (PROMPT[6], PROMPT[6]);
        let mut said = Vec::new();
        for _ in 0..24 {
            a = likeliest(&forward(model, &[a], 1, &mut growing));
            b = likeliest(&forward(model, &[b], 1, &mut fixed));
            assert_eq!(a, b, "after {said:?}");
            said.push(a);
        }
        // back by some tokens, several at once, a snapshot in between
        assert_eq!((growing.trim(3), fixed.trim(3)), (3, 3));
        let snapshot = fixed.clone();
        let next = likeliest(&forward(model, &said[..3], 1, &mut growing));
        assert_eq!(likeliest(&forward(model, &said[..3], 1, &mut fixed)), next);
        assert_eq!(likeliest(&forward(model, &said[..3], 1, &mut snapshot.clone())), next);
        let error = model.forward(
            &Step::new(&Array::from_slice(&[1_u32; 40], &[1, 40]).unwrap()),
            &mut [&mut fixed],
        );
        assert!(matches!(error, Err(Error::Argument { name: "cache capacity", .. })));
    }
}

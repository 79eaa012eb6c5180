//! Caches in files: what is read is what was written, what continues it says what an unbroken run says, and what is no
//! cache is refused.

use std::fs;
use std::path::{Path, PathBuf};

use mlx::{Array, Dtype, ops, random};
use serde_json::json;
use tempfile::TempDir;

use super::fixture::{Fixture, PROMPT, q4};
use crate::cache::{
    Cache, KvCache, KvQuantization, LayerCache, QuantizedKvCache, SavedCache, StateCache,
    WindowCache, save,
};
use crate::decoder::{Decoder, PromptCache};
use crate::generate::GenerateOptions;
use crate::models::LoadedModel;

const MODEL: &str = "owner/name";

fn random_kv(seed: u64, shape: &[i32]) -> Array {
    random::normal(shape, Dtype::F32, 0.0, 1.0, Some(&random::key(seed).unwrap())).unwrap()
}

fn update(layer: &mut LayerCache, seed: u64, n: i32) {
    let kv = |seed| random_kv(seed, &[1, 2, n, 64]);
    layer.update(&kv(seed), &kv(seed + 1)).unwrap();
}

/// A layer of every kind, some of them empty.
fn all_kinds() -> Cache {
    let mut kv = LayerCache::Kv(KvCache::default());
    update(&mut kv, 1, 300);
    let mut window = LayerCache::Window(WindowCache::new(8, 2));
    for i in 0..13 {
        update(&mut window, 10 + i, 1);
    }
    let quantization = KvQuantization { bits: 4, group_size: 32, start: 0 };
    let mut packed = LayerCache::Quantized(QuantizedKvCache::new(quantization));
    update(&mut packed, 40, 5);
    let mut state = StateCache::new(2);
    state.set(1, random_kv(50, &[1, 3, 4]));
    let mut inner = LayerCache::Kv(KvCache::default());
    update(&mut inner, 60, 7);
    let list = LayerCache::List(vec![inner, LayerCache::Kv(KvCache::default())]);
    let empty = LayerCache::Window(WindowCache::new(8, 0));
    let layers = vec![kv, window, packed, LayerCache::State(state), list, empty];
    Cache { layers }
}

fn written(cache: &Cache) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache.safetensors");
    save(&path, cache, MODEL).unwrap();
    (dir, path)
}

#[test]
fn every_kind_is_read_as_it_was_written() {
    let cache = all_kinds();
    let (_dir, path) = written(&cache);
    let saved = SavedCache::load(&path).unwrap();
    assert_eq!(saved.model.as_deref(), Some(MODEL));
    let mut read = saved.cache;
    assert_eq!(read.layers.len(), cache.layers.len());
    for (a, b) in cache.layers.iter().zip(&read.layers) {
        assert_eq!(std::mem::discriminant(a), std::mem::discriminant(b));
        let bytes = |layer: &LayerCache| -> Vec<_> {
            layer
                .arrays()
                .map(|array| (array.shape().to_vec(), array.to_bytes().unwrap()))
                .collect()
        };
        assert_eq!(bytes(a), bytes(b));
    }
    let lens: Vec<i32> = read.layers.iter().map(LayerCache::len).collect();
    // a recurrent state has seen what the longest layer beside it has
    assert_eq!(lens, [300, 13, 5, 300, 7, 0]);
    // a ring goes on where it was
    let mut own = cache.layers[1].clone();
    for layer in [&mut own, &mut read.layers[1]] {
        update(layer, 90, 1);
    }
    let all =
        |layer: &LayerCache| layer.arrays().map(|a| a.to_bytes().unwrap()).collect::<Vec<_>>();
    assert_eq!(all(&own), all(&read.layers[1]));
}

fn options(quantized: Option<KvQuantization>) -> GenerateOptions {
    let cache = crate::cache::CacheOptions { quantized, max_kv_size: None };
    GenerateOptions { max_tokens: 12, cache, ..GenerateOptions::default() }
}

fn generated(decoder: Decoder<'_>) -> Vec<u32> {
    decoder.map(|token| token.unwrap().id).collect()
}

fn load(path: &Path, loaded: &LoadedModel) -> crate::Result<PromptCache> {
    Ok(PromptCache::behind(SavedCache::load(path)?.into_cache(loaded.model.as_ref())?))
}

#[test]
fn prompt_behind_a_file_says_what_the_whole_prompt_says() {
    let loaded = Fixture::dense(Dtype::F32).quantized(q4()).load();
    let model = loaded.model.as_ref();
    for quantized in [None, Some(KvQuantization { bits: 8, group_size: 32, start: 2 })] {
        let options = options(quantized);
        let (before, behind) = PROMPT.split_at(4);
        let held = Decoder::new(model, before, &options).unwrap().into_prompt_cache().unwrap();
        assert_eq!(held.tokens(), before);
        let (_dir, path) = written(held.cache());
        // in one go, in the same pieces
        let whole = Decoder::resume(model, held, PROMPT, &options).unwrap();
        let expected = generated(whole);
        let read = load(&path, &loaded).unwrap();
        assert!(read.tokens().is_empty());
        let continued = Decoder::resume(model, read, behind, &options).unwrap();
        assert_eq!(continued.progress().total, behind.len());
        assert_eq!(generated(continued), expected, "{quantized:?}");
    }
}

#[test]
fn files_of_other_models_are_refused() {
    let loaded = Fixture::dense(Dtype::F32).load();
    let options = options(None);
    let held = Decoder::new(loaded.model.as_ref(), PROMPT, &options).unwrap();
    let (_dir, path) = written(held.into_prompt_cache().unwrap().cache());
    load(&path, &loaded).unwrap();
    for (changes, dtype, part) in [
        (json!({"num_hidden_layers": 3}), Dtype::F32, "is of a model of 2 layers; this one has 3"),
        (json!({"num_key_value_heads": 4}), Dtype::F32, "another model: layer 0 is growing"),
        (json!({"head_dim": 64}), Dtype::F32, "another model"),
        (json!({}), Dtype::F16, "float16"),
    ] {
        let other = Fixture::with(dtype, changes).load();
        let message = load(&path, &other).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("cache.safetensors"), "{message}");
    }
}

/// A file with these arrays and metadata.
fn file(arrays: &[(&str, Array)], metadata: &[(&str, &str)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache.safetensors");
    let arrays = arrays.iter().map(|(name, array)| (*name, array));
    mlx::io::save_safetensors(&path, arrays, metadata.iter().copied()).unwrap();
    (dir, path)
}

#[test]
fn what_is_no_cache_is_refused() {
    let kv = || ops::zeros(&[1, 2, 8, 4], Dtype::F32).unwrap();
    let number = |n: i32| Array::scalar(n).unwrap();
    let refused = |arrays: &[(&str, Array)], metadata: &[(&str, &str)], part: &str| {
        let (_dir, path) = file(arrays, metadata);
        let message = SavedCache::load(&path).unwrap_err().to_string();
        assert!(
            message.contains(part) && message.contains("cache.safetensors"),
            "{part}: {message}"
        );
    };
    let scalar = [("2.0", ""), ("2.1.0", "0.2"), ("2.1.1", "scalar")];
    let of = |class| [&scalar[..], &[("1.0", class)]].concat();
    let good = [("0.0", kv()), ("0.1", kv()), ("0.2", number(8))];
    let (_dir, path) = file(&good, &of("KVCache"));
    assert_eq!(SavedCache::load(&path).unwrap().cache.len(), 8);

    refused(&good, &[], "no prompt cache");
    refused(&good, &of("BatchKVCache"), "class that does not exist here");
    refused(&good, &of("RotatingKVCache"), "holds less");
    refused(&good, &[&of("KVCache")[..], &[("1.1", "KVCache")]].concat(), "lacks layer 1");
    let with = |name: &'static str, array: Array| {
        let rest = good.iter().filter(|(held, _)| *held != name).cloned();
        rest.chain([(name, array)]).collect::<Vec<_>>()
    };
    refused(&with("0.2", number(9)), &of("KVCache"), "claims 9 tokens in room for 8");
    refused(&with("0.2", number(-1)), &of("KVCache"), "claims -1 tokens");
    refused(&with("0.2", kv()), &of("KVCache"), "expected a number");
    refused(
        &with("0.1", ops::zeros(&[1, 2, 7, 4], Dtype::F32).unwrap()),
        &of("KVCache"),
        "has keys",
    );
    refused(&with("0.1", number(3)), &of("KVCache"), "has keys");
    refused(&with("0.5", number(3)), &of("KVCache"), "gaps");
    refused(&with("0.3", number(3)), &of("KVCache"), "holds more");
    refused(&with("name", kv()), &of("KVCache"), "holds `name`");
    let ring = |numbers: [i32; 4]| {
        let names = ["0.2", "0.3", "0.4", "0.5"];
        let numbers = names.into_iter().zip(numbers.map(number));
        [("0.0", kv()), ("0.1", kv())].into_iter().chain(numbers).collect::<Vec<_>>()
    };
    let mut metadata = vec![("1.0", "RotatingKVCache"), ("2.0", "")];
    for (key, at) in [("2.1", "0.2"), ("2.2", "0.3"), ("2.3", "0.4"), ("2.4", "0.5")] {
        let key: &'static str = Box::leak(format!("{key}.0").into_boxed_str());
        let kind: &'static str = Box::leak(key.replace(".0", ".1").into_boxed_str());
        metadata.extend([(key, at), (kind, "scalar")]);
    }
    let (_dir, path) = file(&ring([20, 2, 8, 5]), &metadata);
    assert_eq!(SavedCache::load(&path).unwrap().cache.len(), 20);
    for numbers in [[20, 8, 8, 5], [20, 2, 8, 9], [20, 2, 8, -1], [3, 0, 8, 5], [20, -1, 8, 5]] {
        refused(&ring(numbers), &metadata, "a window of 8");
    }
    let (_dir, path) = file(&good, &of("KVCache"));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    assert!(SavedCache::load(&path).unwrap_err().to_string().contains("truncated"));
}

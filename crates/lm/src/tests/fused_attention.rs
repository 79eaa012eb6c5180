//! Attention layers on their fused paths have the bits that they have on stock ops, over each kind of cache.

use mlx::primitives::Precision;
use mlx::{Array, Dtype, ops, random};
use serde_json::json;

use crate::cache::{Cache, LayerCache, WindowCache};
use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, Positive};
use crate::layers::{
    Attention, AttentionOptions, Fusable, Fusion, Heads, ModulePath, Path, QkNorm, Rope,
    RopeOptions, RopeScaling,
};
use crate::placement::Placement;
use crate::step::{Rows, Step};
use crate::weights::Weights;

const D: i32 = 64;
const HEADS: Heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 32 };

fn normal(shape: &[i32], dtype: Dtype, scale: f32, seed: u64) -> Array {
    random::normal(shape, dtype, 0.0, scale, Some(&random::key(seed).unwrap())).unwrap()
}

fn load(options: AttentionOptions, dtype: Dtype) -> Attention {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors: Vec<(&str, &[i32])> = vec![
        ("q_proj.weight", &[128, D]),
        ("k_proj.weight", &[64, D]),
        ("v_proj.weight", &[64, D]),
        ("o_proj.weight", &[D, 128]),
    ];
    if options.qk_norm.is_some() {
        tensors.extend([("q_norm.weight", &[32][..]), ("k_norm.weight", &[32])]);
    }
    if options.sinks {
        tensors.push(("sinks", &[4]));
    }
    let arrays: Vec<_> =
        (20..).zip(tensors).map(|(seed, (n, s))| (n, normal(s, dtype, 0.3, seed))).collect();
    let named = arrays.iter().map(|(name, array)| (*name, array));
    mlx::io::save_safetensors(&dir.path().join("model.safetensors"), named, []).unwrap();
    let weights =
        Weights::new(Checkpoint::open(dir.path()).unwrap(), None, Placement::default()).unwrap();
    Attention::load(&weights.root(), options).unwrap()
}

/// A rotation of a part of each head.
fn rope(scaling: serde_json::Value, dims: i32, traditional: bool) -> Rope {
    let fields = json!({"model_type": "toy"});
    let fields = fields.as_object().unwrap().clone();
    let config = ModelConfig::from_fields("config.json", fields, None).unwrap();
    let scaling: RopeScaling = serde_json::from_value(scaling).unwrap();
    let options = RopeOptions {
        dims,
        base: Positive::new(150_000.0).unwrap(),
        traditional,
        scaling: Some(("rope_scaling", &scaling)),
        max_position_embeddings: crate::config::Size::new(32),
    };
    Rope::from_config(&config, options).unwrap()
}

/// Pieces of two sequences, single tokens at the end, each with a cache of its own or both in one.
fn run(attention: &Attention, x: &Array, cache: &Cache, alone: bool) -> Vec<Vec<u8>> {
    let mut first = cache.clone();
    let mut second = cache.clone();
    let mut pieces = Vec::new();
    for (from, to) in [(0, 7), (7, 20), (20, 21), (21, 22), (22, 23)] {
        let piece = ops::slice_axis(x, 1, from, to).unwrap();
        let tokens = ops::zeros(&[2, to - from], Dtype::U32).unwrap();
        let step = Step::new(&tokens);
        let mut both = [&mut first, &mut second];
        let caches = if alone { &mut both[..] } else { &mut both[..1] };
        let mut rows = Rows::new(&step, caches);
        let y = attention.forward(&piece, rows.layer(0)).unwrap();
        pieces.push(y.to_bytes().unwrap());
    }
    pieces
}

#[test]
fn every_part_of_attention_is_fused_with_the_bits_of_stock() {
    if mlx::build_info().primitives.is_empty() {
        return;
    }
    let plain = AttentionOptions::new(D, HEADS);
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8});
    let with = |rope| AttentionOptions { rope: Some(rope), ..plain.clone() };
    let dynamic = rope(json!({"type": "dynamic", "factor": 2.0}), 32, false);
    let window = |size| WindowCache::new(size, 0);
    for (name, options, ring) in [
        ("window", AttentionOptions { window: Some(5), ..plain.clone() }, None),
        ("window in a ring", AttentionOptions { window: Some(9), ..plain.clone() }, Some(9)),
        ("narrow window in a ring", AttentionOptions { window: Some(6), ..plain.clone() }, Some(9)),
        ("sinks", AttentionOptions { sinks: true, ..plain.clone() }, None),
        ("yarn", with(rope(yarn.clone(), 32, false)), None),
        ("part of a head, interleaved", with(rope(yarn.clone(), 24, true)), None),
        ("dynamic base", with(dynamic), None),
        (
            "all",
            AttentionOptions {
                qk_norm: Some(QkNorm::Heads(1e-6)),
                rope: Some(rope(yarn, 32, true)),
                window: Some(9),
                sinks: true,
                ..plain.clone()
            },
            Some(9),
        ),
    ] {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let mut attention = load(options.clone(), dtype);
            let x = normal(&[2, 23, D], dtype, 1.0, 3);
            let mut cache = Cache::new(1);
            if let Some(size) = ring {
                cache.layers[0] = LayerCache::Window(window(size));
            }
            for alone in [true, false] {
                let stock = run(&attention, &x, &cache, alone);
                let mut sites = Vec::new();
                attention.sites(&ModulePath::default(), &mut sites);
                let fusion = Fusion { precision: Precision::Exact, decode_only: false };
                let mut fused = Vec::new();
                for site in sites {
                    assert!(site.questions.is_ok(), "{name}: {:?}", site.questions);
                    *site.path = Path::Fused(fusion);
                    fused.push(site.pattern);
                }
                assert!(fused.contains(&"attention"), "{name}: {fused:?}");
                assert_eq!(fused.contains(&"qk_norm_rope"), options.rope.is_some(), "{name}");
                assert!(run(&attention, &x, &cache, alone) == stock, "{name} {dtype} {alone}");
                let mut sites = Vec::new();
                attention.sites(&ModulePath::default(), &mut sites);
                sites.into_iter().for_each(|site| *site.path = Path::Stock);
            }
        }
    }
}

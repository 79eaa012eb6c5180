//! Layers against plain arithmetic in f64: each optional part of attention, routing and the experts.

use std::collections::BTreeMap;

use mlx::{Array, Dtype, random};
use tempfile::TempDir;

use crate::cache::Cache;
use crate::checkpoint::Checkpoint;
use crate::layers::{
    Activation, Attention, AttentionOptions, Choice, GluOptions, Groups, Heads, MoeBlock, MoeNames,
    MoeOptions, QkNorm, Rope, Routing, Score, SharedOptions, SwitchGlu,
};
use crate::placement::Placement;
use crate::step::{Rows, Step};
use crate::weights::Weights;

fn normal(shape: &[i32], seed: u64) -> Array {
    let key = random::key(seed).unwrap();
    random::normal(shape, Dtype::F32, 0.0, 1.0, Some(&key)).unwrap()
}

fn values(a: &Array) -> Vec<f64> {
    a.astype(Dtype::F32).unwrap().to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - most).exp()).collect();
    let total: f64 = e.iter().sum();
    e.into_iter().map(|e| e / total).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The indices of the `n` largest.
fn largest(x: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| x[*b].total_cmp(&x[*a]));
    order.truncate(n);
    order
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    assert!(size > 1e-3, "{what}: nothing to compare");
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-4 * size, "{what}: {worst} of {size}");
}

/// What `routing` should give for one token: experts and their weights.
fn route(routing: &Routing, logits: &[f64]) -> BTreeMap<usize, f64> {
    let scores = match routing.score {
        Score::Softmax => softmax(logits),
        Score::Sigmoid => logits.iter().map(|x| sigmoid(*x)).collect(),
        Score::SoftmaxOfChosen { .. } => logits.to_vec(),
    };
    let mut choice = scores.clone();
    if let Some(bias) = &routing.selection_bias {
        choice.iter_mut().zip(values(bias)).for_each(|(score, bias)| *score += bias);
    }
    if let Some(Groups { num_groups, top_k }) = routing.groups {
        let size = choice.len() / num_groups as usize;
        let best: Vec<f64> = choice
            .chunks(size)
            .map(|group| largest(group, 2).into_iter().map(|e| group[e]).sum())
            .collect();
        let kept = largest(&best, top_k as usize);
        for (e, score) in choice.iter_mut().enumerate() {
            if !kept.contains(&(e / size)) {
                *score = 0.0;
            }
        }
    }
    let chosen = largest(&choice, routing.top_k as usize);
    let mut weights: Vec<f64> = chosen.iter().map(|e| scores[*e]).collect();
    if let Score::SoftmaxOfChosen { .. } = routing.score {
        weights = softmax(&weights);
    }
    if routing.norm_topk_prob {
        let total: f64 = weights.iter().sum::<f64>() + f64::from(routing.norm_eps);
        weights.iter_mut().for_each(|w| *w /= total);
    }
    if let Some(scale) = &routing.expert_scale {
        let scale = values(scale);
        weights.iter_mut().zip(&chosen).for_each(|(w, e)| *w *= scale[*e]);
    }
    if let Some(scale) = routing.scale {
        weights.iter_mut().for_each(|w| *w *= f64::from(scale));
    }
    chosen.into_iter().zip(weights).collect()
}

/// Every kind of routing that there is, over 16 experts.
fn routings() -> Vec<(&'static str, Routing)> {
    let per_expert = |f: &dyn Fn(usize) -> f32| {
        Array::from_slice(&(0..16).map(f).collect::<Vec<_>>(), &[16]).unwrap()
    };
    let plain = Routing::softmax(4);
    let sigmoid = Routing { score: Score::Sigmoid, in_f32: true, ..plain.clone() };
    let bias = per_expert(&|e| 0.3 * (e % 5) as f32);
    let biased = Routing { selection_bias: Some(bias), ..sigmoid.clone() };
    let grouped = Routing {
        groups: Some(Groups { num_groups: 4, top_k: 2 }),
        choice: Choice::FirstOfDescending,
        norm_topk_prob: true,
        scale: Some(2.5),
        ..biased.clone()
    };
    let of_chosen = |precise| Score::SoftmaxOfChosen { precise };
    let scaled = Some(per_expert(&|e| 0.5 + 0.1 * e as f32));
    vec![
        ("softmax", plain.clone()),
        ("softmax, normed", Routing { norm_topk_prob: true, ..plain.clone() }),
        ("sigmoid", sigmoid.clone()),
        ("sigmoid, bias", biased.clone()),
        ("sigmoid, epsilon", Routing { norm_topk_prob: true, norm_eps: 0.1, ..sigmoid }),
        ("groups", grouped),
        ("one group", Routing { groups: Some(Groups { num_groups: 1, top_k: 1 }), ..biased }),
        ("of chosen", Routing { score: of_chosen(true), ..plain.clone() }),
        (
            "of chosen, scaled",
            Routing { score: of_chosen(false), expert_scale: scaled, ..plain.clone() },
        ),
        ("descending", Routing { choice: Choice::FirstOfDescending, ..plain }),
    ]
}

#[test]
fn every_kind_of_routing_is_fused_with_the_bits_of_stock() {
    if mlx::build_info().primitives.is_empty() {
        return;
    }
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for casts in [None, Some(Dtype::Bf16), Some(Dtype::F32)] {
            for (name, routing) in routings() {
                let routing = Routing { casts: casts.is_some(), ..routing };
                let input = casts.unwrap_or(dtype);
                let logits = normal(&[2, 11, 16], 7).astype(dtype).unwrap();
                let stock = routing.select(&logits, input).unwrap();
                let fused = routing.select_fused(&logits, input).unwrap();
                for (fused, stock) in [(fused.0, stock.0), (fused.1, stock.1)] {
                    let what = format!("{name} {dtype}, weights {casts:?}");
                    assert_eq!(fused.dtype(), stock.dtype(), "{what}");
                    assert_eq!(fused.to_bytes().unwrap(), stock.to_bytes().unwrap(), "{what}");
                }
            }
        }
    }
}

#[test]
fn every_kind_of_routing_chooses_and_weighs_as_plain_arithmetic_does() {
    const TOKENS: usize = 23;
    const EXPERTS: usize = 16;
    for (name, routing) in routings() {
        let logits = normal(&[1, TOKENS as i32, EXPERTS as i32], 5);
        let (indices, scores) = routing.select(&logits, Dtype::F32).unwrap();
        assert_eq!(indices.shape(), [1, TOKENS as i32, 4], "{name}");
        assert_eq!(scores.shape(), indices.shape(), "{name}");
        let (indices, scores) = (indices.to_vec::<u32>().unwrap(), values(&scores));
        for (t, logits) in values(&logits).chunks(EXPERTS).enumerate() {
            let expected = route(&routing, logits);
            let range = t * 4..(t + 1) * 4;
            let got: BTreeMap<usize, f64> = indices[range.clone()]
                .iter()
                .map(|e| *e as usize)
                .zip(scores[range].iter().copied())
                .collect();
            assert!(got.keys().eq(expected.keys()), "{name}: {got:?}, expected {expected:?}");
            let flat = |map: &BTreeMap<usize, f64>| map.values().copied().collect::<Vec<_>>();
            assert_close(&flat(&got), &flat(&expected), name);
        }
    }
}

#[test]
fn weights_of_experts_take_the_type_of_what_the_experts_get() {
    let logits = normal(&[1, 3, 8], 6).astype(Dtype::Bf16).unwrap();
    let routing = Routing { in_f32: true, ..Routing::softmax(2) };
    assert_eq!(routing.select(&logits, Dtype::Bf16).unwrap().1.dtype(), Dtype::F32);
    let routing = Routing { casts: true, ..routing };
    assert_eq!(routing.select(&logits, Dtype::Bf16).unwrap().1.dtype(), Dtype::Bf16);
}

/// Named f32 weights in a file, as layers take them.
fn weights(tensors: &[(&str, &[i32])]) -> (BTreeMap<String, Array>, Weights, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let arrays: BTreeMap<String, Array> = (11..)
        .zip(tensors)
        .map(|(seed, (name, shape))| {
            let spread = Array::scalar(0.3_f32).unwrap();
            let array = mlx::ops::multiply(&normal(shape, seed), &spread).unwrap();
            ((*name).to_owned(), array)
        })
        .collect();
    let named = arrays.iter().map(|(name, array)| (name.as_str(), array));
    mlx::io::save_safetensors(&dir.path().join("model.safetensors"), named, []).unwrap();
    let weights =
        Weights::new(Checkpoint::open(dir.path()).unwrap(), None, Placement::default()).unwrap();
    (arrays, weights, dir)
}

/// `x · Wᵀ + b` for one row.
fn product(x: &[f64], w: &[f64], b: Option<&[f64]>) -> Vec<f64> {
    let rows = w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>());
    rows.enumerate().map(|(n, y)| y + b.map_or(0.0, |b| b[n])).collect()
}

const D: i32 = 24;
const HEADS: Heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 8 };

/// Attention without rope over all tokens of `x`, `[L, D]`.
fn attend(w: &BTreeMap<String, Array>, options: &AttentionOptions, x: &[f64]) -> Vec<f64> {
    let Heads { num_heads, num_kv_heads, head_dim } = options.heads;
    let (heads, kv_heads, dim) = (num_heads as usize, num_kv_heads as usize, head_dim as usize);
    let get = |name: &str| w.get(name).map(values);
    let project = |name: &str, x: &[f64]| {
        let bias = get(&format!("{name}.bias"));
        product(x, &get(&format!("{name}.weight")).unwrap(), bias.as_deref())
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let Some(weight) = get(name) else { return x.to_vec() };
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(x, w)| x / (mean + 1e-6).sqrt() * w).collect()
    };
    let rows: Vec<&[f64]> = x.chunks(D as usize).collect();
    let whole = matches!(options.qk_norm, Some(QkNorm::Whole(_)));
    let norm_if = |when: bool, name: &str, x: &[f64]| if when { norm(name, x) } else { x.to_vec() };
    let project_norm = |proj: &str, name: &str, x: &[f64]| norm_if(whole, name, &project(proj, x));
    let q: Vec<_> = rows.iter().map(|x| project_norm("q_proj", "q_norm.weight", x)).collect();
    let k: Vec<_> = rows.iter().map(|x| project_norm("k_proj", "k_norm.weight", x)).collect();
    let v: Vec<_> = rows.iter().map(|x| project("v_proj", x)).collect();
    let sinks = get("sinks");
    let stride = if options.gated { 2 * dim } else { dim };
    let mut out = Vec::new();
    for (i, q) in q.iter().enumerate() {
        let from = options.window.map_or(0, |window| (i + 1).saturating_sub(window as usize));
        let mut y = Vec::new();
        for h in 0..heads {
            let kv = h / (heads / kv_heads) * dim;
            let query = norm_if(!whole, "q_norm.weight", &q[h * stride..h * stride + dim]);
            let mut scores: Vec<f64> = (from..=i)
                .map(|j| {
                    let key = norm_if(!whole, "k_norm.weight", &k[j][kv..kv + dim]);
                    query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()
                })
                .collect();
            scores.extend(sinks.as_ref().map(|sinks| sinks[h]));
            let weights = softmax(&scores);
            for d in 0..dim {
                let sum: f64 = (from..=i).zip(&weights).map(|(j, w)| w * v[j][kv + d]).sum();
                let gate = match options.gated {
                    true => sigmoid(q[h * stride + dim + d]),
                    false => 1.0,
                };
                y.push(sum * gate);
            }
        }
        out.extend(project("o_proj", &y));
    }
    out
}

#[test]
fn every_part_of_attention_does_as_plain_arithmetic_does() {
    let plain = AttentionOptions::new(D, HEADS);
    for (name, options) in [
        ("plain", plain.clone()),
        ("biases", AttentionOptions { qkv_bias: true, output_bias: true, ..plain.clone() }),
        ("norms", AttentionOptions { qk_norm: Some(QkNorm::Heads(1e-6)), ..plain.clone() }),
        ("whole norms", AttentionOptions { qk_norm: Some(QkNorm::Whole(1e-6)), ..plain.clone() }),
        ("window", AttentionOptions { window: Some(3), ..plain.clone() }),
        ("sinks", AttentionOptions { sinks: true, ..plain.clone() }),
        ("gate", AttentionOptions { gated: true, ..plain.clone() }),
        (
            "all",
            AttentionOptions {
                qkv_bias: true,
                qk_norm: Some(QkNorm::Heads(1e-6)),
                window: Some(5),
                sinks: true,
                gated: true,
                ..plain
            },
        ),
    ] {
        let wide = if options.gated { 64 } else { 32 };
        let mut tensors: Vec<(&str, &[i32])> = vec![
            ("k_proj.weight", &[16, D]),
            ("v_proj.weight", &[16, D]),
            ("o_proj.weight", &[D, 32]),
        ];
        let (q_weight, q_bias) = ([wide, D], [wide]);
        tensors.push(("q_proj.weight", &q_weight));
        if options.qkv_bias {
            tensors.push(("q_proj.bias", &q_bias));
            tensors.extend([("k_proj.bias", &[16][..]), ("v_proj.bias", &[16])]);
        }
        if options.output_bias {
            tensors.push(("o_proj.bias", &[D]));
        }
        match options.qk_norm {
            Some(QkNorm::Heads(_)) => {
                tensors.extend([("q_norm.weight", &[8][..]), ("k_norm.weight", &[8])]);
            }
            Some(QkNorm::Whole(_)) => {
                tensors.extend([("q_norm.weight", &[32][..]), ("k_norm.weight", &[16])]);
            }
            None => {}
        }
        if options.sinks {
            tensors.push(("sinks", &[4]));
        }
        let (arrays, weights, _dir) = weights(&tensors);
        let attention = Attention::load(&weights.root(), options.clone()).unwrap();
        weights.finish().unwrap();
        let x = normal(&[1, 11, D], 3);
        let expected = attend(&arrays, &options, &values(&x));

        let forward = |x: &Array, cache: &mut Cache| {
            let tokens =
                Array::from_slice(&vec![0_u32; x.dim(1) as usize], &[1, x.dim(1)]).unwrap();
            let step = Step::new(&tokens);
            let mut caches = [cache];
            let mut rows = Rows::new(&step, &mut caches);
            values(&attention.forward(x, rows.layer(0)).unwrap())
        };
        assert_close(&forward(&x, &mut Cache::new(1)), &expected, name);
        // in pieces, the last of them single tokens
        let mut cache = Cache::new(1);
        let mut pieces = Vec::new();
        for (from, to) in [(0, 4), (4, 9), (9, 10), (10, 11)] {
            let piece = mlx::ops::slice_axis(&x, 1, from, to).unwrap();
            pieces.extend(forward(&piece, &mut cache));
        }
        assert_close(&pieces, &expected, &format!("{name}, in pieces"));
    }
}

#[test]
fn rope_is_left_out_where_there_is_none() {
    let tensors: [(&str, &[i32]); 4] = [
        ("q_proj.weight", &[32, D]),
        ("k_proj.weight", &[16, D]),
        ("v_proj.weight", &[16, D]),
        ("o_proj.weight", &[D, 32]),
    ];
    let x = normal(&[1, 5, D], 3);
    let tokens = Array::from_slice(&[0_u32; 5], &[1, 5]).unwrap();
    let mut results = Vec::new();
    for rope in [None, Some(Rope::new(8, 100.0))] {
        let (_, weights, _dir) = weights(&tensors);
        let options = AttentionOptions { rope, ..AttentionOptions::new(D, HEADS) };
        let attention = Attention::load(&weights.root(), options).unwrap();
        let (step, mut cache) = (Step::new(&tokens), Cache::new(1));
        let mut caches = [&mut cache];
        let y = attention.forward(&x, Rows::new(&step, &mut caches).layer(0)).unwrap();
        results.push(values(&y));
    }
    // the first token stands at position 0, where nothing turns
    assert_eq!(results[0][..D as usize], results[1][..D as usize]);
    assert_ne!(results[0], results[1]);
}

#[test]
fn shared_experts_are_added_with_and_without_their_gate() {
    let routed: [(&str, &[i32]); 4] = [
        ("router.weight", &[4, D]),
        ("experts.gate_proj.weight", &[4, 16, D]),
        ("experts.up_proj.weight", &[4, 16, D]),
        ("experts.down_proj.weight", &[4, D, 16]),
    ];
    let shared: [(&str, &[i32]); 3] = [
        ("shared.gate_proj.weight", &[40, D]),
        ("shared.up_proj.weight", &[40, D]),
        ("shared.down_proj.weight", &[D, 40]),
    ];
    let gate: (&str, &[i32]) = ("shared_gate.weight", &[1, D]);
    let names = MoeNames {
        gate: "router",
        experts: "experts",
        shared: "shared",
        shared_gate: "shared_gate",
    };
    let load = |tensors: &[(&str, &[i32])], shared| {
        let (arrays, weights, dir) = weights(tensors);
        let routing = Routing { norm_topk_prob: true, ..Routing::softmax(2) };
        let options = MoeOptions { shared, names, ..MoeOptions::new(D, 4, 16, routing) };
        let block = MoeBlock::load(&weights.root(), options).unwrap();
        weights.finish().unwrap();
        (arrays, block, dir)
    };
    let (arrays, block, _dir) = load(&routed, None);
    let silu = |x: f64| x * sigmoid(x);

    let x = normal(&[1, 7, D], 4);
    let alone = values(&block.forward(&x).unwrap());
    for gated in [false, true] {
        let tensors = [&routed[..], &shared, if gated { std::slice::from_ref(&gate) } else { &[] }];
        let options = SharedOptions { intermediate_size: 40, gated };
        let (arrays_now, block, _dir) = load(&tensors.concat(), Some(options));
        // the values depend on the place in the list alone
        assert!(arrays.iter().all(|(name, held)| values(held) == values(&arrays_now[name])));
        let get = |name: &str| values(&arrays_now[name]);
        let mut expected = alone.clone();
        for (x, y) in values(&x).chunks(D as usize).zip(expected.chunks_mut(D as usize)) {
            let a = product(x, &get("shared.gate_proj.weight"), None);
            let b = product(x, &get("shared.up_proj.weight"), None);
            let hidden: Vec<f64> = a.iter().zip(b).map(|(a, b)| silu(*a) * b).collect();
            let part = match gated {
                true => sigmoid(product(x, &get("shared_gate.weight"), None)[0]),
                false => 1.0,
            };
            let added = product(&hidden, &get("shared.down_proj.weight"), None);
            y.iter_mut().zip(added).for_each(|(y, a)| *y += part * a);
        }
        assert_close(&values(&block.forward(&x).unwrap()), &expected, "shared experts");
    }
}

#[test]
fn experts_with_biases_and_every_activation_do_as_plain_arithmetic_does() {
    const E: usize = 4;
    const N: usize = 16;
    let (e, n) = (E as i32, N as i32);
    let tensors: [(&str, &[i32]); 6] = [
        ("gate_proj.weight", &[e, n, D]),
        ("gate_proj.bias", &[e, n]),
        ("up_proj.weight", &[e, n, D]),
        ("up_proj.bias", &[e, n]),
        ("down_proj.weight", &[e, D, n]),
        ("down_proj.bias", &[e, D]),
    ];
    let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x.powi(3))).tanh());
    // a limit that inputs of this size reach
    let clipped = |g: f64, u: f64| {
        let (g, u) = (g.min(0.9), u.clamp(-0.9, 0.9));
        (u + 1.0) * g * sigmoid(1.702 * g)
    };
    type Gated<'a> = &'a dyn Fn(f64, f64) -> f64;
    let cases: [(Activation, Gated<'_>); 3] = [
        (Activation::Silu, &|g, u| g * sigmoid(g) * u),
        (Activation::GeluTanh, &|g, u| gelu(g) * u),
        (Activation::ClippedSwiglu { alpha: 1.702, limit: 0.9 }, &clipped),
    ];
    for (activation, gated) in cases {
        let (arrays, weights, _dir) = weights(&tensors);
        let options = GluOptions { bias: true, activation };
        let experts = SwitchGlu::load_with(&weights.root(), e, D, n, options).unwrap();
        weights.finish().unwrap();
        // expert `index` of a projection
        let project = |name: &str, index: usize, x: &[f64]| {
            let part = |name: String, size: usize| {
                values(&arrays[&name])[index * size..(index + 1) * size].to_vec()
            };
            let rows = if name == "down_proj" { D as usize } else { N };
            let w = part(format!("{name}.weight"), rows * x.len());
            product(x, &w, Some(&part(format!("{name}.bias"), rows)))
        };
        // as they come, and sorted by expert
        for tokens in [7, 40] {
            let x = normal(&[1, tokens, D], 4);
            let chosen: Vec<u32> = (0..2 * tokens as u32).map(|i| (i * 7 + i / 3) % 4).collect();
            let indices = Array::from_slice(&chosen, &[1, tokens, 2]).unwrap();
            let got = experts.forward(&x, &indices).unwrap();
            let mut expected = Vec::new();
            for (x, chosen) in values(&x).chunks(D as usize).zip(chosen.chunks(2)) {
                for index in chosen.iter().map(|index| *index as usize) {
                    let gate = project("gate_proj", index, x);
                    let up = project("up_proj", index, x);
                    let hidden: Vec<f64> = gate.iter().zip(up).map(|(g, u)| gated(*g, u)).collect();
                    expected.extend(project("down_proj", index, &hidden));
                }
            }
            assert_close(&values(&got), &expected, &format!("{activation:?}, {tokens} tokens"));
        }
    }
}

//! What single families need of the primitives: their routers, activations, biases and attention.

use anyhow::Result;
use mlx::fast::{self, Mask};
use mlx::primitives::{
    self, Activation, AttentionOptions, Glu, MoeRouter, Precision, RopeParts, Scoring,
};
use mlx::quantization::{self, Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops};

use super::{Case, NUM_INPUTS, Sum, Ways, bytes_per_weight, experts, random, weight};

const BF16: Dtype = Dtype::Bf16;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let glm = MoeRouter {
        descending: true,
        in_f32: true,
        selection_bias: true,
        normalize: true,
        epsilon: 1e-20,
        scale: 1.8,
        ..MoeRouter::new(64, 4, Scoring::Sigmoid)
    };
    let deepseek = MoeRouter { num_experts: 256, top_k: 8, num_groups: 8, top_k_groups: 4, ..glm };
    let gpt_oss = MoeRouter::new(32, 4, Scoring::SoftmaxOfTopK);
    for tokens in [1, 32] {
        cases.push(router("glm-4.7-flash", glm, tokens));
        cases.push(router("deepseek-v3.2", deepseek, tokens));
        cases.push(router("gpt-oss-20b", gpt_oss, tokens));
    }
    let mxfp4 = Quantization::default_of(Mode::Mxfp4);
    for tokens in [1, 8] {
        cases.push(biased_swiglu(tokens, mxfp4));
        cases.push(biased_swiglu(tokens, Quantization::affine(64, 4)));
    }
    for (rows, k, n) in [(1, 2048, 6144), (32, 2048, 6144), (1, 4096, 12288), (1, 256, 512)] {
        cases.push(mlp(rows, k, n));
    }
    for keys in [16, 128, 2000] {
        cases.push(sinks(keys));
        cases.push(latents(keys));
    }
    cases
}

fn many(shape: &[i32]) -> Result<Vec<Array>> {
    (0..NUM_INPUTS as u64).map(|i| random(shape, BF16, i)).collect()
}

/// A router whose experts come in descending order under a bias, or whose logits choose.
fn router(model: &str, router: MoeRouter, tokens: i32) -> Case {
    let MoeRouter { num_experts, top_k, num_groups, .. } = router;
    Case {
        name: format!("moe_router {model} {tokens} tok {BF16}"),
        bytes: f64::from(tokens * num_experts) * BF16.size() as f64,
        flops: 0.0,
        allowed: 0.0,
        build: Box::new(move || {
            let logits = many(&[tokens, num_experts])?;
            let fused = logits.clone();
            let bias = match router.selection_bias {
                true => Some(random(&[num_experts], Dtype::F32, 99)?),
                false => None,
            };
            let bias_of_fused = bias.clone();
            let join = |indices: &Array, scores: &Array| {
                ops::concatenate([&indices.astype(scores.dtype())?, scores], -1)
            };
            let number = |value: f32, like: &Array| Array::scalar_like(value, like);
            let stock = move |i: usize| {
                let x = &logits[i % NUM_INPUTS];
                let Some(bias) = &bias else {
                    let order = ops::argpartition(x, -top_k, -1)?;
                    let chosen = ops::slice_axis(&order, -1, num_experts - top_k, num_experts)?;
                    let weights = ops::take_along_axis(x, &chosen, -1)?;
                    return join(&chosen, &ops::softmax(&weights, -1, true)?);
                };
                let gates = ops::sigmoid(&x.astype(Dtype::F32)?)?;
                let mut scores = ops::add(&gates, bias)?;
                if num_groups > 1 {
                    let groups = ops::unflatten(&scores, -1, &[num_groups, -1])?;
                    let best = ops::sum(&ops::topk(&groups, 2, -1)?, &[-1], true)?;
                    let dropped = num_groups - router.top_k_groups;
                    let order = ops::argpartition(&best, dropped - 1, -2)?;
                    let worst = ops::slice_axis(&order, -2, 0, dropped)?;
                    let zero = number(0.0, &groups)?;
                    let kept = ops::put_along_axis(&groups, &worst, &zero, -2)?;
                    scores = ops::flatten(&kept, -2, -1)?;
                }
                let order = ops::argpartition(&ops::negative(&scores)?, top_k - 1, -1)?;
                let chosen = ops::slice_axis(&order, -1, 0, top_k)?;
                let weights = ops::take_along_axis(&gates, &chosen, -1)?;
                let sum = ops::sum(&weights, &[-1], true)?;
                let sum = ops::add(&sum, &number(router.epsilon, &sum)?)?;
                let weights = ops::divide(&weights, &sum)?;
                join(&chosen, &ops::multiply(&weights, &number(router.scale, &weights)?)?)
            };
            Ok(Ways {
                stock: Box::new(stock),
                exact: Box::new(move |i| {
                    let x = &fused[i % NUM_INPUTS];
                    let bias = bias_of_fused.as_ref();
                    let (indices, scores) = primitives::moe_router(x, &router, bias, None)?;
                    join(&indices, &scores)
                }),
                fast: None,
            })
        }),
    }
}

/// gpt-oss's gate and up projections: biases, clipped activation.
fn biased_swiglu(tokens: i32, q: Quantization) -> Case {
    const SIZE: i32 = 2880;
    const EXPERTS: i32 = 16;
    const TOP_K: i32 = 4;
    const ALPHA: f32 = 1.702;
    const LIMIT: f32 = 7.0;
    let weights = 2.0 * f64::from(SIZE) * f64::from(SIZE);
    Case {
        name: format!("gather_qmm_swiglu gpt-oss-20b {tokens} tok {BF16} {}", super::short(q)),
        bytes: super::touched(EXPERTS, tokens * TOP_K) * weights * bytes_per_weight(q, BF16),
        flops: 2.0 * weights * f64::from(tokens * TOP_K),
        allowed: Sum::Gated(SIZE).allowed(BF16),
        build: Box::new(move || {
            let [gate, up] = [1, 2].map(|seed| weight(&[EXPERTS, SIZE, SIZE], BF16, q, seed));
            let (gate, up) = (gate?, up?);
            let biases = [random(&[EXPERTS, SIZE], BF16, 4)?, random(&[EXPERTS, SIZE], BF16, 5)?];
            let x = random(&[tokens, 1, 1, SIZE], BF16, 3)?;
            let indices = experts(tokens, TOP_K, EXPERTS)?;
            let fused = |precision| {
                let (x, gate, up) = (x.clone(), gate.clone(), up.clone());
                let (biases, indices) = (biases.clone(), indices.clone());
                move |i: usize| {
                    let index = Some(&indices[i % NUM_INPUTS]);
                    let activation = Activation::ClippedSwiglu { alpha: ALPHA, limit: LIMIT };
                    let biases = Some([&biases[0], &biases[1]]);
                    let glu = Glu { biases, activation, ..Glu::new(&gate, &up) };
                    primitives::gather_qmm_swiglu(&x, glu, None, index, true, false, precision)
                }
            };
            Ok(Ways {
                exact: Box::new(fused(Precision::Exact)),
                fast: Some(Box::new(fused(Precision::Fast))),
                stock: Box::new(move |i| {
                    let index = &indices[i % NUM_INPUTS];
                    let project = |w: &QuantizedWeight, bias: &Array| {
                        let y = quantization::gather_qmm(&x, w, None, Some(index), true, false)?;
                        ops::add(&y, &ops::expand_dims(&ops::take(bias, index, 0)?, &[-2])?)
                    };
                    let (gate, up) = (project(&gate, &biases[0])?, project(&up, &biases[1])?);
                    ops::clipped_swiglu(&gate, &up, ALPHA, LIMIT)
                }),
            })
        }),
    }
}

fn mlp(rows: i32, k: i32, n: i32) -> Case {
    let q = Quantization::affine(64, 4);
    let weights = 2.0 * f64::from(k) * f64::from(n);
    Case {
        name: format!("swiglu_mlp {rows}x{k}x{n} {BF16} {}", super::short(q)),
        bytes: weights * bytes_per_weight(q, BF16),
        flops: 2.0 * weights * f64::from(rows),
        allowed: Sum::Gated(k).allowed(BF16),
        build: Box::new(move || {
            let (gate, up) = (weight(&[n, k], BF16, q, 1)?, weight(&[n, k], BF16, q, 2)?);
            let x = random(&[1, rows, k], BF16, 3)?;
            let fused = |precision| {
                let (x, gate, up) = (x.clone(), gate.clone(), up.clone());
                move |_: usize| primitives::swiglu_mlp(&x, Glu::new(&gate, &up), precision)
            };
            Ok(Ways {
                exact: Box::new(fused(Precision::Exact)),
                fast: Some(Box::new(fused(Precision::Fast))),
                stock: Box::new(move |_| {
                    let project = |w| quantization::quantized_matmul(&x, w, true);
                    ops::swiglu(&project(&gate)?, &project(&up)?)
                }),
            })
        }),
    }
}

/// gpt-oss's decode step over `keys` keys.
fn sinks(keys: i32) -> Case {
    const SCALE: f32 = 0.125;
    let (heads, kv_heads, size) = (64, 8, 64);
    let elements = 2.0 * f64::from(kv_heads * size) * f64::from(keys);
    Case {
        name: format!("attention sinks gpt-oss-20b {keys} keys {BF16}"),
        bytes: elements * BF16.size() as f64,
        flops: 2.0 * elements * f64::from(heads / kv_heads),
        allowed: Sum::Attention(SCALE * SCALE * size as f32).allowed(BF16),
        build: Box::new(move || {
            let q = many(&[1, heads, 1, size])?;
            let cache = [1, kv_heads, keys, size];
            let (k, v) = (random(&cache, BF16, 50)?, random(&cache, BF16, 51)?);
            let sinks = random(&[heads], BF16, 52)?;
            let fused = |precision| {
                let (q, k, v, sinks) = (q.clone(), k.clone(), v.clone(), sinks.clone());
                move |i: usize| {
                    let sinks = Some(&sinks);
                    let options = AttentionOptions { sinks, ..AttentionOptions::default() };
                    primitives::attention(&q[i % NUM_INPUTS], &k, &v, SCALE, options, precision)
                }
            };
            Ok(Ways {
                exact: Box::new(fused(Precision::Exact)),
                fast: Some(Box::new(fused(Precision::Fast))),
                stock: Box::new(move |i| {
                    let (q, mask) = (&q[i % NUM_INPUTS], Mask::None);
                    fast::scaled_dot_product_attention(q, &k, &v, SCALE, mask, Some(&sinks))
                }),
            })
        }),
    }
}

/// GLM-4.7-Flash's decode step over `keys` latents.
fn latents(keys: i32) -> Case {
    const SCALE: f32 = 0.0625;
    let (heads, rank, rope) = (20, 512, 64);
    let elements = f64::from(2 * rank + rope) * f64::from(keys);
    Case {
        name: format!("attention latents glm-4.7-flash {keys} keys {BF16}"),
        bytes: f64::from(rank + rope) * f64::from(keys) * BF16.size() as f64,
        flops: 2.0 * elements * f64::from(heads),
        allowed: Sum::Attention(SCALE * SCALE * (rank + rope) as f32).allowed(BF16),
        build: Box::new(move || {
            let (q, q_rope) =
                (many(&[1, heads, 1, rank])?, random(&[1, heads, 1, rope], BF16, 60)?);
            let latent = random(&[1, 1, keys, rank], BF16, 61)?;
            let k_rope = [random(&[1, 1, keys, rope], BF16, 62)?];
            let fused = |precision| {
                let (q, q_rope) = (q.clone(), q_rope.clone());
                let (latent, k_rope) = (latent.clone(), k_rope.clone());
                move |i: usize| {
                    let rope = Some(RopeParts { q: &q_rope, keys: &k_rope });
                    let options = AttentionOptions { rope, ..AttentionOptions::default() };
                    let q = &q[i % NUM_INPUTS];
                    primitives::attention(q, &latent, &latent, SCALE, options, precision)
                }
            };
            Ok(Ways {
                exact: Box::new(fused(Precision::Exact)),
                fast: Some(Box::new(fused(Precision::Fast))),
                stock: Box::new(move |i| {
                    let scaled = ops::multiply(&q_rope, &Array::scalar_like(SCALE, &q_rope)?)?;
                    let scores = ops::matmul(&scaled, &ops::swapaxes(&k_rope[0], -1, -2)?)?;
                    let (q, mask) = (&q[i % NUM_INPUTS], Mask::Array(&scores));
                    fast::scaled_dot_product_attention(q, &latent, &latent, SCALE, mask, None)
                }),
            })
        }),
    }
}

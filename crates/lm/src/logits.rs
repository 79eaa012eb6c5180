//! How far the logits of two ways to run one model are from each other, after the same tokens.

use mlx::{Array, Dtype};

use crate::cache::CacheOptions;
use crate::error::{Error, Result};
use crate::generate::PREFILL_STEP;
use crate::models::{LoadedModel, Model};
use crate::patch::{PatchOptions, patch, unpatch};
use crate::step::Step;

/// One way to run the model.
#[derive(Debug, Clone)]
pub struct Side<'a> {
    /// What is fused; `None`: nothing.
    pub patch: Option<&'a PatchOptions>,
    /// How keys and values are kept.
    pub cache: CacheOptions,
}

/// What the comparison came to, over all positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitDistance {
    /// Positions compared: one for each token that follows the prompt.
    pub positions: usize,
    /// Largest absolute difference of any logit.
    pub max_abs: f64,
    /// Mean absolute difference.
    pub mean_abs: f64,
    /// Mean Kullback-Leibler divergence of the other's distribution from the reference's, in nats.
    pub mean_kl: f64,
    /// How many likeliest tokens were looked at.
    pub top_k: usize,
    /// Share of the reference's `top_k` likeliest tokens that are among the other's.
    pub top_k_agreement: f64,
    /// Share of positions with the same likeliest token.
    pub top_1_agreement: f64,
    /// Positions where the reference's two likeliest are no further apart than one rounding of the activations' type:
    /// where a different order of additions may well say another token.
    pub near_ties: usize,
}

/// Reads `prompt`, then feeds `tokens` one by one both ways, and compares the logits that each of them was chosen from.
/// The model is left unpatched.
///
/// - `tokens`: what the reference generated after the prompt
///
/// # Errors
/// `Argument` for no tokens, `top_k` of 0 or beyond the vocabulary; those of [`patch`].
pub fn logit_distance(
    loaded: &mut LoadedModel,
    prompt: &[u32],
    tokens: &[u32],
    sides: [Side<'_>; 2],
    top_k: usize,
) -> Result<LogitDistance> {
    if tokens.is_empty() || prompt.is_empty() {
        return Err(Error::argument("tokens", "none", "there is nothing to compare"));
    }
    let vocab_size = loaded.model.vocab_size() as usize;
    if top_k == 0 || top_k > vocab_size {
        let reason = format!("expected 1 to {vocab_size}, the size of the vocabulary");
        return Err(Error::argument("top_k", top_k, reason));
    }
    let epsilon = rounding(loaded.model.activation_dtype()?);
    let both = sides.map(|side| {
        let logits = match side.patch {
            None => {
                unpatch(loaded);
                run(loaded.model.as_ref(), prompt, tokens, side.cache)
            }
            Some(options) => match patch(loaded, options) {
                Ok(_) => run(loaded.model.as_ref(), prompt, tokens, side.cache),
                Err(error) => Err(error),
            },
        };
        unpatch(loaded);
        logits
    });
    let [reference, other] = both;
    Ok(compare(&reference?, &other?, top_k, epsilon))
}

/// The logits that each of `tokens` was chosen from, in `float32`.
fn run(
    model: &dyn Model,
    prompt: &[u32],
    tokens: &[u32],
    options: CacheOptions,
) -> Result<Vec<Vec<f32>>> {
    options.check()?;
    let mut cache = options.limit(model.make_cache());
    options.check_for(&cache)?;
    let (head, last) = prompt.split_at(prompt.len() - 1);
    let decoded = last.iter().chain(&tokens[..tokens.len() - 1]).map(std::slice::from_ref);
    let mut all = Vec::with_capacity(tokens.len());
    for (number, piece) in head.chunks(PREFILL_STEP).chain(decoded).enumerate() {
        let input = Array::from_slice(piece, &[1, piece.len() as i32])?;
        let logits = model.forward(&Step::new(&input), &mut [&mut cache])?; // [1, 1, V]
        if let Some(quantized) = options.quantized {
            cache.quantize(quantized)?;
        }
        mlx::eval(cache.arrays())?;
        if number >= head.len().div_ceil(PREFILL_STEP) {
            all.push(logits.astype(Dtype::F32)?.to_vec::<f32>()?);
        }
    }
    Ok(all)
}

/// The distance from 1 to the next number of a type.
fn rounding(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 => f64::from(half::bf16::EPSILON),
        Dtype::F16 => f64::from(half::f16::EPSILON),
        _ => f64::from(f32::EPSILON),
    }
}

fn compare(
    reference: &[Vec<f32>],
    other: &[Vec<f32>],
    top_k: usize,
    epsilon: f64,
) -> LogitDistance {
    let positions = reference.len().min(other.len());
    let (mut max_abs, mut sum_abs, mut sum_kl, mut count) = (0.0f64, 0.0, 0.0, 0usize);
    let (mut shared, mut same, mut near_ties) = (0usize, 0usize, 0usize);
    for (a, b) in reference.iter().zip(other) {
        for (x, y) in a.iter().zip(b).map(|(x, y)| (f64::from(*x), f64::from(*y))) {
            // logits that a model rules out are infinite on both sides
            let distance = if x == y { 0.0 } else { (x - y).abs() };
            max_abs = max_abs.max(distance);
            sum_abs += distance;
            count += 1;
        }
        sum_kl += divergence(a, b);
        let (best, others) = (likeliest(a, top_k.max(2)), likeliest(b, top_k));
        shared += best[..top_k].iter().filter(|token| others.contains(token)).count();
        same += usize::from(best[0] == others[0]);
        let (first, second) = (f64::from(a[best[0]]), f64::from(a[best[1.min(best.len() - 1)]]));
        near_ties += usize::from(first - second <= epsilon * first.abs().max(second.abs()));
    }
    let each = |sum: f64, n: usize| sum / n.max(1) as f64;
    LogitDistance {
        positions,
        max_abs,
        mean_abs: each(sum_abs, count),
        mean_kl: each(sum_kl, positions).max(0.0),
        top_k,
        top_k_agreement: each(shared as f64, positions * top_k),
        top_1_agreement: each(same as f64, positions),
        near_ties,
    }
}

/// The tokens with the largest logits, largest first; equals in the order of their ids.
fn likeliest(logits: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let count = count.min(order.len());
    let descending = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, descending);
        order.truncate(count);
    }
    order.sort_by(descending);
    order
}

fn divergence(reference: &[f32], other: &[f32]) -> f64 {
    let (a, b) = (log_sum_exp(reference), log_sum_exp(other));
    let term = |(x, y): (&f32, &f32)| {
        let (log_p, log_q) = (f64::from(*x) - a, f64::from(*y) - b);
        let p = log_p.exp();
        if p > 0.0 { p * (log_p - log_q) } else { 0.0 }
    };
    reference.iter().zip(other).map(term).sum()
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - most).exp()).sum();
    f64::from(most) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_of_known_logits() {
        let reference = [vec![0.0, 3.0, 1.0, 2.0], vec![5.0, 5.0, 0.0, 0.0]];
        let other = [vec![0.0, 3.0, 2.0, 1.0], vec![5.0, 5.0, 0.0, 0.0]];
        let found = compare(&reference, &other, 2, f64::from(half::bf16::EPSILON));
        assert_eq!((found.positions, found.max_abs, found.mean_abs), (2, 1.0, 0.25));
        assert_eq!((found.top_1_agreement, found.top_k_agreement), (1.0, 0.75));
        assert_eq!(found.near_ties, 1, "5 and 5");
        // p = softmax(0, 3, 1, 2): the sum of p times the difference of the logarithms
        let p: Vec<f64> = [0.0f64, 3.0, 1.0, 2.0].iter().map(|x| x.exp()).collect();
        let kl = (p[3] - p[2]) / p.iter().sum::<f64>();
        assert!((found.mean_kl - kl / 2.0).abs() < 1e-12, "{} {kl}", found.mean_kl);
    }

    #[test]
    fn likeliest_are_in_order_and_equals_by_id() {
        assert_eq!(likeliest(&[1.0, 4.0, 4.0, 2.0], 3), [1, 2, 3]);
        assert_eq!(likeliest(&[1.0], 5), [0]);
    }
}

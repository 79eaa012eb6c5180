//! How far logits are from those of stock MLX, for `zmlx validate`.

use std::fmt;

use serde::Serialize;
use zmlx::lm::{self, LoadedModel, Side, ValidateOptions, Validation};

use super::bench_run::top_k;

/// Over all prompts.
#[derive(Debug, Serialize)]
pub(super) struct Logits {
    positions: usize,
    max_abs: f64,
    mean_abs: f64,
    mean_kl: f64,
    top_k: usize,
    top_k_agreement: f64,
    top_1_agreement: f64,
    near_ties: usize,
}

/// Feeds the reference's tokens of the first run to the model unpatched and patched.
pub(super) fn compare(
    loaded: &mut LoadedModel,
    validation: &Validation,
    prompts: &[Vec<u32>],
    options: &ValidateOptions,
) -> anyhow::Result<Logits> {
    let top_k = top_k(loaded);
    let cache = options.generate.cache;
    let mut all = Logits {
        positions: 0,
        max_abs: 0.0,
        mean_abs: 0.0,
        mean_kl: 0.0,
        top_k,
        top_k_agreement: 0.0,
        top_1_agreement: 0.0,
        near_ties: 0,
    };
    for (run, prompt) in validation.runs.iter().zip(prompts) {
        let sides = [Side { patch: None, cache }, Side { patch: Some(&options.patch), cache }];
        let found = lm::logit_distance(loaded, prompt, &run.reference, sides, top_k)?;
        let weight = found.positions as f64;
        all.positions += found.positions;
        all.near_ties += found.near_ties;
        all.max_abs = all.max_abs.max(found.max_abs);
        all.mean_abs += weight * found.mean_abs;
        all.mean_kl += weight * found.mean_kl;
        all.top_k_agreement += weight * found.top_k_agreement;
        all.top_1_agreement += weight * found.top_1_agreement;
    }
    let count = all.positions.max(1) as f64;
    for sum in
        [&mut all.mean_abs, &mut all.mean_kl, &mut all.top_k_agreement, &mut all.top_1_agreement]
    {
        *sum /= count;
    }
    Ok(all)
}

impl fmt::Display for Logits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { positions, max_abs, mean_abs, mean_kl, top_k, near_ties, .. } = self;
        let (top, one) = (100.0 * self.top_k_agreement, 100.0 * self.top_1_agreement);
        write!(
            f,
            "largest distance {max_abs:.3e}, mean {mean_abs:.1e}, KL {mean_kl:.1e}; top {top_k} agree by {top:.1} %, \
             the likeliest by {one:.1} %; {near_ties} near ties at {positions} positions"
        )
    }
}

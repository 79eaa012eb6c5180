//! Token-by-token comparison of the patched model with the unpatched one, from the same weights in memory.

use std::ops::ControlFlow;

use mlx::{Array, Dtype};

use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, PREFILL_STEP, generate};
use crate::models::{LoadedModel, Model};
use crate::patch::{PatchOptions, PatchReport, patch, unpatch};
use crate::step::Step;

/// What to compare.
#[derive(Debug, Clone)]
pub struct ValidateOptions {
    /// How tokens are generated. Seeded sampling compares as well as greedy decoding does.
    pub generate: GenerateOptions,
    /// Times each prompt is run.
    pub runs: usize,
    /// How to patch.
    pub patch: PatchOptions,
}

/// Where two token sequences part.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// Number of the prompt.
    pub prompt: usize,
    /// Number of the run, counted over all prompts.
    pub run: usize,
    /// Number of the token.
    pub index: usize,
    /// What the reference says; `None` where it has ended.
    pub expected: Option<u32>,
    /// What the patched model says; `None` where it has ended.
    pub got: Option<u32>,
    /// The reference model's logit of `expected` minus that of `got`: how close the call was.
    pub logit_margin: Option<f32>,
}

/// One prompt run both ways.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// Number of the prompt.
    pub prompt: usize,
    /// Tokens that agree from the start.
    pub agreeing: usize,
    /// Tokens of the reference.
    pub reference: Vec<u32>,
    /// Tokens of the patched model.
    pub patched: Vec<u32>,
    /// Decode speed of the unpatched model.
    pub baseline_decode_tok_per_s: Option<f64>,
    /// Decode speed of the patched model.
    pub patched_decode_tok_per_s: Option<f64>,
    /// Prefill speed of the unpatched model.
    pub baseline_prompt_tok_per_s: f64,
    /// Prefill speed of the patched model.
    pub patched_prompt_tok_per_s: f64,
}

/// What the unpatched model said when it was asked once more. One that disagrees with itself proves nothing about a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeatability {
    /// Prompts on which the patched model differed, each run once more without the patch.
    pub runs: usize,
    /// Those on which the unpatched model then differed from itself.
    pub disagreements: usize,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Validation {
    /// What the patch did.
    pub patch: PatchReport,
    /// Every run, in order.
    pub runs: Vec<RunReport>,
    /// Pairs of tokens looked at.
    pub tokens_compared: usize,
    /// The first difference.
    pub first_divergence: Option<Divergence>,
    /// Whether the unpatched model repeats itself, where its tokens are the reference and some differ.
    pub repeatability: Option<Repeatability>,
    /// Median decode speed of the unpatched model.
    pub baseline_decode_tok_per_s: Option<f64>,
    /// Median decode speed of the patched model.
    pub patched_decode_tok_per_s: Option<f64>,
}

impl Validation {
    /// Whether every token of every run agrees.
    pub fn identical(&self) -> bool {
        self.first_divergence.is_none()
    }

    /// Patched over baseline decode speed.
    pub fn speedup(&self) -> Option<f64> {
        Some(self.patched_decode_tok_per_s? / self.baseline_decode_tok_per_s?)
    }
}

/// Runs every prompt unpatched and patched in turn and compares each token. The model is left unpatched. Before a difference
/// counts against the patch, the unpatched model is asked once more.
///
/// `reference`, one token sequence per prompt, replaces the unpatched model's tokens as what is expected; speeds
/// are still measured against the unpatched model. `on_run` sees each run as it ends.
///
/// # Errors
/// `Argument` without prompts, runs or tokens to compare; those of [`patch`] and [`generate`].
pub fn validate(
    loaded: &mut LoadedModel,
    prompts: &[Vec<u32>],
    reference: Option<&[Vec<u32>]>,
    options: &ValidateOptions,
    on_run: &mut dyn FnMut(&RunReport),
) -> Result<Validation> {
    for (name, count) in [
        ("prompts", prompts.len()),
        ("runs", options.runs),
        ("max_tokens", options.generate.max_tokens),
    ] {
        if count == 0 {
            return Err(Error::argument(name, 0, "there is nothing to compare"));
        }
    }
    if let Some(reference) = reference
        && reference.len() != prompts.len()
    {
        let reason = format!("expected one per prompt ({})", prompts.len());
        return Err(Error::argument("reference", reference.len(), reason));
    }
    let result = compare(loaded, prompts, reference, options, on_run);
    unpatch(loaded);
    result
}

fn compare(
    loaded: &mut LoadedModel,
    prompts: &[Vec<u32>],
    reference: Option<&[Vec<u32>]>,
    options: &ValidateOptions,
    on_run: &mut dyn FnMut(&RunReport),
) -> Result<Validation> {
    let mut runs = Vec::new();
    let mut first_divergence = None;
    let mut repeatability: Option<Repeatability> = None;
    let mut report = patch(loaded, &options.patch)?;
    for _ in 0..options.runs {
        for (i, prompt) in prompts.iter().enumerate() {
            let mut keep_going = |_| ControlFlow::Continue(());
            unpatch(loaded);
            let baseline =
                generate(loaded.model.as_ref(), prompt, &options.generate, &mut keep_going)?;
            report = patch(loaded, &options.patch)?;
            let patched =
                generate(loaded.model.as_ref(), prompt, &options.generate, &mut keep_going)?;

            let expected = reference.map_or(&baseline.token_ids, |all| &all[i]);
            let got = &patched.token_ids;
            let agreeing = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
            let differs = agreeing < expected.len().max(got.len());
            if differs && reference.is_none() {
                unpatch(loaded);
                let again =
                    generate(loaded.model.as_ref(), prompt, &options.generate, &mut keep_going)?;
                let seen = repeatability.get_or_insert(Repeatability { runs: 0, disagreements: 0 });
                seen.runs += 1;
                seen.disagreements += usize::from(again.token_ids != baseline.token_ids);
            }
            if differs && first_divergence.is_none() {
                unpatch(loaded);
                let (a, b) = (expected.get(agreeing).copied(), got.get(agreeing).copied());
                let prefix = &expected[..agreeing];
                first_divergence = Some(Divergence {
                    prompt: i,
                    run: runs.len(),
                    index: agreeing,
                    expected: a,
                    got: b,
                    logit_margin: match (a, b) {
                        (Some(a), Some(b)) => {
                            Some(margin(loaded.model.as_ref(), prompt, prefix, a, b)?)
                        }
                        _ => None,
                    },
                });
            }
            let run = RunReport {
                prompt: i,
                agreeing,
                reference: expected.clone(),
                baseline_decode_tok_per_s: baseline.decode_tok_per_s,
                patched_decode_tok_per_s: patched.decode_tok_per_s,
                baseline_prompt_tok_per_s: baseline.prompt_tok_per_s,
                patched_prompt_tok_per_s: patched.prompt_tok_per_s,
                patched: patched.token_ids,
            };
            on_run(&run);
            runs.push(run);
        }
    }
    Ok(Validation {
        patch: report,
        tokens_compared: runs.iter().map(|r| r.reference.len().max(r.patched.len())).sum(),
        first_divergence,
        repeatability,
        baseline_decode_tok_per_s: median(runs.iter().filter_map(|r| r.baseline_decode_tok_per_s)),
        patched_decode_tok_per_s: median(runs.iter().filter_map(|r| r.patched_decode_tok_per_s)),
        runs,
    })
}

/// Logit of `a` minus logit of `b` after `prompt` and `prefix`, read and decoded as generation does it.
fn margin(model: &dyn Model, prompt: &[u32], prefix: &[u32], a: u32, b: u32) -> Result<f32> {
    let mut cache = model.make_cache();
    let (head, last) = prompt.split_at(prompt.len() - 1);
    let decoded = last.iter().chain(prefix).map(std::slice::from_ref);
    let mut logits = None;
    for tokens in head.chunks(PREFILL_STEP).chain(decoded) {
        let tokens = Array::from_slice(tokens, &[1, tokens.len() as i32])?;
        let out = model.forward(&Step::new(&tokens), &mut [&mut cache])?; // [1, 1, V]
        mlx::eval(cache.arrays())?;
        logits = Some(out);
    }
    let Some(logits) = logits else { return Ok(f32::NAN) };
    let logits = logits.astype(Dtype::F32)?.to_vec::<f32>()?;
    let logit = |token: u32| logits.get(token as usize).copied().unwrap_or(f32::NAN);
    Ok(logit(a) - logit(b))
}

/// The middle value, or the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (n, half) = (values.len(), values.len() / 2);
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(values[half]),
        _ => Some((values[half - 1] + values[half]) / 2.0),
    }
}

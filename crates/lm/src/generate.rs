//! Token by token, each step's graph built while the one before still runs.

use std::ops::ControlFlow;
use std::time::Instant;

use mlx::{Array, memory};

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::layers::logprobs;
use crate::models::Model;
use crate::sampler::{Sampler, Sampling};
use crate::step::Step;

/// Prompt tokens per forward pass, mlx-lm's default.
pub const PREFILL_STEP: usize = 2048;
/// Tokens between two clearings of MLX's buffer cache while decoding, mlx-lm's value.
const CLEAR_CACHE_EVERY: usize = 256;

/// What to generate and when to stop.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end generation, usually [`ModelConfig::eos_token_ids`](crate::config::ModelConfig).
    pub eos_token_ids: Vec<u32>,
    /// Go on to `max_tokens` whatever comes.
    pub ignore_eos: bool,
    /// Prompt tokens per forward pass.
    pub prefill_step: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: Sampling::default(),
            eos_token_ids: Vec::new(),
            ignore_eos: false,
            prefill_step: PREFILL_STEP,
        }
    }
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A token of `eos_token_ids`, which is the last one returned.
    Eos,
    /// `max_tokens` were generated.
    Length,
    /// The callback said so.
    Callback,
}

/// One generated token, as the callback sees it.
#[derive(Debug, Clone, Copy)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// How many came before it.
    pub index: usize,
    /// Whether it ends generation and so is no part of the text.
    pub is_eos: bool,
}

/// What was generated, and how fast.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The tokens, the one that ended generation included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Milliseconds until the first token.
    pub ttft_ms: f64,
    /// Prompt tokens by the time until the first token.
    pub prompt_tok_per_s: f64,
    /// (generated - 1) / (time of last token - time of first token); `None` below two tokens.
    pub decode_tok_per_s: Option<f64>,
    /// Most bytes MLX held at once since its peak was last reset.
    pub peak_memory_bytes: usize,
}

/// Generates after `prompt`, calling `on_token` for each token as it comes.
///
/// # Errors
/// `Argument` for an empty prompt, an id beyond the vocabulary or bad sampling settings; `Mlx`.
/// # Source
/// mlx-lm `generate.py` (`generate_step`).
pub fn generate(
    model: &dyn Model,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
) -> Result<Generation> {
    let mut sampler = Sampler::new(options.sampling, model.vocab_size())?;
    let mut cache = model.make_cache();
    let start = Instant::now();
    let last = prefill(model, prompt, options.prefill_step, &mut cache)?;

    let mut token_ids = Vec::with_capacity(options.max_tokens.min(4096));
    let mut finish_reason = FinishReason::Length;
    let (mut first_at, mut last_at) = (start, start);
    let mut next = None;
    if options.max_tokens > 0 {
        next = Some(step(model, &mut sampler, &last, &mut cache)?);
    }
    while let Some(token) = next.take() {
        let index = token_ids.len();
        if index + 1 < options.max_tokens {
            next = Some(step(model, &mut sampler, &token, &mut cache)?);
        }
        let id: u32 = token.item()?;
        last_at = Instant::now();
        if index == 0 {
            first_at = last_at;
        }
        token_ids.push(id);
        let is_eos = !options.ignore_eos && options.eos_token_ids.contains(&id);
        let flow = on_token(Token { id, index, is_eos });
        if is_eos {
            finish_reason = FinishReason::Eos;
            break;
        }
        if flow.is_break() {
            finish_reason = FinishReason::Callback;
            break;
        }
        if index % CLEAR_CACHE_EVERY == 0 {
            memory::clear_cache()?;
        }
    }
    // The step in flight would otherwise run on beside whatever comes next.
    if let Some(unwanted) = next {
        unwanted.eval()?;
    }

    let ttft = (first_at - start).as_secs_f64();
    let decode = (last_at - first_at).as_secs_f64();
    let decoded = token_ids.len().saturating_sub(1);
    Ok(Generation {
        finish_reason,
        prompt_tokens: prompt.len(),
        ttft_ms: ttft * 1e3,
        prompt_tok_per_s: if ttft > 0.0 { prompt.len() as f64 / ttft } else { 0.0 },
        decode_tok_per_s: (decoded > 0 && decode > 0.0).then(|| decoded as f64 / decode),
        peak_memory_bytes: memory::peak_bytes()?,
        token_ids,
    })
}

/// Runs all of `prompt` but its last token through the model, in pieces, and returns that last token as `[1]`.
///
/// # Errors
/// `Argument` for an empty prompt or an id beyond the vocabulary; `Mlx`.
pub(crate) fn prefill(
    model: &dyn Model,
    prompt: &[u32],
    prefill_step: usize,
    cache: &mut Cache,
) -> Result<Array> {
    let vocab_size = model.vocab_size();
    if let Some(id) = prompt.iter().find(|id| **id >= vocab_size) {
        let reason = format!("the vocabulary has {vocab_size} tokens");
        return Err(Error::argument("prompt token", id, reason));
    }
    let Some((last, head)) = prompt.split_last() else {
        return Err(Error::argument("prompt", "empty", "expected at least one token"));
    };
    for piece in head.chunks(prefill_step.max(1)) {
        let tokens = Array::from_slice(piece, &[1, piece.len() as i32])?;
        model.forward(&Step::new(&tokens), &mut [&mut *cache])?;
        mlx::eval(cache.arrays())?;
        memory::clear_cache()?;
    }
    Ok(Array::from_slice(&[*last], &[1])?)
}

/// Starts computing the token that follows `token`.
fn step(
    model: &dyn Model,
    sampler: &mut Sampler,
    token: &Array,
    cache: &mut Cache,
) -> Result<Array> {
    let logits = next_logits(model, token, cache)?;
    let next = match sampler.is_greedy() {
        true => model.head().greedy(&logits)?,
        false => sampler.sample(&logprobs(&logits)?)?,
    };
    mlx::async_eval([&next])?;
    Ok(next)
}

/// Logits `[1, V]` of what follows `token` `[1]`.
pub(crate) fn next_logits(model: &dyn Model, token: &Array, cache: &mut Cache) -> Result<Array> {
    let token = token.reshape(&[1, 1])?;
    let logits = model.forward(&Step::new(&token), &mut [cache])?; // [1, 1, V]
    Ok(logits.reshape(&[1, logits.dim(-1)])?)
}

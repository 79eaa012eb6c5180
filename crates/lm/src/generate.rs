//! A whole generation in one call, and what every generation is told and tells.

use std::ops::ControlFlow;

use crate::cache::CacheOptions;
use crate::decoder::Decoder;
use crate::error::Result;
use crate::models::Model;
use crate::processors::Processing;
use crate::sampler::Sampling;

/// Prompt tokens per forward pass, mlx-lm's default.
pub const PREFILL_STEP: usize = 2048;

/// What to generate and when to stop.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What changes the logits before.
    pub processing: Processing,
    /// Tokens that end generation, usually [`ModelConfig::eos_token_ids`](crate::config::ModelConfig).
    pub eos_token_ids: Vec<u32>,
    /// Go on to `max_tokens` whatever comes.
    pub ignore_eos: bool,
    /// Prompt tokens per forward pass.
    pub prefill_step: usize,
    /// Limits of what is remembered.
    pub cache: CacheOptions,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: Sampling::default(),
            processing: Processing::default(),
            eos_token_ids: Vec::new(),
            ignore_eos: false,
            prefill_step: PREFILL_STEP,
            cache: CacheOptions::default(),
        }
    }
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A token of `eos_token_ids`, which is the last one returned.
    Eos,
    /// A stop string was found in the text.
    StopString,
    /// `max_tokens` were generated.
    Length,
    /// Whoever asked wants no more.
    Cancelled,
}

impl FinishReason {
    /// As chat APIs say it: `stop`, `length` or `cancelled`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eos | Self::StopString => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One generated token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Those of them that an earlier sequence's cache held.
    pub reused_tokens: usize,
    /// Milliseconds until the first token.
    pub ttft_ms: f64,
    /// Prompt tokens that were read by the time until the first token.
    pub prompt_tok_per_s: f64,
    /// (generated - 1) / (time of last token - time of first token); `None` below two tokens.
    pub decode_tok_per_s: Option<f64>,
    /// Most bytes MLX held at once since its peak was last reset.
    pub peak_memory_bytes: usize,
    /// Why steps were not recorded though the model is patched for it (`recorded_step`); `None` otherwise.
    pub not_recorded: Option<String>,
}

/// Generates after `prompt`, calling `on_token` for each token as it comes. [`Decoder`] is the same as an iterator.
///
/// # Errors
/// `Argument` for an empty prompt, an id beyond the vocabulary or bad settings; `Mlx`.
pub fn generate(
    model: &dyn Model,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
) -> Result<Generation> {
    let mut decoder = Decoder::new(model, prompt, options)?;
    while let Some(token) = decoder.next().transpose()? {
        if on_token(token).is_break() && !token.is_eos {
            decoder.stop(FinishReason::Cancelled);
        }
    }
    Ok(decoder.finish()?.0)
}

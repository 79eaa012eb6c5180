//! One sequence, token by token, each step's graph built while the one before still runs.

use std::ops::ControlFlow;
use std::time::Instant;

use mlx::memory;

use crate::error::Result;
use crate::generate::{FinishReason, GenerateOptions, Generation, Token};
use crate::models::Model;
use crate::sequence::{self, Sequence};
pub use crate::sequence::{Progress, PromptCache};

/// Tokens between two clearings of MLX's buffer cache while decoding, mlx-lm's value.
pub(crate) const CLEAR_CACHE_EVERY: usize = 256;

/// Generates one sequence: an iterator of tokens that ends after the last one.
///
/// Whoever wants to see the prompt being read calls [`Decoder::prefill`] first; otherwise the first token does it.
/// [`Decoder::finish`] tells what came out and hands back the cache, which a later prompt that begins with the same
/// tokens continues.
///
/// ```no_run
/// # fn main() -> zmlx_lm::Result<()> {
/// use zmlx_lm::{Decoder, GenerateOptions, TextStream, Tokenizer};
///
/// let folder = std::path::Path::new("models/demo");
/// let (loaded, tokenizer) = (zmlx_lm::load(folder)?, Tokenizer::load(folder)?);
/// let options = GenerateOptions { max_tokens: 64, ..GenerateOptions::default() };
///
/// let prompt = tokenizer.encode_prompt("The shell reads commands from")?;
/// let mut decoder = Decoder::new(loaded.model.as_ref(), &prompt, &options)?;
/// let mut text = TextStream::new(&tokenizer, &["\n\n".to_owned()])?;
/// for token in &mut decoder {
///     print!("{}", text.push(token?)?);
///     if text.stopped().is_some() {
///         break;
///     }
/// }
/// println!("{}", text.finish()?);
/// let (generation, cache) = decoder.finish()?;
///
/// // the next turn reads only what is new
/// let longer: Vec<u32> = [prompt, generation.token_ids].concat();
/// let again = Decoder::resume(loaded.model.as_ref(), cache, &longer, &options)?;
/// assert!(again.progress().done > 0);
/// # Ok(())
/// # }
/// ```
///
/// # Source
/// mlx-lm `generate.py` (`generate_step`).
pub struct Decoder<'m> {
    model: &'m dyn Model,
    sequence: Sequence,
    max_tokens: usize,
    eos_token_ids: Vec<u32>,
    finish_reason: Option<FinishReason>,
    failed: bool,
    start: Instant,
    first_at: Option<Instant>,
    last_at: Instant,
}

impl<'m> Decoder<'m> {
    /// Checks the prompt and the options; nothing runs yet.
    ///
    /// # Errors
    /// `Argument` for an empty prompt, an id beyond the vocabulary or bad settings.
    pub fn new(model: &'m dyn Model, prompt: &[u32], options: &GenerateOptions) -> Result<Self> {
        Self::start(model, None, prompt, options)
    }

    /// Continues the cache of an earlier sequence as far as `prompt` begins with the same tokens. Where the cache cannot
    /// forget the others, it starts anew.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn resume(
        model: &'m dyn Model,
        cache: PromptCache,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Self> {
        Self::start(model, Some(cache), prompt, options)
    }

    fn start(
        model: &'m dyn Model,
        cache: Option<PromptCache>,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Self> {
        let sequence = Sequence::new(model, cache, prompt, options)?;
        let eos = if options.ignore_eos { &[][..] } else { options.eos_token_ids.as_slice() };
        let now = Instant::now();
        Ok(Self {
            model,
            sequence,
            max_tokens: options.max_tokens,
            eos_token_ids: eos.to_vec(),
            finish_reason: (options.max_tokens == 0).then_some(FinishReason::Length),
            failed: false,
            start: now,
            first_at: None,
            last_at: now,
        })
    }

    /// The same with another way to record steps.
    #[cfg(test)]
    pub(crate) fn with_recorder(
        mut self,
        recorder: std::rc::Rc<dyn crate::recorded::Recorder>,
    ) -> Self {
        self.sequence = self.sequence.with_recorder(recorder);
        self
    }

    /// How much of the prompt the cache holds; all but its last token before the first token is chosen.
    pub fn progress(&self) -> Progress {
        self.sequence.progress()
    }

    /// Reads the prompt in pieces of `prefill_step` tokens, telling how far it is before the first piece and after each
    /// one; the last may still run then. A break cancels the sequence: it then has no tokens.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn prefill(
        &mut self,
        on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<()> {
        while self.finish_reason.is_none() {
            if on_progress(self.progress()).is_break() {
                self.finish_reason = Some(FinishReason::Cancelled);
            } else if self.sequence.is_ready() {
                break;
            } else {
                self.guarded(|decoder| decoder.sequence.prefill_piece(decoder.model))?;
            }
        }
        Ok(())
    }

    /// Reads what is left of the prompt, its last token too, and gives what the model remembers of it, for other prompts
    /// to continue.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn into_prompt_cache(mut self) -> Result<PromptCache> {
        while !self.sequence.is_ready() {
            self.sequence.prefill_piece(self.model)?;
        }
        if self.sequence.num_started() == 0 {
            sequence::step(self.model, &mut [&mut self.sequence])?;
        }
        let cache = self.sequence.into_cache()?;
        mlx::eval(cache.cache().arrays())?;
        Ok(cache)
    }

    /// Ends the sequence here: no token follows.
    pub fn stop(&mut self, reason: FinishReason) {
        self.finish_reason = Some(reason);
    }

    /// What was generated, and what the model remembers of it.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn finish(self) -> Result<(Generation, PromptCache)> {
        let first_at = self.first_at.unwrap_or(self.start);
        let ttft = (first_at - self.start).as_secs_f64();
        let decode = (self.last_at - first_at).as_secs_f64();
        let token_ids = self.sequence.generated().to_vec();
        let decoded = token_ids.len().saturating_sub(1);
        let read = self.sequence.num_prompt() - self.sequence.num_reused();
        let generation = Generation {
            finish_reason: self.finish_reason.unwrap_or(FinishReason::Cancelled),
            prompt_tokens: self.sequence.num_prompt(),
            reused_tokens: self.sequence.num_reused(),
            ttft_ms: ttft * 1e3,
            prompt_tok_per_s: if ttft > 0.0 { read as f64 / ttft } else { 0.0 },
            decode_tok_per_s: (decoded > 0 && decode > 0.0).then(|| decoded as f64 / decode),
            peak_memory_bytes: memory::peak_bytes()?,
            not_recorded: self.sequence.not_recorded().map(str::to_owned),
            token_ids,
        };
        let cache = match self.failed {
            true => PromptCache::new(self.model.make_cache()),
            false => self.sequence.into_cache()?,
        };
        Ok((generation, cache))
    }

    /// After an error nothing is known of the cache.
    fn guarded<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let result = run(self);
        if result.is_err() {
            self.failed = true;
            self.finish_reason = Some(FinishReason::Cancelled);
        }
        result
    }

    /// Whether no token follows.
    pub fn is_done(&self) -> bool {
        self.finish_reason.is_some()
    }

    /// Why no token follows; `None` while some may.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    /// The tokens so far.
    pub fn token_ids(&self) -> &[u32] {
        self.sequence.generated()
    }

    /// Whether all of the prompt but its last token has been read, so that steps may begin.
    pub fn is_ready(&self) -> bool {
        self.sequence.is_ready()
    }

    /// Reads one piece of the prompt, if there is one left; returns whether all of it has been read.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn prefill_piece(&mut self) -> Result<bool> {
        if !self.sequence.is_ready() && !self.is_done() {
            self.guarded(|decoder| decoder.sequence.prefill_piece(decoder.model))?;
        }
        Ok(self.sequence.is_ready())
    }

    /// Takes several sequences of one model one token further in one forward pass, and returns the token of each;
    /// `None` for one that is done, or has only now begun. A row's tokens are those that it has alone.
    ///
    /// The step after the one that is waited for is started before the wait, so that decoders may join and leave
    /// between any two rounds.
    ///
    /// # Errors
    /// `Mlx`; all of them are then done.
    pub fn round(decoders: &mut [&mut Self]) -> Result<Vec<Option<Token>>> {
        let result = Self::try_round(decoders);
        if result.is_err() {
            for decoder in decoders {
                decoder.failed = true;
                decoder.finish_reason = Some(FinishReason::Cancelled);
            }
        }
        result
    }

    fn try_round(decoders: &mut [&mut Self]) -> Result<Vec<Option<Token>>> {
        let mut model = None;
        for decoder in decoders.iter_mut().filter(|d| !d.is_done()) {
            while !decoder.sequence.is_ready() {
                decoder.sequence.prefill_piece(decoder.model)?;
            }
            model = Some(decoder.model);
        }
        let Some(model) = model else { return Ok(vec![None; decoders.len()]) };
        let waiting: Vec<bool> = decoders.iter().map(|d| d.sequence.has_unread()).collect();
        let mut stepping: Vec<&mut Sequence> = decoders
            .iter_mut()
            .filter(|d| !d.is_done() && d.sequence.num_started() < d.max_tokens)
            .map(|d| &mut d.sequence)
            .collect();
        if !stepping.is_empty() {
            sequence::step(model, &mut stepping)?;
        }
        let read = |(decoder, waiting): (&mut &mut Self, bool)| match waiting {
            true if !decoder.is_done() => decoder.read(),
            _ => Ok(None),
        };
        decoders.iter_mut().zip(waiting).map(read).collect()
    }

    fn read(&mut self) -> Result<Option<Token>> {
        let index = self.sequence.generated().len();
        let Some(id) = self.sequence.read()? else { return Ok(None) };
        self.last_at = Instant::now();
        self.first_at.get_or_insert(self.last_at);
        let is_eos = self.eos_token_ids.contains(&id);
        if is_eos {
            self.finish_reason = Some(FinishReason::Eos);
        } else if index + 1 == self.max_tokens {
            self.finish_reason = Some(FinishReason::Length);
        } else if index.is_multiple_of(CLEAR_CACHE_EVERY) {
            memory::clear_cache()?;
        }
        Ok(Some(Token { id, index, is_eos }))
    }
}

impl Iterator for Decoder<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_done() {
            match Self::round(&mut [self]) {
                Ok(tokens) => {
                    if let Some(token) = tokens.into_iter().flatten().next() {
                        return Some(Ok(token));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }
}

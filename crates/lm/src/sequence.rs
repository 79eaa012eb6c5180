//! Sequences in the making, and the steps that several of them take together.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::rc::Rc;

use mlx::{Array, memory, ops};

use crate::cache::{Cache, KvQuantization};
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use crate::layers::logprobs;
use crate::models::Model;
use crate::processors::Processing;
use crate::sampler::Sampler;
use crate::step::Step;

/// A cache and the tokens that it holds, to be continued by a prompt that begins like them.
#[derive(Debug, Clone)]
pub struct PromptCache {
    cache: Cache,
    tokens: Vec<u32>,
}

impl PromptCache {
    /// Of an empty cache.
    pub fn new(cache: Cache) -> Self {
        debug_assert!(cache.is_empty());
        Self { cache, tokens: Vec::new() }
    }

    /// The tokens that it holds.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What the model remembers of them.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// How many tokens at the start of `prompt` it already holds.
    pub fn common_prefix(&self, prompt: &[u32]) -> usize {
        self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count()
    }

    /// The cache of as many of `prompt`'s first tokens as can be kept, and how many. At least one token is left over,
    /// which the first step takes. `None` where the cache cannot forget what differs.
    fn keep(self, prompt: &[u32]) -> Option<(Cache, usize)> {
        let kept = self.common_prefix(prompt).min(prompt.len().saturating_sub(1));
        let mut cache = self.cache;
        let unwanted = (self.tokens.len() - kept) as i32;
        (cache.trim(unwanted) == unwanted).then_some((cache, kept))
    }
}

/// How much of a prompt the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Tokens done, those of a cache that was continued included.
    pub done: usize,
    /// Tokens of the prompt.
    pub total: usize,
}

/// The tokens that one step chose, `[B]`, perhaps still computing.
#[derive(Debug)]
struct Chosen {
    array: Array,
    ids: OnceCell<Vec<u32>>,
}

impl Chosen {
    fn ids(&self) -> Result<&[u32]> {
        if self.ids.get().is_none() {
            // Another value cannot have come in between: nothing here is shared among threads.
            let _ = self.ids.set(self.array.to_vec()?);
        }
        Ok(self.ids.get().map_or(&[], Vec::as_slice))
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        // A step that nobody waits for would run on beside whatever comes next.
        if self.ids.get().is_none() {
            let _ = self.array.eval();
        }
    }
}

/// One sequence's token of a step.
#[derive(Debug, Clone)]
struct Row {
    step: Rc<Chosen>,
    index: usize,
}

impl Row {
    /// `[1]`.
    fn array(&self) -> Result<Array> {
        let all = &self.step.array;
        if all.size() == 1 {
            return Ok(all.clone());
        }
        let index = self.index as i32;
        Ok(ops::slice_axis(all, 0, index, index + 1)?)
    }
}

/// A prompt, what has been generated after it, and what the model remembers of both.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// The prompt and the generated tokens that were read.
    tokens: Vec<u32>,
    num_prompt: usize,
    /// Prompt tokens taken over from an earlier sequence.
    num_reused: usize,
    /// Tokens that the cache holds.
    num_held: usize,
    cache: Cache,
    sampler: Sampler,
    processing: Processing,
    prefill_step: usize,
    quantized: Option<KvQuantization>,
    /// Tokens chosen and not yet read, oldest first.
    unread: VecDeque<Row>,
    num_started: usize,
}

impl Sequence {
    /// Checks everything; runs nothing.
    ///
    /// # Errors
    /// `Argument` for an empty prompt, an id beyond the vocabulary or bad settings.
    pub(crate) fn new(
        model: &dyn Model,
        held: Option<PromptCache>,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Self> {
        check_prompt(model, prompt)?;
        let sampler = Sampler::new(options.sampling, model.vocab_size())?;
        options.processing.check(model.vocab_size())?;
        options.cache.check()?;
        let (cache, kept) = match held.and_then(|held| held.keep(prompt)) {
            Some(kept) => kept,
            None => (options.cache.limit(model.make_cache()), 0),
        };
        options.cache.check_for(&cache)?;
        Ok(Self {
            tokens: prompt.to_vec(),
            num_prompt: prompt.len(),
            num_reused: kept,
            num_held: kept,
            cache,
            sampler,
            processing: options.processing.clone(),
            prefill_step: options.prefill_step.max(1),
            quantized: options.cache.quantized,
            unread: VecDeque::new(),
            num_started: 0,
        })
    }

    pub(crate) fn num_prompt(&self) -> usize {
        self.num_prompt
    }

    pub(crate) fn num_reused(&self) -> usize {
        self.num_reused
    }

    /// Tokens generated and read.
    pub(crate) fn generated(&self) -> &[u32] {
        &self.tokens[self.num_prompt..]
    }

    /// Steps started, each of which chooses one token.
    pub(crate) fn num_started(&self) -> usize {
        self.num_started
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress { done: self.num_held.min(self.num_prompt), total: self.num_prompt }
    }

    /// Whether all of the prompt but its last token is in the cache, so that steps may begin.
    pub(crate) fn is_ready(&self) -> bool {
        self.num_held + 1 >= self.num_prompt
    }

    /// Runs the next piece of the prompt through the model, if there is one left.
    ///
    /// # Errors
    /// `Mlx`.
    pub(crate) fn prefill_piece(&mut self, model: &dyn Model) -> Result<()> {
        let end = (self.num_held + self.prefill_step).min(self.num_prompt - 1);
        if end <= self.num_held {
            return Ok(());
        }
        let piece = &self.tokens[self.num_held..end];
        let tokens = Array::from_slice(piece, &[1, piece.len() as i32])?;
        model.forward(&Step::new(&tokens), &mut [&mut self.cache])?;
        self.quantize()?;
        mlx::eval(self.cache.arrays())?;
        memory::clear_cache()?;
        self.num_held = end;
        Ok(())
    }

    fn quantize(&mut self) -> Result<()> {
        self.quantized.map_or(Ok(()), |quantized| self.cache.quantize(quantized))
    }

    /// Whether a token has been chosen that was not read yet.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// The oldest token chosen and not read yet; waits for it.
    ///
    /// # Errors
    /// `Mlx`.
    pub(crate) fn read(&mut self) -> Result<Option<u32>> {
        let Some(row) = self.unread.pop_front() else { return Ok(None) };
        let id = row.step.ids()?[row.index];
        self.tokens.push(id);
        Ok(Some(id))
    }

    /// What is left for a later prompt to continue.
    pub(crate) fn into_cache(self) -> PromptCache {
        let mut tokens = self.tokens;
        tokens.truncate(self.num_held);
        let mut cache = self.cache;
        // A step whose token was never read may have fed a token that nobody knows.
        let unknown = (self.num_held - tokens.len()) as i32;
        if cache.trim(unknown) < unknown {
            cache.clear();
            tokens.clear();
        }
        PromptCache { cache, tokens }
    }
}

/// Takes all of `sequences`, none of them twice, one token further: gives the model each one's last token and starts
/// computing the next.
///
/// # Errors
/// `Mlx`. The caches then hold nothing of use.
pub(crate) fn step(model: &dyn Model, sequences: &mut [&mut Sequence]) -> Result<()> {
    let b = sequences.len();
    let input = input(sequences)?.reshape(&[b as i32, 1])?;
    let mut caches: Vec<&mut Cache> = sequences.iter_mut().map(|s| &mut s.cache).collect();
    let logits = model.forward(&Step::new(&input), &mut caches)?; // [B, 1, V]
    let logits = logits.reshape(&[b as i32, logits.dim(-1)])?;
    let array = choose(model, &logits, sequences)?;
    mlx::async_eval([&array])?;
    let step = Rc::new(Chosen { array, ids: OnceCell::new() });
    for (index, sequence) in sequences.iter_mut().enumerate() {
        sequence.quantize()?;
        sequence.num_held += 1;
        sequence.num_started += 1;
        sequence.unread.push_back(Row { step: step.clone(), index });
    }
    Ok(())
}

/// Each sequence's last token, `[B]`.
fn input(sequences: &[&mut Sequence]) -> Result<Array> {
    // Rows that stayed together hand on what they chose as it is.
    if let Some(first) = sequences[0].unread.back() {
        let together = first.step.array.size() == sequences.len()
            && sequences.iter().enumerate().all(|(i, s)| {
                let row = s.unread.back();
                row.is_some_and(|row| row.index == i && Rc::ptr_eq(&row.step, &first.step))
            });
        if together {
            return Ok(first.step.array.clone());
        }
    }
    let last = |s: &&mut Sequence| match s.unread.back() {
        Some(row) => row.array(),
        None => Ok(Array::from_slice(&s.tokens[s.tokens.len() - 1..], &[1])?),
    };
    let rows = sequences.iter().map(last).collect::<Result<Vec<_>>>()?;
    Ok(match rows.as_slice() {
        [one] => one.clone(),
        rows => ops::concatenate(rows, 0)?,
    })
}

/// The token after each row of `logits` `[B, V]`: `[B]`.
fn choose(model: &dyn Model, logits: &Array, sequences: &mut [&mut Sequence]) -> Result<Array> {
    if sequences.iter().all(|s| s.sampler.is_greedy() && s.processing.is_none()) {
        return model.head().greedy(logits);
    }
    let mut tokens = Vec::with_capacity(sequences.len());
    for (i, sequence) in (0..).zip(sequences) {
        let mut row = ops::slice_axis(logits, 0, i, i + 1)?;
        if !sequence.processing.is_none() {
            let latest = sequence.unread.back().map(Row::array).transpose()?;
            row = sequence.processing.apply(row, &sequence.tokens, latest.as_ref())?;
        }
        tokens.push(match sequence.sampler.is_greedy() {
            true => model.head().greedy(&row)?,
            false => sequence.sampler.sample(&logprobs(&row)?)?,
        });
    }
    Ok(match tokens.as_slice() {
        [one] => one.clone(),
        tokens => ops::concatenate(tokens, 0)?,
    })
}

fn check_prompt(model: &dyn Model, prompt: &[u32]) -> Result<()> {
    let vocab_size = model.vocab_size();
    if let Some(id) = prompt.iter().find(|id| **id >= vocab_size) {
        let reason = format!("the vocabulary has {vocab_size} tokens");
        return Err(Error::argument("prompt token", id, reason));
    }
    if prompt.is_empty() {
        return Err(Error::argument("prompt", "empty", "expected at least one token"));
    }
    Ok(())
}

//! Sequences in the making, and the steps that several of them take together.

use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use mlx::recording::Recording;
use mlx::{Array, memory, ops};

use crate::cache::{Cache, KvQuantization};
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use crate::layers::logprobs;
use crate::models::Model;
use crate::processors::Processing;
use crate::recorded::{OnDevice, RecordedSteps, Recorder};
use crate::sampler::Sampler;
use crate::step::Step;

/// A cache and the tokens that it holds, to be continued by a prompt that begins like them.
#[derive(Debug, Clone)]
pub struct PromptCache {
    cache: Cache,
    /// Whether it begins with tokens that nobody knows.
    continues: bool,
    /// Those behind them.
    tokens: Vec<u32>,
}

impl PromptCache {
    /// Of an empty cache.
    pub fn new(cache: Cache) -> Self {
        debug_assert!(cache.is_empty());
        Self { cache, continues: false, tokens: Vec::new() }
    }

    /// Of tokens that nobody knows, such as those of a [`SavedCache`](crate::cache::SavedCache): a prompt is read behind
    /// them.
    pub fn behind(cache: Cache) -> Self {
        Self { continues: !cache.is_empty(), cache, tokens: Vec::new() }
    }

    /// The tokens that it holds, but for those that nobody knows.
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

/// A recording, of which steps that were not read yet have a part.
type Shared = Rc<RefCell<Box<dyn RecordedSteps>>>;

/// The tokens that one step chose, `[B]`, perhaps still computing.
#[derive(Debug)]
struct Chosen {
    source: Source,
    ids: OnceCell<Vec<u32>>,
}

/// Where they come from.
#[derive(Debug)]
enum Source {
    /// The graph of an ordinary step.
    Graph(Array),
    /// Step `index` of a recording: one row.
    Recorded { steps: Shared, index: u64 },
}

impl Chosen {
    fn new(source: Source) -> Rc<Self> {
        Rc::new(Self { source, ids: OnceCell::new() })
    }

    fn ids(&self) -> Result<&[u32]> {
        if self.ids.get().is_none() {
            let ids = match &self.source {
                Source::Graph(array) => array.to_vec()?,
                Source::Recorded { steps, index } => vec![steps.borrow_mut().token(*index)?],
            };
            // Another value cannot have come in between: nothing here is shared among threads.
            let _ = self.ids.set(ids);
        }
        Ok(self.ids.get().map_or(&[], Vec::as_slice))
    }

    /// All of them as the graph that computes them, where there is one.
    fn graph(&self) -> Option<&Array> {
        if let Source::Graph(array) = &self.source { Some(array) } else { None }
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        // A step that nobody waits for would run on beside whatever comes next. A recording waits when it ends.
        if let (Source::Graph(array), None) = (&self.source, self.ids.get()) {
            let _ = array.eval();
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
        let Some(all) = self.step.graph() else {
            return Ok(Array::from_slice(&self.step.ids()?[self.index..=self.index], &[1])?);
        };
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
    /// Whether the cache begins with tokens that nobody knows; what is counted here are those behind them.
    continues: bool,
    sampler: Sampler,
    processing: Processing,
    prefill_step: usize,
    quantized: Option<KvQuantization>,
    /// Tokens chosen and not yet read, oldest first.
    unread: VecDeque<Row>,
    num_started: usize,
    max_tokens: usize,
    recorder: Rc<dyn Recorder>,
    /// What takes the place of `cache` as long as it is there.
    recorded: Option<Shared>,
    /// Why steps are not recorded though the model is patched for it.
    not_recorded: Option<String>,
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
        let continues = held.as_ref().is_some_and(|held| held.continues);
        let (cache, kept) = match held.and_then(|held| held.keep(prompt)) {
            Some(kept) => kept,
            None if continues => {
                let reason = "it cannot take back the tokens that this prompt does not begin with";
                return Err(Error::argument("cache", "of an unknown prompt", reason));
            }
            None => (options.cache.limit(model.make_cache()), 0),
        };
        options.cache.check_for(&cache)?;
        Ok(Self {
            tokens: prompt.to_vec(),
            num_prompt: prompt.len(),
            num_reused: kept,
            num_held: kept,
            cache,
            continues,
            sampler,
            processing: options.processing.clone(),
            prefill_step: options.prefill_step.max(1),
            quantized: options.cache.quantized,
            unread: VecDeque::new(),
            num_started: 0,
            max_tokens: options.max_tokens,
            recorder: Rc::new(OnDevice),
            recorded: None,
            not_recorded: None,
        })
    }

    /// The same with another way to record.
    #[cfg(test)]
    pub(crate) fn with_recorder(self, recorder: Rc<dyn Recorder>) -> Self {
        Self { recorder, ..self }
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
        if end + 1 < self.num_prompt {
            mlx::eval(self.cache.arrays())?;
            memory::clear_cache()?;
        } else {
            // the step of the last token is built while this runs, and waits for it
            mlx::async_eval(self.cache.arrays())?;
        }
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

    /// Why steps are not recorded though the model is patched for it, as far as that has shown.
    pub(crate) fn not_recorded(&self) -> Option<&str> {
        self.not_recorded.as_deref()
    }

    /// Takes the next step by a recording, which is made where that pays. False, and nothing has happened, where it does
    /// not.
    ///
    /// # Errors
    /// `Mlx`. The cache then holds nothing of use.
    fn step_recorded(&mut self, model: &dyn Model) -> Result<bool> {
        if let Some(steps) = self.recorded.clone()
            && steps.borrow().room() > 0
        {
            let index = steps.borrow().num_started();
            for row in &self.unread {
                // it would be lost
                if let Source::Recorded { index: unread, .. } = &row.step.source
                    && unread + Recording::MOST_AHEAD <= index
                {
                    row.step.ids()?;
                }
            }
            steps.borrow_mut().launch()?;
            self.started(Chosen::new(Source::Recorded { steps, index }), 0);
            return Ok(true);
        }
        self.settle()?;
        if !self.may_record() {
            return Ok(false);
        }
        let token = self.last_token()?;
        let most = self.max_tokens.saturating_sub(self.num_started);
        match self.recorder.record(model, &self.cache, &token, most) {
            Ok(None) => Ok(false),
            Ok(Some(steps)) => {
                let steps = Rc::new(RefCell::new(steps));
                self.cache.clear();
                self.recorded = Some(steps.clone());
                self.started(Chosen::new(Source::Recorded { steps, index: 0 }), 0);
                Ok(true)
            }
            Err(error) => {
                self.not_recorded = Some(error.to_string());
                Ok(false)
            }
        }
    }

    fn may_record(&self) -> bool {
        self.sampler.is_greedy()
            && self.processing.is_none()
            && self.quantized.is_none()
            && self.not_recorded.is_none()
    }

    /// Ends a recording, so that the cache is an ordinary one again.
    ///
    /// # Errors
    /// `Mlx`. The cache then holds nothing of use.
    fn settle(&mut self) -> Result<()> {
        let Some(steps) = self.recorded.take() else { return Ok(()) };
        for row in &self.unread {
            row.step.ids()?;
        }
        self.cache = steps.borrow_mut().settle()?;
        Ok(())
    }

    /// Notes a step that was started, of which row `index` is this sequence's.
    fn started(&mut self, step: Rc<Chosen>, index: usize) {
        self.num_held += 1;
        self.num_started += 1;
        self.unread.push_back(Row { step, index });
    }

    /// `[1]`.
    fn last_token(&self) -> Result<Array> {
        match self.unread.back() {
            Some(row) => row.array(),
            None => Ok(Array::from_slice(&self.tokens[self.tokens.len() - 1..], &[1])?),
        }
    }

    /// What is left for a later prompt to continue.
    ///
    /// # Errors
    /// `Mlx`.
    pub(crate) fn into_cache(mut self) -> Result<PromptCache> {
        self.settle()?;
        let mut tokens = self.tokens;
        tokens.truncate(self.num_held);
        let mut cache = self.cache;
        // A step whose token was never read may have fed a token that nobody knows.
        let unknown = (self.num_held - tokens.len()) as i32;
        let mut continues = self.continues;
        if cache.trim(unknown) < unknown {
            cache.clear();
            tokens.clear();
            continues = false;
        }
        Ok(PromptCache { cache, continues, tokens })
    }
}

/// Takes all of `sequences`, none of them twice, one token further: gives the model each one's last token and starts
/// computing the next.
///
/// # Errors
/// `Mlx`. The caches then hold nothing of use.
pub(crate) fn step(model: &dyn Model, sequences: &mut [&mut Sequence]) -> Result<()> {
    if let [sequence] = sequences
        && sequence.step_recorded(model)?
    {
        return Ok(());
    }
    sequences.iter_mut().try_for_each(|sequence| sequence.settle())?;
    let b = sequences.len();
    let input = input(sequences)?.reshape(&[b as i32, 1])?;
    let mut caches: Vec<&mut Cache> = sequences.iter_mut().map(|s| &mut s.cache).collect();
    let logits = model.forward(&Step::new(&input), &mut caches)?; // [B, 1, V]
    let logits = logits.reshape(&[b as i32, logits.dim(-1)])?;
    let array = choose(model, &logits, sequences)?;
    mlx::async_eval([&array])?;
    let step = Chosen::new(Source::Graph(array));
    for (index, sequence) in sequences.iter_mut().enumerate() {
        sequence.quantize()?;
        sequence.started(step.clone(), index);
    }
    Ok(())
}

/// Each sequence's last token, `[B]`.
fn input(sequences: &[&mut Sequence]) -> Result<Array> {
    // Rows that stayed together hand on what they chose as it is.
    if let Some(first) = sequences[0].unread.back()
        && let Some(array) = first.step.graph()
    {
        let together = array.size() == sequences.len()
            && sequences.iter().enumerate().all(|(i, s)| {
                let row = s.unread.back();
                row.is_some_and(|row| row.index == i && Rc::ptr_eq(&row.step, &first.step))
            });
        if together {
            return Ok(array.clone());
        }
    }
    let rows = sequences.iter().map(|s| s.last_token()).collect::<Result<Vec<_>>>()?;
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

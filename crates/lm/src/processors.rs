//! Changes to the logits before a token is chosen: bias and penalties.

use mlx::{Array, ops};

use crate::error::{Error, Result};

/// Tokens that a penalty looks back on, mlx-lm's default.
pub const CONTEXT_SIZE: usize = 20;

/// A penalty on tokens that the sequence, prompt included, already has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalty {
    /// How strong it is.
    pub penalty: f32,
    /// How many of the last tokens count; 0: all of them.
    pub context_size: usize,
}

impl Penalty {
    /// Over the last [`CONTEXT_SIZE`] tokens.
    pub fn new(penalty: f32) -> Self {
        Self { penalty, context_size: CONTEXT_SIZE }
    }

    fn context<'a, T>(&self, history: &'a [T]) -> &'a [T] {
        match self.context_size {
            0 => history,
            size => &history[history.len().saturating_sub(size)..],
        }
    }
}

/// What changes the logits. The default changes nothing.
///
/// # Source
/// mlx-lm `sample_utils.py` (`make_logits_processors`): the same operations in the same order and types.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Processing {
    /// Token ids and what is added to their logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides positive logits, multiplies negative ones (arXiv:1909.05858); 1 changes nothing.
    pub repetition: Option<Penalty>,
    /// Subtracted once from each token seen.
    pub presence: Option<Penalty>,
    /// Subtracted from a token for each time it was seen.
    pub frequency: Option<Penalty>,
}

impl Processing {
    /// Whether logits stay as they are.
    pub fn is_none(&self) -> bool {
        let off = |p: Option<Penalty>| p.is_none_or(|p| p.penalty == 0.0);
        self.logit_bias.is_empty()
            && off(self.repetition)
            && off(self.presence)
            && off(self.frequency)
    }

    pub(crate) fn check(&self, vocab_size: u32) -> Result<()> {
        for (id, bias) in &self.logit_bias {
            if *id >= vocab_size {
                let reason = format!("the vocabulary has {vocab_size} tokens");
                return Err(Error::argument("logit_bias token", id, reason));
            }
            if !bias.is_finite() {
                return Err(Error::argument("logit_bias", bias, "expected a finite number"));
            }
        }
        let mut ids: Vec<u32> = self.logit_bias.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::argument("logit_bias token", twice[0], "expected once"));
        }
        let penalties = [
            ("repetition_penalty", self.repetition, 0.0),
            ("presence_penalty", self.presence, f32::NEG_INFINITY),
            ("frequency_penalty", self.frequency, f32::NEG_INFINITY),
        ];
        for (name, penalty, least) in penalties {
            let Some(Penalty { penalty, .. }) = penalty else { continue };
            if !penalty.is_finite() || penalty < least {
                let range = if least == 0.0 { "0 or more" } else { "a finite number" };
                return Err(Error::argument(name, penalty, format!("expected {range}")));
            }
        }
        Ok(())
    }

    /// - `logits`: `[1, V]`; returns the same shape and dtype
    /// - `known`: the tokens of the sequence; `latest`: one more behind them, `[1]`, which may still be computing
    ///
    /// # Errors
    /// `Mlx`.
    pub(crate) fn apply(
        &self,
        logits: Array,
        known: &[u32],
        latest: Option<&Array>,
    ) -> Result<Array> {
        let mut logits = logits;
        if !self.logit_bias.is_empty() {
            let (ids, bias): (Vec<u32>, Vec<f32>) = self.logit_bias.iter().copied().unzip();
            let shape = [1, ids.len() as i32];
            let bias = Array::from_slice(&bias, &shape)?.astype(logits.dtype())?;
            let ids = Array::from_slice(&ids, &shape)?;
            logits = replace(&logits, &ids, |x| ops::add(x, &bias))?;
        }
        let active = |p: Option<Penalty>| p.filter(|p| p.penalty != 0.0);
        let history = History { known, latest };
        if let Some(penalty) = active(self.repetition) {
            let factor = Array::scalar_like(penalty.penalty, &logits)?;
            let ids = history.last(penalty)?;
            logits = replace(&logits, &ids, |x| {
                let negative = ops::less(x, &Array::scalar_like(0.0, x)?)?;
                let (more, less) = (ops::multiply(x, &factor)?, ops::divide(x, &factor)?);
                ops::select(&negative, &more, &less)
            })?;
        }
        if let Some(penalty) = active(self.presence) {
            let amount = Array::scalar_like(penalty.penalty, &logits)?;
            let ids = history.last(penalty)?;
            logits = replace(&logits, &ids, |x| ops::subtract(x, &amount))?;
        }
        if let Some(penalty) = active(self.frequency) {
            // Every subtraction rounds by itself, as stock's scatter does: one round for each time a token was seen.
            let amount = Array::scalar_like(penalty.penalty, &logits)?;
            for ids in history.by_times_seen(penalty)? {
                logits = replace(&logits, &ids, |x| ops::subtract(x, &amount))?;
            }
        }
        Ok(logits)
    }
}

/// The tokens so far, of which the last may not be known yet.
struct History<'a> {
    known: &'a [u32],
    latest: Option<&'a Array>,
}

impl<'a> History<'a> {
    /// The known ones among those that `penalty` looks back on.
    fn known_of(&self, penalty: Penalty) -> &'a [u32] {
        match (self.latest, penalty.context_size) {
            (Some(_), 1) => &[],
            (Some(_), size @ 2..) => {
                Penalty { context_size: size - 1, ..penalty }.context(self.known)
            }
            _ => penalty.context(self.known),
        }
    }

    /// Those that `penalty` looks back on, `[1, n]`.
    fn last(&self, penalty: Penalty) -> Result<Array> {
        let known = self.known_of(penalty);
        let Some(latest) = self.latest else { return row(known) };
        let latest = latest.reshape(&[1, 1])?;
        if known.is_empty() {
            return Ok(latest);
        }
        Ok(ops::concatenate([&row(known)?, &latest], 1)?)
    }

    /// Those seen at least once, at least twice, ...
    fn by_times_seen(&self, penalty: Penalty) -> Result<Vec<Array>> {
        let mut rest = self.known_of(penalty).to_vec();
        rest.sort_unstable();
        let mut rounds = Vec::new();
        while !rest.is_empty() {
            let (mut round, mut again) = (Vec::new(), Vec::new());
            for id in rest {
                if round.last() == Some(&id) {
                    again.push(id);
                } else {
                    round.push(id);
                }
            }
            rounds.push(row(&round)?);
            rest = again;
        }
        if let Some(latest) = self.latest {
            rounds.push(latest.reshape(&[1, 1])?);
        }
        Ok(rounds)
    }
}

fn row(ids: &[u32]) -> Result<Array> {
    Ok(Array::from_slice(ids, &[1, ids.len() as i32])?)
}

/// `logits` `[1, V]` with those of `ids` `[1, n]` changed; an id that stands there twice is changed once.
fn replace(
    logits: &Array,
    ids: &Array,
    change: impl FnOnce(&Array) -> mlx::Result<Array>,
) -> Result<Array> {
    let selected = ops::take_along_axis(logits, ids, -1)?;
    Ok(ops::put_along_axis(logits, ids, &change(&selected)?, -1)?)
}

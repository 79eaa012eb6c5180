//! From log-probabilities to the next token.

use mlx::{Array, ops, random};

use crate::error::{Error, Result};

/// How tokens are chosen. The default takes the likeliest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; otherwise log-probabilities are divided by it.
    pub temperature: f32,
    /// Keeps the likeliest tokens that together reach this probability; off at 0 and from 1.
    pub top_p: f32,
    /// Keeps tokens at least this probable relative to the likeliest; off at 0.
    pub min_p: f32,
    /// Keeps this many of the likeliest tokens; off at 0.
    pub top_k: u32,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 0.0, min_p: 0.0, top_k: 0, seed: 0 }
    }
}

/// Draws tokens; holds the random key.
///
/// # Source
/// mlx-lm `sample_utils.py` (`make_sampler`): the same filters in the same order.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    key: Array,
}

impl Sampler {
    /// Checks the settings.
    ///
    /// # Errors
    /// `Argument`.
    pub fn new(sampling: Sampling, vocab_size: u32) -> Result<Self> {
        let Sampling { temperature, top_p, min_p, top_k, seed } = sampling;
        let check = |name, value: f32, most: f32| {
            if (0.0..=most).contains(&value) {
                return Ok(());
            }
            let range = if most.is_finite() { format!("0 to {most}") } else { "0 or more".into() };
            Err(Error::argument(name, value, format!("expected {range}")))
        };
        check("temperature", temperature, f32::INFINITY)?;
        if temperature.is_infinite() {
            return Err(Error::argument("temperature", temperature, "expected a finite number"));
        }
        check("top_p", top_p, 1.0)?;
        check("min_p", min_p, 1.0)?;
        if top_k >= vocab_size {
            let reason = format!("expected less than the vocabulary ({vocab_size})");
            return Err(Error::argument("top_k", top_k, reason));
        }
        Ok(Self { sampling, key: random::key(seed)? })
    }

    /// Whether it takes the likeliest token.
    pub fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0
    }

    /// - `logprobs`: `[B, V]`; returns `[B]` u32.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn sample(&mut self, logprobs: &Array) -> Result<Array> {
        let Sampling { temperature, top_p, min_p, top_k, .. } = self.sampling;
        if self.is_greedy() {
            return Ok(ops::argmax(logprobs, -1, false)?);
        }
        let mut x = logprobs.clone();
        if top_p > 0.0 && top_p < 1.0 {
            x = keep_top_p(&x, top_p)?;
        }
        if min_p != 0.0 {
            x = keep_min_p(&x, min_p)?;
        }
        if top_k > 0 {
            x = keep_top_k(&x, top_k as i32)?;
        }
        let inverse = (1.0 / f64::from(temperature)) as f32;
        let scaled = ops::multiply(&x, &Array::scalar_like(inverse, &x)?)?;
        let keys = random::split(&self.key, 2)?;
        let key = |i| ops::squeeze(&ops::slice_axis(&keys, 0, i, i + 1)?, &[0]);
        self.key = key(0)?;
        Ok(random::categorical(&scaled, -1, Some(&key(1)?))?)
    }
}

fn drop_where(unwanted: &Array, logprobs: &Array) -> Result<Array> {
    Ok(ops::select(unwanted, &Array::scalar_like(f32::NEG_INFINITY, logprobs)?, logprobs)?)
}

fn keep_top_p(logprobs: &Array, top_p: f32) -> Result<Array> {
    let sorted = ops::sort(logprobs, -1)?;
    let probs = ops::exp(&sorted.astype(mlx::Dtype::F32)?)?;
    let mass_above = ops::cumsum(&probs, -1, true, false)?;
    let first = |x: &Array| ops::slice_axis(x, -1, 0, 1);
    let total = ops::add(&first(&mass_above)?, &first(&probs)?)?;
    let limit = ops::multiply(&Array::scalar(top_p)?, &total)?;
    let dropped = ops::greater_equal(&mass_above, &limit)?;
    let dropped = ops::sum(&dropped, &[-1], true)?;
    // A `top_p` that is lost in rounding drops all of them: the likeliest stays.
    let last = Array::scalar(logprobs.dim(-1) - 1)?;
    let dropped = ops::minimum(&dropped, &last)?;
    let threshold = ops::take_along_axis(&sorted, &dropped, -1)?;
    drop_where(&ops::less(logprobs, &threshold)?, logprobs)
}

fn keep_min_p(logprobs: &Array, min_p: f32) -> Result<Array> {
    let top = ops::max(logprobs, &[-1], true)?;
    let log_min_p = f64::from(min_p).ln() as f32;
    let threshold = ops::add(&top, &Array::scalar_like(log_min_p, &top)?)?;
    drop_where(&ops::less(logprobs, &threshold)?, logprobs)
}

fn keep_top_k(logprobs: &Array, top_k: i32) -> Result<Array> {
    let order = ops::argpartition(&ops::negative(logprobs)?, top_k - 1, -1)?;
    let dropped = ops::slice_axis(&order, -1, top_k, logprobs.dim(-1))?;
    let nothing = Array::scalar_like(f32::NEG_INFINITY, logprobs)?;
    Ok(ops::put_along_axis(logprobs, &dropped, &nothing, -1)?)
}

//! Two sets of patterns against each other, on the sample.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use zmlx_capsule::stats::{self, Change, Verdict};
use zmlx_lm::{GenerateOptions, LoadedModel, generate, patch};

use super::{SmartOptions, with};
use crate::Result;

/// Numbers of pairs after which a race is looked at; noise is called a gain less than once in a hundred at each.
const LOOKS: [usize; 3] = [8, 14, 20];
/// Numbers of pairs that are enough where all runs of one side beat all of the other by that many times.
const CLEAR: [(usize, f64); 2] = [(2, 4.0), (3, 1.5)];
/// Pairs that are run whatever time they take: of fewer nothing can be said.
const FEW: usize = 3;
/// Tokens of a run that is very slow.
const LEAST_TOKENS: usize = 2;
/// What a run of the slower side should take.
const RUN: Duration = Duration::from_millis(150);

/// What came out for the first side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Faster,
    Slower,
    Neither,
}

pub(super) struct Race {
    pub(super) way: Way,
    pub(super) change: Change,
}

pub(super) struct Trial<'a> {
    pub(super) loaded: &'a mut LoadedModel,
    pub(super) options: &'a SmartOptions,
    /// The longest sample that was run.
    pub(super) sample_tokens: usize,
}

/// How much of each prompt is read, and how many tokens follow.
#[derive(Clone, Copy)]
struct Size {
    read: usize,
    generate: usize,
}

impl Trial<'_> {
    fn set(&mut self, patterns: &[&'static str]) -> Result<()> {
        let names = patterns.iter().map(|name| (*name).to_owned()).collect();
        patch(self.loaded, &with(&self.options.patch, names))?;
        Ok(())
    }

    /// Runs the sample's prompt of that number; returns seconds and tokens.
    fn run(
        &mut self,
        patterns: &[&'static str],
        number: usize,
        size: Size,
    ) -> Result<(f64, Vec<u32>)> {
        self.set(patterns)?;
        let prompts: Vec<_> = self.options.prompts.iter().filter(|p| !p.is_empty()).collect();
        let prompt = prompts[number % prompts.len()];
        let prompt = &prompt[..prompt.len().min(size.read)];
        self.sample_tokens = self.sample_tokens.max(prompt.len() + size.generate);
        let options = GenerateOptions {
            max_tokens: size.generate,
            ignore_eos: true,
            cache: self.options.cache,
            ..GenerateOptions::default()
        };
        let mut go_on = |_| ControlFlow::Continue(());
        let start = Instant::now();
        let generation = generate(self.loaded.model.as_ref(), prompt, &options, &mut go_on)?;
        Ok((start.elapsed().as_secs_f64(), generation.token_ids))
    }

    /// As much as a set of patterns does in the time of a run.
    fn size(&mut self, patterns: &[&'static str]) -> Result<Size> {
        let least = Size { read: LEAST_TOKENS, generate: LEAST_TOKENS };
        // the first run loads and compiles; who takes so long with so little needs no second one
        let (mut seconds, _) = self.run(patterns, 0, least)?;
        if seconds < 4.0 * RUN.as_secs_f64() {
            (seconds, _) = self.run(patterns, 0, least)?;
        }
        let each = seconds / (2 * LEAST_TOKENS) as f64;
        let fits = (RUN.as_secs_f64() / each.max(1e-6)) as usize;
        let generate = fits.clamp(LEAST_TOKENS, self.options.max_tokens.max(LEAST_TOKENS));
        // prompts are read faster than tokens are generated, or just as fast
        Ok(Size { read: fits.max(LEAST_TOKENS), generate })
    }

    /// Whether the sample's tokens are those of stock, as far as there is time to look: one prompt at least.
    pub(super) fn is_identical(&mut self, patterns: &[&'static str]) -> Result<bool> {
        if patterns.is_empty() {
            return Ok(true);
        }
        let size = self.size(&[])?;
        let start = Instant::now();
        for number in 0..self.options.prompts.len() {
            if number > 0 && start.elapsed() > self.options.budget {
                break;
            }
            let (_, expected) = self.run(&[], number, size)?;
            let (_, got) = self.run(patterns, number, size)?;
            if got != expected {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs both sides in turns until one of them is faster beyond noise, or time is up.
    pub(super) fn race(&mut self, a: &[&'static str], b: &[&'static str]) -> Result<Race> {
        let size = {
            let (a, b) = (self.size(a)?, self.size(b)?);
            Size { read: a.read.min(b.read), generate: a.generate.min(b.generate) }
        };
        let start = Instant::now();
        let (mut of_a, mut of_b): (Vec<f64>, Vec<f64>) = Default::default();
        loop {
            let number = of_a.len();
            // AB, then BA
            let first_a = number.is_multiple_of(2);
            if first_a {
                of_a.push(self.run(a, number / 2, size)?.0);
            }
            of_b.push(self.run(b, number / 2, size)?.0);
            if !first_a {
                of_a.push(self.run(a, number / 2, size)?.0);
            }
            let ratios: Vec<f64> = of_a.iter().zip(&of_b).map(|(a, b)| b / a).collect();
            let late = of_a.len() >= FEW && start.elapsed() > self.options.budget;
            let last = of_a.len() >= LOOKS[LOOKS.len() - 1] || late;
            let is_look = LOOKS.contains(&of_a.len());
            let clear = [(&of_a, &of_b, Way::Faster), (&of_b, &of_a, Way::Slower)];
            let clear = clear.into_iter().find(|(a, b, _)| beats(a, b)).map(|(.., way)| way);
            if !last && !is_look && clear.is_none() {
                continue;
            }
            let Some(change) = stats::paired(&[ratios]) else { continue };
            if let Some(way) = clear {
                return Ok(Race { way, change });
            }
            match change.verdict(self.options.threshold) {
                Verdict::Faster if is_look || last => return Ok(Race { way: Way::Faster, change }),
                Verdict::Slower if is_look || last => return Ok(Race { way: Way::Slower, change }),
                _ if last => return Ok(Race { way: Way::Neither, change }),
                _ => {}
            }
        }
    }
}

/// Whether every run of one side is so much faster than every run of the other that there are enough of them.
fn beats(a: &[f64], b: &[f64]) -> bool {
    let slowest = a.iter().copied().fold(0.0, f64::max);
    let fastest = b.iter().copied().fold(f64::INFINITY, f64::min);
    CLEAR.iter().any(|(pairs, times)| a.len() >= *pairs && slowest * times < fastest)
}

#[cfg(test)]
mod tests {
    use super::beats;

    #[test]
    fn few_pairs_are_enough_for_what_is_clear() {
        assert!(!beats(&[1.0], &[99.0]));
        assert!(beats(&[1.0, 1.1], &[5.0, 4.5]));
        assert!(!beats(&[1.0, 1.1], &[2.0, 2.0]));
        assert!(beats(&[1.0, 1.1, 1.0], &[2.0, 2.0, 1.7]));
        assert!(!beats(&[1.0, 1.1, 1.9], &[2.0, 2.0, 1.7]));
    }
}

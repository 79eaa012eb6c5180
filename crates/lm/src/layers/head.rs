use mlx::primitives::GreedyToken;
use mlx::{Array, ops, primitives};

use super::recorded::recorded_step;
use super::site::ask;
use super::{Embedding, Fusable, Linear, ModuleKind, ModulePath, Path, Site};
use crate::cache::Cache;
use crate::error::Result;
use crate::weights::Scope;

/// From hidden states to logits, and from logits to the likeliest token.
#[derive(Debug, Clone)]
pub struct Head {
    /// `None` where the embedding is also the output projection.
    lm_head: Option<Linear>,
    vocab_size: i32,
    softcap: Option<f32>,
    greedy: Path,
    recorded: Path,
}

impl Head {
    /// Takes the output projection at `scope`, or none where the embedding stands in.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load(scope: &Scope<'_>, in_dims: i32, vocab_size: i32, tied: bool) -> Result<Self> {
        let lm_head = if tied { None } else { Some(Linear::load(scope, in_dims, vocab_size)?) };
        let (greedy, recorded) = (Path::Stock, Path::Stock);
        Ok(Self { lm_head, vocab_size, softcap: None, greedy, recorded })
    }

    /// The same with logits that are kept within `softcap` of zero: `tanh(x / softcap) · softcap` (arXiv:2408.00118).
    pub fn with_softcap(self, softcap: Option<f32>) -> Self {
        Self { softcap, ..self }
    }

    /// - `h`: `[.., D]`; returns logits `[.., V]`.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, h: &Array, embedding: &Embedding) -> Result<Array> {
        let logits = match &self.lm_head {
            Some(lm_head) => lm_head.forward(h)?,
            None => embedding.as_linear(h)?,
        };
        let Some(softcap) = self.softcap else { return Ok(logits) };
        let softcap = Array::scalar_like(softcap, &logits)?;
        Ok(ops::multiply(&ops::tanh(&ops::divide(&logits, &softcap)?)?, &softcap)?)
    }

    /// The likeliest token of each row of `logits` `[B, V]`: `[B]` u32.
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx-lm `generate.py` (`generate_step`): the largest of the log-probabilities, not of the logits. The
    /// subtraction rounds to the logits' type and can make ties, of which the first wins.
    pub fn greedy(&self, logits: &Array) -> Result<Array> {
        Ok(match self.greedy {
            Path::Fused(_) => primitives::greedy_token(logits)?,
            Path::Stock => ops::argmax(&logprobs(logits)?, -1, false)?,
        })
    }

    /// Whether greedy steps of decode are recorded.
    pub fn is_recorded(&self) -> bool {
        self.recorded != Path::Stock
    }

    /// The sites of the output projection, the embedding's where it stands in, and of what a step ends with.
    ///
    /// - `cache`: an empty one of the model, whose other sites are in `sites`
    pub fn sites_with<'a>(
        &'a mut self,
        at: &ModulePath,
        embedding: (&ModulePath, &'a mut Embedding),
        cache: &Cache,
        sites: &mut Vec<Site<'a>>,
    ) {
        embedding.1.sites_as(self.lm_head.is_none(), embedding.0, sites);
        if let Some(lm_head) = &mut self.lm_head {
            lm_head.sites(at, sites);
        }
        sites.push(Site {
            module: ModulePath::default().pp("greedy"),
            kind: ModuleKind::Greedy,
            pattern: "greedy_token",
            questions: ask(GreedyToken { vocab_size: self.vocab_size }),
            path: &mut self.greedy,
            trace: None,
        });
        sites.push(Site {
            module: ModulePath::default().pp("step"),
            kind: ModuleKind::Step,
            pattern: "recorded_step",
            questions: recorded_step(cache, sites),
            path: &mut self.recorded,
            trace: None,
        });
    }
}

/// Log-probabilities of each row of `logits` `[B, V]`, in their type.
///
/// # Errors
/// `Mlx`.
pub fn logprobs(logits: &Array) -> Result<Array> {
    Ok(ops::subtract(logits, &ops::logsumexp(logits, &[-1], true)?)?)
}

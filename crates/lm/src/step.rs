//! One forward pass: which tokens, of which sequences, and which logits are wanted.

use mlx::{Array, ops};

use crate::cache::{Cache, LayerCache};
use crate::error::Result;

/// Which positions' logits a forward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Logits {
    /// Those after each row's last token: `[B, 1, V]`.
    #[default]
    Last,
    /// Those after every token: `[B, L, V]`.
    All,
}

/// The input of a forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// `[B, L]` u32. Each row follows what its cache holds.
    pub tokens: &'a Array,
    /// How many tokens of each row count; the others are padding behind them. `None`: all.
    pub lengths: Option<&'a [i32]>,
    /// Which logits are wanted.
    pub logits: Logits,
}

impl<'a> Step<'a> {
    /// Rows without padding, of which the last position's logits are wanted.
    pub fn new(tokens: &'a Array) -> Self {
        Self { tokens, lengths: None, logits: Logits::Last }
    }

    /// The same with the logits of every position.
    pub fn all_logits(self) -> Self {
        Self { logits: Logits::All, ..self }
    }

    /// The positions of `h` `[B, L, D]` whose logits are wanted.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn wanted(&self, h: &Array) -> Result<Array> {
        let l = h.dim(1);
        if self.logits == Logits::All || l == 1 {
            return Ok(h.clone());
        }
        let Some(lengths) = self.lengths else { return Ok(ops::slice_axis(h, 1, l - 1, l)?) };
        let last = (0..).zip(lengths).map(|(b, len)| {
            let row = ops::slice_axis(h, 0, b, b + 1)?; // [1, L, D]
            ops::slice_axis(&row, 1, len - 1, *len)
        });
        Ok(ops::concatenate(&last.collect::<mlx::Result<Vec<_>>>()?, 0)?)
    }
}

/// The caches of a step's rows: one for each row, or a single one that holds all of them.
pub struct Rows<'a, 'c> {
    caches: &'a mut [&'c mut Cache],
    lengths: Option<&'a [i32]>,
}

impl<'a, 'c> Rows<'a, 'c> {
    /// The caches that `step` continues.
    pub fn new(step: &Step<'a>, caches: &'a mut [&'c mut Cache]) -> Self {
        Self { caches, lengths: step.lengths }
    }

    /// What layer `layer` sees of them.
    pub fn layer(&mut self, layer: usize) -> LayerRows<'_, 'c> {
        LayerRows { caches: self.caches, lengths: self.lengths, layer }
    }
}

/// One layer's caches of a step's rows.
pub struct LayerRows<'a, 'c> {
    caches: &'a mut [&'c mut Cache],
    lengths: Option<&'a [i32]>,
    layer: usize,
}

impl LayerRows<'_, '_> {
    /// Applies `mix` to each sequence with its own cache, so that no row sees another. What is the same for every
    /// token is better done for all rows at once, before and after.
    ///
    /// - `inputs`: `[B, L, ..]` each; `mix` gets `[1, len, ..]` of one row, or all of them where one cache holds all,
    ///   and returns as many rows and tokens
    /// - returns `[B, L, ..]`, zeros in the padding
    ///
    /// # Errors
    /// Those of `mix`; `Mlx`.
    pub fn each<const N: usize>(
        &mut self,
        inputs: [&Array; N],
        mut mix: impl FnMut([Array; N], &mut LayerCache) -> Result<Array>,
    ) -> Result<Array> {
        if let ([cache], None) = (&mut *self.caches, self.lengths) {
            return mix(inputs.map(Array::clone), &mut cache.layers[self.layer]);
        }
        let padded = inputs[0].dim(1);
        let mut rows = Vec::with_capacity(self.caches.len());
        for (b, cache) in self.caches.iter_mut().enumerate() {
            let len = self.lengths.map_or(padded, |lengths| lengths[b]);
            let mut parts = Vec::with_capacity(N);
            for input in inputs {
                let row = ops::slice_axis(input, 0, b as i32, b as i32 + 1)?;
                parts.push(if len < padded { ops::slice_axis(&row, 1, 0, len)? } else { row });
            }
            let Ok(parts) = <[Array; N]>::try_from(parts) else { unreachable!("N parts") };
            let mixed = mix(parts, &mut cache.layers[self.layer])?;
            rows.push(pad(mixed, padded)?);
        }
        Ok(ops::concatenate(&rows, 0)?)
    }
}

/// `x` `[1, len, ..]` with zeros up to `[1, padded, ..]`.
fn pad(x: Array, padded: i32) -> Result<Array> {
    if x.dim(1) == padded {
        return Ok(x);
    }
    let mut shape = x.shape().to_vec();
    shape[1] = padded - x.dim(1);
    let zeros = ops::zeros(&shape, x.dtype())?;
    Ok(ops::concatenate(&[x, zeros], 1)?)
}

//! Keys and values of the tokens seen so far.

use mlx::{Array, ops};

use crate::error::Result;

/// Tokens by which a growing cache extends its buffers, mlx-lm's step.
pub const GROW_STEP: i32 = 256;

/// Where the next token stands in the sequence.
#[derive(Debug, Clone)]
pub enum Position {
    /// Known while the graph is built.
    Static(i32),
    /// A scalar i32 read when the graph runs, so that one graph serves every position.
    Dynamic(Array),
}

/// One layer's keys and values, `[B, H, T, D]`, in buffers that grow by [`GROW_STEP`] tokens.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    buffers: Option<(Array, Array)>,
    len: i32,
}

impl KvCache {
    /// Tokens held.
    pub fn len(&self) -> i32 {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit before the buffers grow.
    pub fn capacity(&self) -> i32 {
        self.buffers.as_ref().map_or(0, |(keys, _)| keys.dim(2))
    }

    /// Where the next token goes.
    pub fn position(&self) -> Position {
        Position::Static(self.len)
    }

    /// Appends `keys` and `values`, `[B, H, L, D]`, and returns those of all tokens so far.
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx-lm `cache.py` (`KVCache`).
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<(Array, Array)> {
        let added = keys.dim(2);
        let end = self.len + added;
        let (mut k, mut v) = match self.buffers.take() {
            Some((k, v)) if end <= k.dim(2) => (k, v),
            held => {
                let (held_k, held_v) = match held {
                    Some((k, v)) => (Some(k), Some(v)),
                    None => (None, None),
                };
                (self.grow(held_k, keys)?, self.grow(held_v, values)?)
            }
        };
        k = write(&k, keys, self.len, end)?;
        v = write(&v, values, self.len, end)?;
        self.len = end;
        let all = (rows(&k, end)?, rows(&v, end)?);
        self.buffers = Some((k, v));
        Ok(all)
    }

    /// The held rows followed by room for `added`, rounded up to whole steps.
    fn grow(&self, held: Option<Array>, added: &Array) -> Result<Array> {
        let steps = (GROW_STEP + added.dim(2) - 1) / GROW_STEP;
        let shape = [added.dim(0), added.dim(1), steps * GROW_STEP, added.dim(3)];
        let room = ops::zeros(&shape, added.dtype())?;
        match held {
            None => Ok(room),
            Some(held) => Ok(ops::concatenate(&[rows(&held, self.len)?, room], 2)?),
        }
    }

    /// The buffers, for evaluation.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.buffers.iter().flat_map(|(k, v)| [k, v])
    }
}

/// The first `end` rows of a `[B, H, T, D]` buffer.
fn rows(buffer: &Array, end: i32) -> Result<Array> {
    let shape = buffer.shape();
    if shape[2] == end {
        return Ok(buffer.clone());
    }
    Ok(ops::slice(buffer, &[0, 0, 0, 0], &[shape[0], shape[1], end, shape[3]])?)
}

/// `buffer` with rows `start..end` replaced.
fn write(buffer: &Array, rows: &Array, start: i32, end: i32) -> Result<Array> {
    let shape = buffer.shape();
    let stop = [shape[0], shape[1], end, shape[3]];
    Ok(ops::slice_update(buffer, rows, &[0, 0, start, 0], &stop)?)
}

/// The caches of all layers.
#[derive(Debug, Clone)]
pub struct Cache {
    /// One per layer.
    pub layers: Vec<KvCache>,
}

impl Cache {
    /// Empty caches for `num_layers`.
    pub fn new(num_layers: usize) -> Self {
        Self { layers: vec![KvCache::default(); num_layers] }
    }

    /// Tokens held.
    pub fn len(&self) -> i32 {
        self.layers.first().map_or(0, KvCache::len)
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every buffer, for evaluation.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(KvCache::arrays)
    }
}

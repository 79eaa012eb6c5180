//! Keys and values of the tokens seen so far.

use mlx::fast::Mask;
use mlx::{Array, Dtype, ops};

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

/// Which keys the queries of a step see.
#[derive(Debug, Clone)]
pub enum AttentionMask {
    /// All of them.
    None,
    /// Those up to their own.
    Causal,
    /// Those where it is true, `[L, T]`.
    Array(Array),
}

impl AttentionMask {
    /// As MLX takes it.
    pub fn as_mask(&self) -> Mask<'_> {
        match self {
            Self::None => Mask::None,
            Self::Causal => Mask::Causal,
            Self::Array(array) => Mask::Array(array),
        }
    }

    /// Whether it is data that a kernel has to read.
    pub fn is_array(&self) -> bool {
        matches!(self, Self::Array(_))
    }
}

/// Query `i` of `l` after `offset` tokens sees key `j` when `j <= offset + i < j + window`: `[l, offset + l]` bool.
fn windowed(l: i32, offset: i32, window: i32) -> Result<Array> {
    let keys = ops::arange(0.0, f64::from(offset + l), 1.0, Dtype::I32)?;
    let queries = ops::arange(f64::from(offset), f64::from(offset + l), 1.0, Dtype::I32)?;
    let queries = ops::expand_dims(&queries, &[1])?;
    let before = ops::greater_equal(&queries, &keys)?;
    let near = ops::less(&queries, &ops::add(&keys, &Array::scalar(window)?)?)?;
    Ok(ops::logical_and(&before, &near)?)
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

    /// Forgets the last `n` tokens, or all where there are fewer; returns how many.
    pub fn trim(&mut self, n: i32) -> i32 {
        let n = n.clamp(0, self.len);
        self.len -= n;
        n
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

/// What one layer remembers of a sequence.
#[derive(Debug, Clone)]
pub enum LayerCache {
    /// Keys and values of every token.
    Kv(KvCache),
}

impl LayerCache {
    /// Tokens held.
    pub fn len(&self) -> i32 {
        match self {
            Self::Kv(kv) => kv.len(),
        }
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every buffer, for evaluation.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        match self {
            Self::Kv(kv) => kv.arrays(),
        }
    }

    /// Where the next token goes.
    pub fn position(&self) -> Position {
        match self {
            Self::Kv(kv) => kv.position(),
        }
    }

    /// Which keys the next `l` tokens see, those of tokens held before them.
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx-lm `base.py` (`create_attention_mask`).
    pub fn mask(&self, l: i32, window: Option<i32>) -> Result<AttentionMask> {
        match window {
            Some(window) if self.len() + l > window => {
                Ok(AttentionMask::Array(windowed(l, self.len(), window)?))
            }
            _ if l > 1 => Ok(AttentionMask::Causal),
            _ => Ok(AttentionMask::None),
        }
    }

    /// Appends keys and values; see [`KvCache::update`].
    ///
    /// # Errors
    /// `Mlx`.
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<(Array, Array)> {
        match self {
            Self::Kv(kv) => kv.update(keys, values),
        }
    }
}

/// What a model remembers of one sequence, or of several that are equally long.
#[derive(Debug, Clone)]
pub struct Cache {
    /// One per layer.
    pub layers: Vec<LayerCache>,
}

impl Cache {
    /// Empty growing caches for `num_layers`.
    pub fn new(num_layers: usize) -> Self {
        Self { layers: vec![LayerCache::Kv(KvCache::default()); num_layers] }
    }

    /// Tokens held.
    pub fn len(&self) -> i32 {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the last `n` tokens where it can, and says how many.
    pub fn trim(&mut self, n: i32) -> i32 {
        let trimmed = self.layers.iter_mut().map(|LayerCache::Kv(kv)| kv.trim(n));
        trimmed.min().unwrap_or(0)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.layers.len());
    }

    /// Every buffer, for evaluation.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(LayerCache::arrays)
    }
}

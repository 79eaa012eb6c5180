use mlx::{Array, ops};

use super::buffer::{first, grow, room_for, write};
use super::quantized::{KvQuantization, QuantizedKvCache};
use crate::error::Result;

/// One layer's keys and values, `[B, H, T, D]`, in buffers that grow by [`GROW_STEP`](super::GROW_STEP) tokens.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    pub(super) buffers: Option<(Array, Array)>,
    pub(super) len: i32,
    pub(super) is_latent: bool,
}

impl KvCache {
    /// An empty one of latents, of which attention makes its keys and values: it has no use for packed ones.
    pub fn of_latents() -> Self {
        Self { is_latent: true, ..Self::default() }
    }

    /// Whether it holds latents.
    pub fn is_latent(&self) -> bool {
        self.is_latent
    }

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

    /// Appends `keys` and `values`, `[B, H, L, D]`, and returns those of all tokens so far.
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx-lm `cache.py` (`KVCache`).
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<(Array, Array)> {
        let end = self.len + keys.dim(2);
        let (k, v) = self.append(keys, values)?;
        Ok((first(k, end)?, first(v, end)?))
    }

    /// Appends `keys` and `values`, `[B, H, L, D]`, and returns the buffers, of which the first [`len`](Self::len) tokens
    /// count.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn append(&mut self, keys: &Array, values: &Array) -> Result<&(Array, Array)> {
        let (k, v) = self.take_with_room(keys.dim(0), keys, values)?;
        let written = (write(k, keys, self.len)?, write(v, values, self.len)?);
        Ok(self.put(written, keys.dim(2)))
    }

    /// The buffers, taken out, of `rows` rows and with room for as many tokens more as `keys` and `values` have.
    /// [`put`](Self::put) gives them back.
    pub(crate) fn take_with_room(
        &mut self,
        rows: i32,
        keys: &Array,
        values: &Array,
    ) -> Result<(Array, Array)> {
        match self.buffers.take() {
            Some((k, v)) if self.len + keys.dim(2) <= k.dim(2) => Ok((k, v)),
            held => {
                let room = room_for(keys.dim(2), self.len);
                let (held_k, held_v) = held.unzip();
                let like = |tokens| ops::slice_axis(tokens, 0, 0, rows);
                let k = grow(held_k, self.len, &like(keys)?, room)?;
                Ok((k, grow(held_v, self.len, &like(values)?, room)?))
            }
        }
    }

    /// Gives back buffers to which `added` tokens were written.
    pub(crate) fn put(&mut self, buffers: (Array, Array), added: i32) -> &(Array, Array) {
        self.len += added;
        self.buffers.insert(buffers)
    }

    /// Forgets the last `n` tokens, or all where there are fewer; returns how many.
    pub fn trim(&mut self, n: i32) -> i32 {
        let n = n.clamp(0, self.len);
        self.len -= n;
        n
    }

    pub(super) fn clear(&mut self) {
        *self = Self { is_latent: self.is_latent, ..Self::default() };
    }

    /// The same tokens, packed.
    ///
    /// # Errors
    /// `Mlx`, when the width of a head is not a multiple of the group size.
    /// # Source
    /// mlx-lm `cache.py` (`KVCache.to_quantized`).
    pub fn to_quantized(&self, quantization: KvQuantization) -> Result<QuantizedKvCache> {
        QuantizedKvCache::of(self.buffers.as_ref(), self.len, quantization)
    }
}

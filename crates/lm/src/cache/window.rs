use mlx::recording::Ring;
use mlx::{Array, Dtype, ops};

use super::buffer::{GROW_STEP, between, first, grow, write};
use super::{AttentionMask, windowed};
use crate::error::Result;

/// One layer's keys and values of the last tokens, and of the first `keep` ones, in a ring.
///
/// Keys stand in the order in which the ring was written, not in that of the sequence; attention does not ask for
/// the order, and follows mlx-lm's so that sums are added in the same one.
///
/// # Source
/// mlx-lm `cache.py` (`RotatingKVCache`).
#[derive(Debug, Clone)]
pub struct WindowCache {
    pub(super) buffers: Option<(Array, Array)>,
    max_size: i32,
    keep: i32,
    /// Tokens seen.
    offset: i32,
    /// Where the ring is written next.
    index: i32,
}

impl WindowCache {
    /// An empty one for `max_size` tokens, of which the sequence's first `keep` stay for ever.
    pub fn new(max_size: i32, keep: i32) -> Self {
        let max_size = max_size.max(1);
        Self { buffers: None, max_size, keep: keep.clamp(0, max_size - 1), offset: 0, index: 0 }
    }

    /// One that continues what a file holds: `numbers` as [`numbers`](Self::numbers) gives them.
    pub(super) fn from_parts(
        buffers: Option<(Array, Array)>,
        numbers: [i32; 4],
    ) -> std::result::Result<Self, String> {
        let [offset, keep, max_size, index] = numbers;
        let size = buffers.as_ref().map_or(0, |(k, _)| k.dim(2));
        let is_sound = (0..max_size).contains(&keep)
            && (0..=size).contains(&index)
            && offset >= index
            && (size > 0 || offset == 0);
        if !is_sound {
            return Err(format!(
                "claims token {offset} at {index} of {size}, a window of {max_size} that keeps {keep}"
            ));
        }
        Ok(Self { buffers, max_size, keep, offset, index })
    }

    /// Tokens seen, those kept for ever, the window, and where the ring is written next: mlx-lm's state.
    pub(super) fn numbers(&self) -> [i32; 4] {
        [self.offset, self.keep, self.max_size, self.index]
    }

    /// Tokens seen, those that were overwritten included: where the next one stands.
    pub fn len(&self) -> i32 {
        self.offset
    }

    /// Whether no token was seen.
    pub fn is_empty(&self) -> bool {
        self.offset == 0
    }

    /// Most tokens that a single new one sees, itself included.
    pub fn max_size(&self) -> i32 {
        self.max_size
    }

    /// Tokens at the start of the sequence that stay.
    pub fn keep(&self) -> i32 {
        self.keep
    }

    /// Whether tokens can be taken back: not once the ring has begun to overwrite.
    pub fn can_trim(&self) -> bool {
        self.offset < self.max_size
    }

    /// Forgets the last `n` tokens where it can; returns how many.
    pub fn trim(&mut self, n: i32) -> i32 {
        if !self.can_trim() {
            return 0;
        }
        let n = n.clamp(0, self.offset);
        self.offset -= n;
        self.index -= n;
        n
    }

    /// Appends `keys` and `values`, `[B, H, L, D]`, and returns what the new tokens may see.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<(Array, Array)> {
        let held = self.buffers.take();
        if keys.dim(2) == 1 {
            self.put(held, keys, values)
        } else {
            self.append(held, keys, values)
        }
    }

    /// Several tokens: each of them sees `max_size`, so that more are kept for a while.
    fn append(
        &mut self,
        held: Option<(Array, Array)>,
        keys: &Array,
        values: &Array,
    ) -> Result<(Array, Array)> {
        let all = match held {
            None => (keys.clone(), values.clone()),
            Some((k, v)) => {
                let (k, v) = (self.in_order(&k)?, self.in_order(&v)?);
                let excess = k.dim(2) - self.max_size + 1;
                (self.cut(&k, excess, Some(keys))?, self.cut(&v, excess, Some(values))?)
            }
        };
        self.offset += keys.dim(2);
        self.index = all.0.dim(2);
        self.buffers = Some(all.clone());
        Ok(all)
    }

    /// A single token.
    fn put(
        &mut self,
        held: Option<(Array, Array)>,
        keys: &Array,
        values: &Array,
    ) -> Result<(Array, Array)> {
        let size = held.as_ref().map_or(0, |(k, _)| k.dim(2));
        let (mut k, mut v) = match held {
            Some((k, v)) if self.offset < size || size >= self.max_size => (k, v),
            held => {
                let room = GROW_STEP.min(self.max_size - self.offset);
                let (held_k, held_v) = held.unzip();
                self.index = self.offset;
                (grow(held_k, size, keys, room)?, grow(held_v, size, values, room)?)
            }
        };
        let excess = k.dim(2) - self.max_size;
        if excess > 0 {
            k = self.cut(&k, excess, None)?;
            v = self.cut(&v, excess, None)?;
            self.index = self.max_size;
        }
        if self.index == self.max_size {
            self.index = self.keep;
        }
        k = write(k, keys, self.index)?;
        v = write(v, values, self.index)?;
        self.offset += 1;
        self.index += 1;
        let filled = self.offset.min(k.dim(2));
        let all = (first(&k, filled)?, first(&v, filled)?);
        self.buffers = Some((k, v));
        Ok(all)
    }

    /// The rows that the next single token finds, and where it goes; without room for it where the ring still grows.
    /// `None` where nothing is held.
    pub(crate) fn ring(&self) -> Result<Option<((Array, Array), Ring)>> {
        let Some((k, v)) = &self.buffers else { return Ok(None) };
        let (size, keep) = (self.max_size, self.keep);
        let excess = k.dim(2) - size;
        Ok(Some(if excess > 0 {
            let buffers = (self.cut(k, excess, None)?, self.cut(v, excess, None)?);
            (buffers, Ring { size, keep, index: size })
        } else {
            let is_full = excess == 0 || self.offset < k.dim(2);
            let index = if is_full { self.index } else { self.offset };
            ((k.clone(), v.clone()), Ring { size, keep, index })
        }))
    }

    /// One of the buffers of such a ring, with its whole size, after `offset` tokens.
    pub(crate) fn from_ring(buffers: (Array, Array), ring: Ring, offset: i32) -> Self {
        let Ring { size, keep, index } = ring;
        Self { buffers: Some(buffers), max_size: size, keep, offset, index }
    }

    /// Without `excess` tokens behind the ones that stay; `appended` behind it.
    fn cut(&self, buffer: &Array, excess: i32, appended: Option<&Array>) -> Result<Array> {
        let mut parts = match excess > 0 {
            true => {
                vec![first(buffer, self.keep)?, between(buffer, excess + self.keep, buffer.dim(2))?]
            }
            false => vec![buffer.clone()],
        };
        parts.extend(appended.cloned());
        parts.retain(|part| part.dim(2) > 0);
        Ok(ops::concatenate(&parts, 2)?)
    }

    /// The tokens of a buffer in the order of the sequence.
    fn in_order(&self, buffer: &Array) -> Result<Array> {
        let size = buffer.dim(2);
        if self.index == size {
            return Ok(buffer.clone());
        }
        if self.index >= self.offset {
            return first(buffer, self.index);
        }
        let parts = [
            first(buffer, self.keep)?,
            between(buffer, self.index, size)?,
            between(buffer, self.keep, self.index)?,
        ];
        Ok(ops::concatenate(parts.iter().filter(|part| part.dim(2) > 0), 2)?)
    }

    /// Which of the keys that [`WindowCache::update`] will return the next `l` tokens see.
    pub(super) fn mask(&self, l: i32, window: Option<i32>) -> Result<AttentionMask> {
        if l > 1 {
            let window = window.unwrap_or(self.max_size);
            let before = self.offset.min(self.max_size - 1);
            return match before + l > window {
                true => windowed(l, before, window),
                false => Ok(AttentionMask::Causal),
            };
        }
        let Some(window) = window else { return Ok(AttentionMask::None) };
        if self.offset < window || self.max_size <= window {
            return Ok(AttentionMask::None);
        }
        // A narrower window than the ring: the newest tokens, wherever they stand in it.
        let size = self.max_size.min(self.offset + 1);
        let index = if self.index >= self.max_size { 0 } else { self.index };
        let seen: Vec<bool> =
            (0..size).map(|at| (at - index - 1).rem_euclid(size) >= size - window).collect();
        let mask = Array::from_slice(&seen, &[1, size])?;
        debug_assert_eq!(mask.dtype(), Dtype::Bool);
        Ok(AttentionMask::Array(mask))
    }

    /// Drops room that holds no token, so that caches of the same tokens have the same shapes.
    pub(super) fn compact(&mut self) -> Result<()> {
        if let Some((k, v)) = &self.buffers {
            let (k, v) = (self.in_order(k)?, self.in_order(v)?);
            self.index = k.dim(2);
            self.buffers = Some((k, v));
        }
        Ok(())
    }

    /// Whether both hold the same positions under the same limits.
    pub(super) fn matches(&self, other: &Self) -> bool {
        let facts = |w: &Self| (w.max_size, w.keep, w.offset);
        facts(self) == facts(other)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.max_size, self.keep);
    }
}

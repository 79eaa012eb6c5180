use mlx::Array;
use mlx::recording::{RecordedKv, StepInput};

use super::{Position, buffer};
use crate::cache::KvCache;
use crate::error::Result;

/// One layer's keys and values while a step is recorded: in place, at a position that is data. It lives as long as the
/// step's graph is built, and a clone is the same memory.
#[derive(Debug, Clone)]
pub struct RecordedKvCache {
    kv: RecordedKv,
    input: StepInput,
    is_latent: bool,
}

impl RecordedKvCache {
    /// What `kv` holds, copied; `None` where it holds nothing.
    ///
    /// # Errors
    /// `Mlx`.
    pub(crate) fn of(kv: &KvCache, input: &StepInput, capacity: i32) -> Result<Option<Self>> {
        let Some((keys, values)) = &kv.buffers else { return Ok(None) };
        let recorded = input.kv(keys, values, capacity)?;
        Ok(Some(Self { kv: recorded, input: input.clone(), is_latent: kv.is_latent() }))
    }

    /// The memory, for who records.
    pub(crate) fn kv(&self) -> &RecordedKv {
        &self.kv
    }

    /// Whether it holds latents.
    pub fn is_latent(&self) -> bool {
        self.is_latent
    }

    /// Tokens held before the step.
    pub fn len(&self) -> i32 {
        self.input.held()
    }

    /// Whether no token is held: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the step's token stands.
    ///
    /// # Errors
    /// `Mlx` once the step is recorded.
    pub fn position(&self) -> Result<Position> {
        Ok(Position::Dynamic(self.input.position()?))
    }

    /// Attention of the step's token, which is appended.
    ///
    /// - `q`: `[1, H, 1, D]`; `k`, `v`: `[1, Hkv, 1, D]`; returns `[1, H, 1, D]`
    ///
    /// # Errors
    /// `Mlx`, also where there is no kernel.
    pub fn attend(&self, qkv: [&Array; 3], scale: f32, sinks: Option<&Array>) -> Result<Array> {
        Ok(self.kv.attend(qkv, scale, sinks)?)
    }

    /// The same of latent attention: `q` and the token's are of latents and, rotated, of keys.
    ///
    /// - `q`: `[1, H, 1, R]`, `[1, H, 1, P]`; `token`: `[1, 1, 1, R]`, `[1, 1, 1, P]`; returns `[1, H, 1, R]`
    ///
    /// # Errors
    /// `Mlx`, also where there is no kernel.
    pub fn attend_latents(&self, q: [&Array; 2], token: [&Array; 2], scale: f32) -> Result<Array> {
        Ok(self.kv.attend_latents(q, token, scale)?)
    }
}

impl KvCache {
    /// One of buffers that hold `len` tokens: those of a recording that is over.
    pub(crate) fn from_buffers(buffers: (Array, Array), len: i32, is_latent: bool) -> Self {
        Self { buffers: Some(buffers), len, is_latent }
    }

    /// Tokens that there will be room for once there is another one.
    pub(crate) fn capacity_for_next(&self) -> i32 {
        match self.capacity() {
            held if self.len < held => held,
            _ => self.len + buffer::room_for(1, self.len),
        }
    }

    /// Rows of the buffers; 0 without.
    pub(crate) fn num_rows(&self) -> i32 {
        self.buffers.as_ref().map_or(0, |(keys, _)| keys.dim(0))
    }
}

//! Latent attention of a recorded step.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::{Array, Result};

/// What `recorded_latent_attention` is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecordedLatentAttention {
    /// Width of a latent, R.
    pub latent_dim: i32,
    /// Width of a rotated key, P.
    pub rope_dim: i32,
}

impl RecordedLatentAttention {
    /// GLM-4.7-Flash's.
    pub(super) const TYPICAL: Self = Self { latent_dim: 512, rope_dim: 64 };
}

impl Ask for RecordedLatentAttention {
    fn primitive(&self) -> &'static str {
        "recorded_latent_attention"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new().with("latent_dim", self.latent_dim).with("rope_dim", self.rope_dim)
    }
}

/// What `recorded_latent_attention` reads besides its queries: latents, and rotated keys.
pub(crate) struct RecordedLatents<'a> {
    /// The token's own, `[B, 1, 1, R]` and `[B, 1, 1, P]`.
    pub(crate) token: [&'a Array; 2],
    /// Buffers `[B, 1, T, R]` and `[B, 1, T, P]`, memory of their own.
    pub(crate) held: [&'a Array; 2],
    /// `[B]` `int32`: how many tokens count, this one included, from 1 to `T` (a number outside is taken for the nearest).
    pub(crate) lengths: &'a Array,
}

/// Latent attention of one token over buffers that it is appended to, in place, whoever holds them; that is why
/// [`RecordedKv`](crate::recording::RecordedKv) alone calls it. Two launches; rotations of queries and key by
/// [`qk_norm_rope`](super::qk_norm_rope()) that were not computed yet are taken in.
///
/// Stock: [`slice_update`](crate::ops::slice_update) twice, and over the first `lengths` tokens two products of matrices by
/// vectors, their sum, [`softmax`](crate::ops::softmax), and a product of the latents, transposed, by its result.
///
/// - `q`: `[B, H, 1, R]` and, rotated, `[B, H, 1, P]`; returns `[B, H, 1, R]`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// mlx-lm `deepseek_v3.py` (`DeepseekV3Attention`).
pub(crate) fn recorded_latent_attention(
    q: [&Array; 2],
    kv: &RecordedLatents<'_>,
    scale: f32,
) -> Result<Array> {
    let [q, q_rope] = q.map(Array::raw);
    let [latent, k_rope] = kv.token.map(Array::raw);
    let [latents, keys] = kv.held.map(Array::raw);
    let lengths = kv.lengths.raw();
    let y = ffi::fused_recorded_latent_attention(
        q, q_rope, latent, k_rope, latents, keys, lengths, scale,
    )?;
    Ok(Array::wrap(y))
}

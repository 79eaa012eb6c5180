//! Attention of a recorded step.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::array::opt;
use crate::{Array, Result};

/// What `recorded_attention` is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecordedAttention {
    /// Width of a head, D.
    pub head_dim: i32,
}

impl RecordedAttention {
    /// Qwen3-30B-A3B's.
    pub(super) const TYPICAL: Self = Self { head_dim: 128 };
}

impl Ask for RecordedAttention {
    fn primitive(&self) -> &'static str {
        "recorded_attention"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new().with("head_dim", self.head_dim)
    }
}

/// What `recorded_attention` reads besides its queries.
pub(crate) struct RecordedKeysValues<'a> {
    /// The token's own, `[B, Hkv, 1, D]`.
    pub(crate) token: [&'a Array; 2],
    /// Buffers `[B, Hkv, T, D]`, memory of their own.
    pub(crate) held: [&'a Array; 2],
    /// `[B]` `int32`: how many tokens count, this one included, from 1 to `T` (a number outside is taken for the nearest).
    pub(crate) lengths: &'a Array,
    /// Whether stock's order of additions for more than 1,024 keys is meant.
    pub(crate) many: bool,
    /// Where the buffers are a window's: how many of its first rows stay, and how much further than its position a token
    /// stands, before it starts over behind those. `lengths` then have no bound, and the last `T` tokens count.
    pub(crate) ring: Option<[i32; 2]>,
}

/// Attention of one token over buffers that it is appended to, in place, whoever holds them; that is why
/// [`RecordedKv`](crate::recording::RecordedKv) alone calls it. One launch, two where there are many keys; norm and rotation
/// of `q` and `k` by [`qk_norm_rope`](super::qk_norm_rope()) that were not computed yet are taken in.
///
/// Stock: [`slice_update`](crate::ops::slice_update) twice,
/// [`scaled_dot_product_attention`](crate::fast::scaled_dot_product_attention) over the first `lengths` tokens, by the
/// kernels that it has for one query.
///
/// - `q`: `[B, H, 1, D]`, H a multiple of Hkv; `sinks`: `[H]`; returns `[B, H, 1, D]`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// mlx-lm `base.py` (`scaled_dot_product_attention`).
pub(crate) fn recorded_attention(
    q: &Array,
    kv: &RecordedKeysValues<'_>,
    sinks: Option<&Array>,
    scale: f32,
) -> Result<Array> {
    let [k, v] = kv.token.map(Array::raw);
    let [keys, values] = kv.held.map(Array::raw);
    let (q, lengths, sinks) = (q.raw(), kv.lengths.raw(), opt(sinks));
    let (many, ring) = (kv.many, kv.ring.as_ref().map_or(&[][..], <[i32; 2]>::as_slice));
    Ok(Array::wrap(ffi::fused_recorded_attention(
        q, k, v, keys, values, lengths, &sinks, scale, many, ring,
    )?))
}

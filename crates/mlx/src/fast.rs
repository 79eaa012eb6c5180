//! MLX's fused operations (`mlx/fast.h`).

use zmlx_sys::ffi;

use crate::array::opt;
use crate::{Array, Result};

/// x / √(mean(x²) + eps) · weight over the last axis (arXiv:1910.07467).
///
/// - `x`: `[.., D]` floating; `weight`: `[D]`, absent means ones
/// - returns `[.., D]`, dtype of `x`; the mean is taken in `float32`
pub fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    Ok(Array::wrap(ffi::rms_norm(x.raw(), &opt(weight), eps)?))
}

/// (x - mean) / √(var + eps) · weight + bias over the last axis (arXiv:1607.06450).
///
/// - `x`: `[.., D]` floating; `weight`, `bias`: `[D]`
pub fn layer_norm(
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f32,
) -> Result<Array> {
    Ok(Array::wrap(ffi::layer_norm(x.raw(), &opt(weight), &opt(bias), eps)?))
}

/// Parameters of rotary position embedding (arXiv:2104.09864).
#[derive(Debug, Clone)]
pub struct Rope {
    /// Leading part of the last axis that is rotated.
    pub dims: i32,
    /// Rotate neighbouring pairs instead of halves.
    pub traditional: bool,
    /// Base of the frequencies; not used when `freqs` is given.
    pub base: f32,
    /// Scale of the positions.
    pub scale: f32,
    /// What positions are divided by, `[dims / 2]`: `base^(2i / dims)` where no scaling changes them.
    /// Their reciprocals are the frequencies.
    pub freqs: Option<Array>,
}

/// Rotates `x` `[.., L, D]`, whose first position is `offset`.
pub fn rope(x: &Array, rope: &Rope, offset: i32) -> Result<Array> {
    let Rope { dims, traditional, base, scale, freqs } = rope;
    let freqs = opt(freqs.as_ref());
    Ok(Array::wrap(ffi::rope(x.raw(), *dims, *traditional, *base, *scale, offset, &freqs)?))
}

/// [`rope`] with the first position in an array (a scalar or one per batch row), so that the graph
/// does not depend on its value.
pub fn rope_dynamic(x: &Array, rope: &Rope, offset: &Array) -> Result<Array> {
    let Rope { dims, traditional, base, scale, freqs } = rope;
    let freqs = opt(freqs.as_ref());
    let offset = offset.raw();
    Ok(Array::wrap(ffi::rope_dynamic(x.raw(), *dims, *traditional, *base, *scale, offset, &freqs)?))
}

/// Which keys a query may see.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// All of them.
    None,
    /// Those at its own position or before, aligned at the last key.
    Causal,
    /// Boolean (true: visible) or additive, broadcastable to `[B, H, Lq, Lk]`.
    Array(&'a Array),
}

/// softmax(q·kᵀ·scale + mask)·v.
///
/// - `q`: `[B, H, Lq, D]`; `k`, `v`: `[B, Hkv, Lk, D]` with `H` a multiple of `Hkv`
/// - `sinks`: `[H]`, a logit of each head that takes part in its softmax and has no value
/// - returns `[B, H, Lq, D]`
pub fn scaled_dot_product_attention(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f32,
    mask: Mask<'_>,
    sinks: Option<&Array>,
) -> Result<Array> {
    let (mode, array) = match mask {
        Mask::None => ("", None),
        Mask::Causal => ("causal", None),
        Mask::Array(a) => ("", Some(a)),
    };
    Ok(Array::wrap(ffi::sdpa(q.raw(), k.raw(), v.raw(), scale, mode, &opt(array), &opt(sinks))?))
}

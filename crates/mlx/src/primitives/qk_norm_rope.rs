//! Norm and rotation of queries and keys.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::array::opt;
use crate::fast::Rope;
use crate::{Array, Result};

/// What [`qk_norm_rope`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkNormRope {
    /// Heads of the projection.
    pub num_heads: i32,
    /// Width of a head, D.
    pub head_dim: i32,
    /// Whether the heads are normed.
    pub norm: bool,
    /// Leading part of a head that is rotated; see [`Rope::dims`].
    pub dims: i32,
    /// See [`Rope::traditional`].
    pub traditional: bool,
    /// Whether the frequencies come as an array.
    pub freqs: bool,
    /// What the part that is rotated is multiplied by first.
    pub input_scale: f32,
}

impl QkNormRope {
    /// Qwen3-30B-A3B's queries.
    pub(super) const TYPICAL: Self = Self {
        num_heads: 32,
        head_dim: 128,
        norm: true,
        dims: 128,
        traditional: false,
        freqs: false,
        input_scale: 1.0,
    };
}

impl Ask for QkNormRope {
    fn primitive(&self) -> &'static str {
        "qk_norm_rope"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
            .with("num_heads", self.num_heads)
            .with("head_dim", self.head_dim)
            .with("norm", self.norm)
            .with("dims", self.dims)
            .with("traditional", self.traditional)
            .with("freqs", self.freqs)
            .with("input_scale", self.input_scale)
    }
}

/// A rotation, and what the part that it turns is multiplied by first (arXiv:2309.00071).
#[derive(Debug, Clone, Copy)]
pub struct ScaledRope<'a> {
    /// The rotation.
    pub rope: &'a Rope,
    /// 1 where nothing is multiplied.
    pub input_scale: f32,
}

impl<'a> From<&'a Rope> for ScaledRope<'a> {
    fn from(rope: &'a Rope) -> Self {
        Self { rope, input_scale: 1.0 }
    }
}

/// Heads of a query or key projection, normed and rotated, in one launch.
///
/// Stock: reshape to `[B, L, num_heads, D]`, [`fast::rms_norm`](crate::fast::rms_norm) over each
/// head (absent without `weight`), transpose to `[B, num_heads, L, D]`, a product with the input scale,
/// [`fast::rope`](crate::fast::rope).
///
/// - `x`: `[B, L, num_heads * D]` or `[B, L, num_heads, D]`, any strides; `weight`: `[D]`
/// - `offset`: position of the first row
/// - returns `[B, num_heads, L, D]`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// arXiv:2104.09864; mlx-lm `qwen3_moe.py` (`Attention`).
pub fn qk_norm_rope<'a>(
    x: &Array,
    num_heads: i32,
    weight: Option<&Array>,
    eps: f32,
    rope: impl Into<ScaledRope<'a>>,
    offset: i32,
) -> Result<Array> {
    qk_norm_rope_dynamic(x, num_heads, weight, eps, rope, &Array::scalar(offset)?)
}

/// [`qk_norm_rope`] with the first position in an array (a scalar or one per batch row), so that
/// the graph does not depend on its value.
pub fn qk_norm_rope_dynamic<'a>(
    x: &Array,
    num_heads: i32,
    weight: Option<&Array>,
    eps: f32,
    rope: impl Into<ScaledRope<'a>>,
    offset: &Array,
) -> Result<Array> {
    let ScaledRope { rope, input_scale } = rope.into();
    let Rope { dims, traditional, base, scale, freqs } = rope;
    Ok(Array::wrap(ffi::fused_qk_norm_rope(
        x.raw(),
        num_heads,
        &opt(weight),
        eps,
        *dims,
        *traditional,
        *base,
        *scale,
        input_scale,
        &opt(freqs.as_ref()),
        offset.raw(),
    )?))
}

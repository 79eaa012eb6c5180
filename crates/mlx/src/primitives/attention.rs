//! Attention with grouped key and value heads.

use zmlx_sys::ffi;

use super::{Ask, Parameters, Precision};
use crate::{Array, Result};

/// What [`attention`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub num_heads: i32,
    /// Key and value heads.
    pub num_kv_heads: i32,
    /// Width of a query and of a key.
    pub head_dim: i32,
    /// Width of a value.
    pub value_dim: i32,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// How many keys a query sees, if not all.
    pub window: Option<i32>,
    /// Whether there is a mask in an array.
    pub mask: bool,
    /// Whether there are attention sinks.
    pub sinks: bool,
}

impl Attention {
    /// Qwen3-30B-A3B's.
    pub(super) const TYPICAL: Self = Self {
        num_heads: 32,
        num_kv_heads: 4,
        head_dim: 128,
        value_dim: 128,
        causal: true,
        window: None,
        mask: false,
        sinks: false,
    };
}

impl Ask for Attention {
    fn primitive(&self) -> &'static str {
        "attention"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
            .with("num_heads", self.num_heads)
            .with("num_kv_heads", self.num_kv_heads)
            .with("head_dim", self.head_dim)
            .with("value_dim", self.value_dim)
            .with("causal", self.causal)
            .with("window", self.window.unwrap_or(0))
            .with("mask", self.mask)
            .with("sinks", self.sinks)
    }
}

/// softmax(q·kᵀ·scale)·v with grouped key and value heads in one launch.
///
/// Stock: [`fast::scaled_dot_product_attention`](crate::fast::scaled_dot_product_attention) without
/// a mask or, if `causal`, with [`Mask::Causal`](crate::fast::Mask::Causal). Its `float32` products
/// run in an order that cannot be repeated, so `float32` is [`Precision::Fast`] only.
///
/// - `q`: `[B, H, Lq, D]`; `k`: `[B, Hkv, Lk, D]`; `v`: `[B, Hkv, Lk, Dv]`, any strides: slices of
///   a larger cache are read in place
/// - returns `[B, H, Lq, Dv]` over memory `[B, Lq, H, Dv]`, so that merging the heads copies nothing
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// arXiv:1706.03762; fast: arXiv:2205.14135.
pub fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f32,
    causal: bool,
    precision: Precision,
) -> Result<Array> {
    let fast = precision == Precision::Fast;
    Ok(Array::wrap(ffi::fused_attention(q.raw(), k.raw(), v.raw(), scale, causal, fast)?))
}

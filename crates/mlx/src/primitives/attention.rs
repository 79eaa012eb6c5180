//! Attention with grouped key and value heads.

use zmlx_sys::ffi;

use super::{Ask, Parameters, Precision};
use crate::array::{array_vec, opt};
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
    attention_rows(q, [k], [v], None, scale, causal, precision)
}

/// [`attention`] in which each batch row has keys and values of its own, of any length, in one
/// launch: each row has the bits that it has alone.
///
/// - `q`: `[B, H, Lq, D]`; `keys`: B of `[1, Hkv, Lk, D]`; `values`: B of `[1, Hkv, Lk, Dv]`; every
///   row's `Lk` from 1
/// - `lengths`: `[B]` integers, how many of each row's first keys count, from 1 to `Lk` (a number
///   outside is taken for the nearest of them); all by default
/// - returns `[B, H, Lq, Dv]`
///
/// # Errors
/// As [`attention`].
pub fn attention_rows<'a>(
    q: &Array,
    keys: impl IntoIterator<Item = &'a Array>,
    values: impl IntoIterator<Item = &'a Array>,
    lengths: Option<&Array>,
    scale: f32,
    causal: bool,
    precision: Precision,
) -> Result<Array> {
    let (keys, values) = (array_vec(keys), array_vec(values));
    let fast = precision == Precision::Fast;
    Ok(Array::wrap(ffi::fused_attention(
        q.raw(),
        &keys,
        &values,
        &opt(lengths),
        scale,
        causal,
        fast,
    )?))
}

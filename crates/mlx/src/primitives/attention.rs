//! Attention with grouped key and value heads.

use zmlx_sys::ffi;

use super::{Ask, Parameters, Precision};
use crate::array::{array_vec, opt};
use crate::{Array, Error, Result};

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
    /// Width of rotated parts that are kept apart from queries and keys; 0 where there are none.
    pub rope_dim: i32,
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
        rope_dim: 0,
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
            .with("rope_dim", self.rope_dim)
    }
}

/// What attention may have besides queries, keys and values. `true` and `false` are causal and not, and
/// nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttentionOptions<'a> {
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// Under a causal mask, how many keys a query sees at most, its own included.
    pub window: Option<i32>,
    /// A logit of each head, `[H]`, that takes part in its softmax alone (arXiv:2309.17453).
    pub sinks: Option<&'a Array>,
    /// Rotated parts of queries and keys that are kept apart from the rest.
    pub rope: Option<RopeParts<'a>>,
}

/// The rotated parts of queries and keys in multi-head latent attention (arXiv:2405.04434). Their
/// scaled product is added to the scores.
#[derive(Debug, Clone, Copy)]
pub struct RopeParts<'a> {
    /// `[B, H, Lq, R]`.
    pub q: &'a Array,
    /// `[B, 1, Lk, R]`, which all heads share; for each cache `[1, 1, Lk, R]` where every row has one.
    pub keys: &'a [Array],
}

impl From<bool> for AttentionOptions<'_> {
    fn from(causal: bool) -> Self {
        Self { causal, ..Self::default() }
    }
}

/// softmax(q·kᵀ·scale)·v with grouped key and value heads in one launch.
///
/// Stock: [`fast::scaled_dot_product_attention`](crate::fast::scaled_dot_product_attention) without
/// a mask or, if causal, with [`Mask::Causal`](crate::fast::Mask::Causal); a window is a mask of `bool`;
/// rotated parts are a mask `(q·scale)·keysᵀ`, with the lowest number of the type where nothing is seen.
/// Its `float32` products run in an order that cannot be repeated, so `float32` is
/// [`Precision::Fast`] only.
///
/// - `q`: `[B, H, Lq, D]`; `k`: `[B, Hkv, Lk, D]`; `v`: `[B, Hkv, Lk, Dv]`, any strides: slices of
///   a larger cache are read in place, and `k` may be `v`
/// - returns `[B, H, Lq, Dv]` over memory `[B, Lq, H, Dv]`, so that merging the heads copies nothing
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// arXiv:1706.03762; fast: arXiv:2205.14135; mlx-lm `gpt_oss.py` (`AttentionBlock`), `deepseek_v3.py`
/// (`DeepseekV3Attention`).
pub fn attention<'a>(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f32,
    options: impl Into<AttentionOptions<'a>>,
    precision: Precision,
) -> Result<Array> {
    attention_rows(q, [k], [v], None, scale, options, precision)
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
pub fn attention_rows<'a, 'b>(
    q: &Array,
    keys: impl IntoIterator<Item = &'a Array>,
    values: impl IntoIterator<Item = &'a Array>,
    lengths: Option<&Array>,
    scale: f32,
    options: impl Into<AttentionOptions<'b>>,
    precision: Precision,
) -> Result<Array> {
    let AttentionOptions { causal, window, sinks, rope } = options.into();
    if window.is_some_and(|window| window < 1) {
        let message = format!("[attention] a window should be positive, got {window:?}");
        return Err(Error::InvalidArgument { message });
    }
    let rope_keys = rope.map_or(&[][..], |rope| rope.keys);
    Ok(Array::wrap(ffi::fused_attention(
        q.raw(),
        &array_vec(keys),
        &array_vec(values),
        &opt(lengths),
        &opt(sinks),
        &opt(rope.map(|rope| rope.q)),
        &array_vec(rope_keys),
        scale,
        causal,
        window.unwrap_or(0),
        precision == Precision::Fast,
    )?))
}

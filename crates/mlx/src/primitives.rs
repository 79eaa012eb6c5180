//! The fused launches that zmlx adds to MLX.
//!
//! Under [`Precision::Exact`] every one of them returns the bits that the stock ops named in its
//! documentation return on the same device. Without the `custom-primitive` feature, or where a
//! device has no kernel, the functions return an error and [`supports`] says why; falling back is
//! the caller's decision, so that nothing silent passes for a result.

use zmlx_sys::{UniquePtr, ffi};

use crate::array::{array_vec, from_array_vec, opt};
use crate::fast::Rope;
use crate::quantization::{Quantization, QuantizedWeight};
use crate::{Array, Device, Dtype, Result};

/// What the order and width of accumulation may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// The bits of the stock ops.
    #[default]
    Exact,
    /// `float32` accumulation in any order: faster, more accurate, not the same bits.
    Fast,
}

/// The primitives of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Primitive {
    /// [`gather_qmm_swiglu`].
    GatherQmmSwiglu,
    /// [`gather_qmm_combine`].
    GatherQmmCombine,
    /// [`moe_router`].
    MoeRouter,
    /// [`quantized_matmul`].
    QuantizedMatmul,
    /// [`rms_norm`].
    RmsNorm,
    /// [`qk_norm_rope`].
    QkNormRope,
    /// [`attention`], exact.
    Attention,
    /// [`greedy_token`].
    GreedyToken,
}

impl Primitive {
    /// Every primitive.
    pub const ALL: &[Primitive] = &[
        Primitive::GatherQmmSwiglu,
        Primitive::GatherQmmCombine,
        Primitive::MoeRouter,
        Primitive::QuantizedMatmul,
        Primitive::RmsNorm,
        Primitive::QkNormRope,
        Primitive::Attention,
        Primitive::GreedyToken,
    ];

    /// Name of the op.
    pub fn name(self) -> &'static str {
        match self {
            Primitive::GatherQmmSwiglu => "gather_qmm_swiglu",
            Primitive::GatherQmmCombine => "gather_qmm_combine",
            Primitive::MoeRouter => "moe_router",
            Primitive::QuantizedMatmul => "quantized_matmul",
            Primitive::RmsNorm => "rms_norm",
            Primitive::QkNormRope => "qk_norm_rope",
            Primitive::Attention => "attention",
            Primitive::GreedyToken => "greedy_token",
        }
    }
}

/// Whether a primitive runs fused for these parameters; the reason when it does not.
///
/// `dtype` is that of the activations; `quantization` and `transpose` matter for the primitives that
/// take quantized weights only.
pub fn supports(
    primitive: Primitive,
    device: Device,
    dtype: Dtype,
    quantization: Quantization,
    transpose: bool,
) -> Result<(), String> {
    let support = ffi::fused_supports(
        primitive.name(),
        device.is_gpu(),
        dtype.id(),
        &quantization.params(),
        transpose,
    );
    match support {
        Ok(s) if s.fused => Ok(()),
        Ok(s) => Err(s.reason),
        Err(e) => Err(crate::Error::from(e).to_string()),
    }
}

fn parts(w: &QuantizedWeight) -> UniquePtr<ffi::ArrayVec> {
    array_vec([&w.w, &w.scales].into_iter().chain(&w.biases))
}

/// SwiGLU of each token's routed experts in one launch: silu(x·Wg[e]ᵀ) ∘ (x·Wu[e]ᵀ).
///
/// Stock: [`gather_qmm`](crate::quantization::gather_qmm) twice, then
/// [`swiglu`](crate::ops::swiglu).
///
/// - `x`: `[.., M, K]` `bfloat16` | `float16` | `float32`
/// - `gate`, `up`: `[E, N, K]` quantized alike (`[E, K, N]` without `transpose`)
/// - `lhs_indices`, `rhs_indices`: as in `gather_qmm`; each `rhs_indices` `< E` (not checked on a
///   GPU)
/// - returns `[indices.., M, N]`, dtype of `x`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// arXiv:2002.05202; mlx-lm `switch_layers.py` (`SwitchGLU`).
#[allow(clippy::too_many_arguments, reason = "the op's own arguments, as MLX names them")]
pub fn gather_qmm_swiglu(
    x: &Array,
    gate: &QuantizedWeight,
    up: &QuantizedWeight,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    transpose: bool,
    sorted: bool,
    precision: Precision,
) -> Result<Array> {
    if gate.quantization != up.quantization {
        return Err(crate::Error::InvalidArgument {
            message: format!(
                "[gather_qmm_swiglu] gate and up must be quantized alike, got {} and {}",
                gate.quantization, up.quantization
            ),
        });
    }
    Ok(Array::wrap(ffi::fused_gather_qmm_swiglu(
        x.raw(),
        &parts(gate),
        &parts(up),
        &opt(lhs_indices),
        &opt(rhs_indices),
        transpose,
        &gate.quantization.params(),
        sorted,
        precision == Precision::Fast,
    )?))
}

/// Down projection and weighted sum of each token's experts in one launch.
///
/// Stock: `gather_qmm(x, down, indices)`, squeeze, `· scores[.., None]`, `sum(-2)`.
///
/// - `x`: `[.., k, 1, K]`; `down`: `[E, N, K]`; `indices`: `[.., k]` `uint32`; `scores`: `[.., k]`
/// - returns `[.., N]`, dtype of `x`
///
/// # Source
/// mlx-lm `qwen3_moe.py` (`Qwen3MoeSparseMoeBlock`).
pub fn gather_qmm_combine(
    x: &Array,
    down: &QuantizedWeight,
    indices: &Array,
    scores: &Array,
    precision: Precision,
) -> Result<Array> {
    Ok(Array::wrap(ffi::fused_gather_qmm_combine(
        x.raw(),
        &parts(down),
        indices.raw(),
        scores.raw(),
        &down.quantization.params(),
        precision == Precision::Fast,
    )?))
}

/// How router logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scoring {
    /// Softmax over the experts, accumulated in `float32`.
    Softmax,
    /// Sigmoid of each expert.
    Sigmoid,
}

impl Scoring {
    /// Name of the scoring.
    pub fn name(self) -> &'static str {
        match self {
            Scoring::Softmax => "softmax",
            Scoring::Sigmoid => "sigmoid",
        }
    }
}

/// Scores, top-k selection and normalisation of a router in one launch.
///
/// Stock: `softmax(precise)`, `argpartition(kth = -k)`, the last k, `take_along_axis`, and with
/// `normalize` a division by their sum: the same experts in the same order.
///
/// - `logits`: `[.., E]`; returns indices `[.., k]` `uint32` and scores `[.., k]`, dtype of `logits`
///
/// # Source
/// mlx-lm `qwen3_moe.py` (`Qwen3MoeSparseMoeBlock`).
pub fn moe_router(
    logits: &Array,
    top_k: i32,
    normalize: bool,
    scoring: Scoring,
) -> Result<(Array, Array)> {
    let out = ffi::fused_moe_router(logits.raw(), top_k, normalize, scoring.name())?;
    match <[Array; 2]>::try_from(from_array_vec(&out)?) {
        Ok([indices, scores]) => Ok((indices, scores)),
        Err(_) => unreachable!("the router returns indices and scores"),
    }
}

/// [`quantization::quantized_matmul`](crate::quantization::quantized_matmul), vectorised and
/// threaded.
pub fn quantized_matmul(
    x: &Array,
    w: &QuantizedWeight,
    transpose: bool,
    precision: Precision,
) -> Result<Array> {
    Ok(Array::wrap(ffi::fused_quantized_matmul(
        x.raw(),
        &parts(w),
        transpose,
        &w.quantization.params(),
        precision == Precision::Fast,
    )?))
}

/// [`fast::rms_norm`](crate::fast::rms_norm) in one launch.
///
/// - `x`: `[.., D]` `bfloat16` | `float16` | `float32`, any strides; `weight`: `[D]`
/// - returns `[.., D]`, dtype of `x` promoted with that of `weight`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// arXiv:1910.07467.
pub fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    Ok(Array::wrap(ffi::fused_rms_norm(x.raw(), weight.raw(), eps)?))
}

/// Heads of a query or key projection, normed and rotated, in one launch.
///
/// Stock: reshape to `[B, L, num_heads, D]`, [`fast::rms_norm`](crate::fast::rms_norm) over each
/// head (absent without `weight`), transpose to `[B, num_heads, L, D]`,
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
pub fn qk_norm_rope(
    x: &Array,
    num_heads: i32,
    weight: Option<&Array>,
    eps: f32,
    rope: &Rope,
    offset: i32,
) -> Result<Array> {
    qk_norm_rope_dynamic(x, num_heads, weight, eps, rope, &Array::scalar(offset)?)
}

/// [`qk_norm_rope`] with the first position in an array (a scalar or one per batch row), so that
/// the graph does not depend on its value.
pub fn qk_norm_rope_dynamic(
    x: &Array,
    num_heads: i32,
    weight: Option<&Array>,
    eps: f32,
    rope: &Rope,
    offset: &Array,
) -> Result<Array> {
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
        &opt(freqs.as_ref()),
        offset.raw(),
    )?))
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

/// The token that greedy decoding picks, in one launch.
///
/// Stock: `argmax(logits - logsumexp(logits, -1, keepdims), -1)`. The subtraction rounds to the
/// dtype of the logits, so distinct logits may tie, and then the first wins: not always
/// `argmax(logits)`.
///
/// - `logits`: `[.., V]` `bfloat16` | `float16` | `float32`; returns `[..]` `uint32`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// mlx-lm `generate.py` (`generate_step`).
pub fn greedy_token(logits: &Array) -> Result<Array> {
    Ok(Array::wrap(ffi::fused_greedy_token(logits.raw())?))
}

/// Sets the number of threads of the primitives' CPU pool and of BLAS; 0 means all cores.
///
/// # Errors
/// `InvalidArgument` when `n` is negative.
pub fn set_num_threads(n: i32) -> Result<()> {
    if n < 0 {
        let message = format!("[set_num_threads] expected 0 or more, got {n}");
        return Err(crate::Error::InvalidArgument { message });
    }
    Ok(ffi::set_num_threads(n)?)
}

/// Number of threads of the primitives' CPU pool.
pub fn num_threads() -> i32 {
    ffi::num_threads()
}

/// Instruction set that the CPU kernels use: `avx512bf16`, `avx512`, `avx2`, `neon`, `scalar`, or `none` without
/// the feature.
pub fn cpu_isa() -> String {
    ffi::cpu_isa()
}

/// Uses the kernels of another instruction set, for tests; false when this machine lacks it.
pub fn set_cpu_isa(name: &str) -> bool {
    ffi::set_cpu_isa(name)
}

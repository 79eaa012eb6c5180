//! The fused launches that zmlx adds to MLX.
//!
//! Under [`Precision::Exact`] every one of them returns the bits that the stock ops named in its
//! documentation return on the same device. Without the `custom-primitive` feature, or where a
//! device has no kernel, the functions return an error and [`supports`] says why; falling back is
//! the caller's decision, so that nothing silent passes for a result.

use zmlx_sys::{UniquePtr, ffi};

use crate::array::{array_vec, from_array_vec, opt};
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
}

impl Primitive {
    /// Every primitive.
    pub const ALL: &[Primitive] = &[
        Primitive::GatherQmmSwiglu,
        Primitive::GatherQmmCombine,
        Primitive::MoeRouter,
        Primitive::QuantizedMatmul,
    ];

    /// Name of the op.
    pub fn name(self) -> &'static str {
        match self {
            Primitive::GatherQmmSwiglu => "gather_qmm_swiglu",
            Primitive::GatherQmmCombine => "gather_qmm_combine",
            Primitive::MoeRouter => "moe_router",
            Primitive::QuantizedMatmul => "quantized_matmul",
        }
    }
}

/// Whether a primitive runs fused for these parameters; the reason when it does not.
///
/// `dtype` is that of the activations; `quantization` does not matter for the router.
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
        &*parts(gate),
        &*parts(up),
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
        &*parts(down),
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
        &*parts(w),
        transpose,
        &w.quantization.params(),
        precision == Precision::Fast,
    )?))
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

/// Instruction set that the CPU kernels use: `avx512`, `avx2`, `neon`, `scalar`, or `none` without
/// the feature.
pub fn cpu_isa() -> String {
    ffi::cpu_isa()
}

/// Uses the kernels of another instruction set, for tests; false when this machine lacks it.
pub fn set_cpu_isa(name: &str) -> bool {
    ffi::set_cpu_isa(name)
}

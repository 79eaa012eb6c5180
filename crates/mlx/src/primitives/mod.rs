//! The fused launches that zmlx adds to MLX.
//!
//! Under [`Precision::Exact`] every one of them returns the bits that the stock ops named in its
//! documentation return on the same device. Without the `custom-primitive` feature, or where a
//! device has no kernel, the functions return an error and [`supports`] says why; falling back is
//! the caller's decision, so that nothing silent passes for a result.
//!
//! Each primitive is a file here with its function and its question, a struct that implements
//! [`Ask`]; the C++ side is the folder of the same name in `mlx-patch/overlay/`. Those of a recorded step write to arrays
//! in place and are called by [`recording`](crate::recording) alone.

mod add_rms_norm;
mod ask;
mod attention;
mod cache_append;
mod gated_delta;
mod gather_qmm_combine;
mod gather_qmm_swiglu;
mod glu;
mod greedy_token;
mod moe_router;
mod qk_norm_rope;
mod quantized_embedding;
mod quantized_matmul;
mod recorded_attention;
mod recorded_latent_attention;
mod recorded_step;
mod rms_norm;
mod short_conv;
mod swiglu_mlp;

use zmlx_sys::{UniquePtr, ffi};

use crate::Result;
use crate::array::array_vec;
use crate::quantization::{Mode, Quantization, QuantizedWeight};

pub use add_rms_norm::{AddRmsNorm, add_rms_norm};
pub use ask::{Ask, InType, Parameters, Setting, Value, supports, supports_on_metal};
pub use attention::{Attention, AttentionOptions, RopeParts, attention, attention_rows};
pub use cache_append::{CacheAppend, cache_append};
pub use gated_delta::{GatedDelta, GatedDeltaInputs, gated_delta};
pub use gather_qmm_combine::{GatherQmmCombine, gather_qmm_combine};
pub use gather_qmm_swiglu::{GatherQmmSwiglu, gather_qmm_swiglu};
pub use glu::{Activation, Glu};
pub use greedy_token::{GreedyToken, greedy_token};
pub use moe_router::{MoeRouter, Scoring, moe_router};
pub use qk_norm_rope::{QkNormRope, ScaledRope, qk_norm_rope, qk_norm_rope_dynamic};
pub use quantized_embedding::{QuantizedEmbedding, quantized_embedding};
pub use quantized_matmul::{QuantizedMatmul, quantized_linear, quantized_matmul};
pub use recorded_attention::RecordedAttention;
pub(crate) use recorded_attention::{RecordedKeysValues, recorded_attention};
pub use recorded_latent_attention::RecordedLatentAttention;
pub(crate) use recorded_latent_attention::{RecordedLatents, recorded_latent_attention};
pub use recorded_step::RecordedStep;
pub(crate) use recorded_step::{Carried, recorded_step};
pub use rms_norm::{RmsNorm, rms_norm};
pub use short_conv::{ShortConv, short_conv};
pub use swiglu_mlp::{SwigluMlp, swiglu_mlp};

/// Each primitive with a typical question: Qwen3-30B-A3B at 4 bits; of recurrent layers, LFM2-8B-A1B and
/// Qwen3.5-35B-A3B; of latents, GLM-4.7-Flash.
pub const TYPICAL: &[&dyn Ask] = &[
    &GatherQmmSwiglu::TYPICAL,
    &GatherQmmCombine::TYPICAL,
    &MoeRouter::TYPICAL,
    &QuantizedEmbedding::TYPICAL,
    &QuantizedMatmul::TYPICAL,
    &RmsNorm::TYPICAL,
    &AddRmsNorm::TYPICAL,
    &QkNormRope::TYPICAL,
    &Attention::TYPICAL,
    &CacheAppend,
    &ShortConv::TYPICAL,
    &GatedDelta::TYPICAL,
    &GreedyToken::TYPICAL,
    &SwigluMlp::TYPICAL,
    &RecordedAttention::TYPICAL,
    &RecordedLatentAttention::TYPICAL,
    &RecordedStep,
];

/// What the order and width of accumulation may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// The bits of the stock ops.
    #[default]
    Exact,
    /// `float32` accumulation in any order: faster, more accurate, not the same bits.
    Fast,
}

/// The commonest quantization of published checkpoints.
const AFFINE_4: Quantization = Quantization { group_size: 64, bits: 4, mode: Mode::Affine };

/// N and K of a weight `[.., N, K]`.
fn dims(w: &QuantizedWeight) -> (i32, i32) {
    (w.w.dim(-2), w.scales.dim(-1) * w.quantization.group_size)
}

fn parts(w: &QuantizedWeight) -> UniquePtr<ffi::ArrayVec> {
    array_vec([&w.w, &w.scales].into_iter().chain(&w.biases))
}

/// Sets the number of threads of the primitives' CPU pool and of BLAS. 0, the default, means as many
/// as the process may use (its affinity mask and its container's quota), and for BLAS the number
/// that it had at first. Of more threads than that only as many work as there are processors for.
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

/// Number of threads of the primitives' CPU pool; fewer than were asked for when the system could
/// not start them.
pub fn num_threads() -> i32 {
    ffi::num_threads()
}

/// Instruction set that the CPU kernels use: `amx`, `avx512bf16`, `avx512`, `avx2`, `neon`, `scalar`, or `none` without
/// the feature.
pub fn cpu_isa() -> String {
    ffi::cpu_isa()
}

/// Uses the kernels of another instruction set, for tests; false when this machine lacks it.
pub fn set_cpu_isa(name: &str) -> bool {
    ffi::set_cpu_isa(name)
}

//! The gated delta rule.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::array::{array_vec, from_array_vec};
use crate::{Array, Dtype, Result};

/// What [`gated_delta`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatedDelta {
    /// Query and key heads, H_k.
    pub num_key_heads: i32,
    /// Value heads, H_v, a multiple of the former.
    pub num_value_heads: i32,
    /// Width of a query or key head, D_k.
    pub key_dim: i32,
    /// Width of a value head, D_v.
    pub value_dim: i32,
    /// Type of `dt_bias`.
    pub dt_bias_dtype: Dtype,
    /// Type of the norm's weight.
    pub norm_dtype: Dtype,
}

impl GatedDelta {
    /// Qwen3.5-35B-A3B's.
    pub(super) const TYPICAL: Self = Self {
        num_key_heads: 16,
        num_value_heads: 32,
        key_dim: 128,
        value_dim: 128,
        dt_bias_dtype: Dtype::Bf16,
        norm_dtype: Dtype::Bf16,
    };
}

impl Ask for GatedDelta {
    fn primitive(&self) -> &'static str {
        "gated_delta"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
            .with("num_key_heads", self.num_key_heads)
            .with("num_value_heads", self.num_value_heads)
            .with("key_dim", self.key_dim)
            .with("value_dim", self.value_dim)
            .with("dt_bias_dtype", self.dt_bias_dtype.name())
            .with("norm_dtype", self.norm_dtype.name())
    }
}

/// What a gated delta rule computes with. T is `bfloat16`, `float16` or `float32`, the same for all.
#[derive(Debug, Clone, Copy)]
pub struct GatedDeltaInputs<'a> {
    /// Queries, keys and values behind their convolution, `[B, L, 2 * H_k * D_k + H_v * D_v]` T; at least one token.
    pub qkv: &'a Array,
    /// Gates of the output, `[B, L, H_v, D_v]` T.
    pub z: &'a Array,
    /// Before the sigmoid, how much of a value is written, `[B, L, H_v]` T.
    pub b: &'a Array,
    /// How much of the memory is kept, with the next two, `[B, L, H_v]` T.
    pub a: &'a Array,
    /// Logarithm of each head's decay, `[H_v]` floating.
    pub a_log: &'a Array,
    /// Added to `a`, `[H_v]` T or `float32`.
    pub dt_bias: &'a Array,
    /// Weight of the norm behind the rule, `[D_v]` T.
    pub norm: &'a Array,
}

/// The gated delta rule (arXiv:2412.06464) for every token in turn, with the normalisation of queries and keys before it
/// and the gated norm behind it, in one launch.
///
/// - `state`: `[B, H_v, D_v, D_k]` `float32`; written over where nobody else holds it
/// - returns `[B, L, H_v, D_v]` T and the state after the last token, `D_v` together in memory
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// mlx-lm `gated_delta.py` without kernels for a GPU, `qwen3_next.py` (`Qwen3NextRMSNormGated`).
pub fn gated_delta(
    inputs: &GatedDeltaInputs<'_>,
    state: Array,
    norm_eps: f32,
) -> Result<(Array, Array)> {
    let GatedDeltaInputs { qkv, z, b, a, a_log, dt_bias, norm } = *inputs;
    let all = array_vec([qkv, z, b, a, a_log, dt_bias, norm, &state]);
    let out = ffi::fused_gated_delta(&all, norm_eps)?;
    match <[Array; 2]>::try_from(from_array_vec(&out)?) {
        Ok([y, state]) => Ok((y, state)),
        Err(_) => unreachable!("a recurrence returns its outputs and its state"),
    }
}

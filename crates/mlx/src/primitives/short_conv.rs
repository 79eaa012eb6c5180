//! Short causal convolutions.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::array::{from_array_vec, opt};
use crate::{Array, Dtype, Result};

/// What [`short_conv`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShortConv {
    /// Channels, C.
    pub channels: i32,
    /// Tokens that an output sees, K.
    pub taps: i32,
    /// Whether it stands between two gates instead of under `silu`.
    pub gated: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Type of the weights.
    pub weight_dtype: Dtype,
}

impl ShortConv {
    /// LFM2-8B-A1B's.
    pub(super) const TYPICAL: Self =
        Self { channels: 2048, taps: 3, gated: true, bias: false, weight_dtype: Dtype::Bf16 };
}

impl Ask for ShortConv {
    fn primitive(&self) -> &'static str {
        "short_conv"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
            .with("channels", self.channels)
            .with("taps", self.taps)
            .with("gated", self.gated)
            .with("bias", self.bias)
            .with("weight_dtype", self.weight_dtype.name())
    }
}

/// A causal convolution along the tokens, each channel by itself, with what is around it, in one launch.
///
/// - `x`: gated `[B, L, 3 * C]`, thirds `b`, `c` and `u` of which it makes `c * conv(b * u)`; else `[B, L, C]`, of which
///   it makes `silu(conv(x))`; `bfloat16` | `float16` | `float32`, any strides; at least one token
/// - `weight`: `[C, K, 1]`, best with the channels together in memory; `bias`: `[C]`
/// - `state`: `[B, K - 1, C]`, the inputs of the convolution before `x`
/// - returns `[B, L, C]` and the state after `x`, all of one dtype
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// mlx-lm `lfm2.py` (`ShortConv`), `qwen3_next.py` (`Qwen3NextGatedDeltaNet`).
pub fn short_conv(
    x: &Array,
    weight: &Array,
    bias: Option<&Array>,
    state: &Array,
    gated: bool,
) -> Result<(Array, Array)> {
    let out = ffi::fused_short_conv(x.raw(), weight.raw(), &opt(bias), state.raw(), gated)?;
    match <[Array; 2]>::try_from(from_array_vec(&out)?) {
        Ok([y, state]) => Ok((y, state)),
        Err(_) => unreachable!("a convolution returns its outputs and its state"),
    }
}

//! The token that greedy decoding picks.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::bounds::Bounds;
use crate::{Array, Result};

/// What [`greedy_token`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GreedyToken {
    /// Logits of a row, V.
    pub vocab_size: i32,
}

impl GreedyToken {
    /// Qwen3-30B-A3B's.
    pub(super) const TYPICAL: Self = Self { vocab_size: 151_936 };
}

impl Ask for GreedyToken {
    fn primitive(&self) -> &'static str {
        "greedy_token"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new().with("vocab_size", self.vocab_size)
    }
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
    Ok(Array::wrap(ffi::fused_greedy_token(logits.raw())?).within(Bounds::of_axis(logits, -1)))
}

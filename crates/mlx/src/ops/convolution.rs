//! Convolutions.

use zmlx_sys::ffi;

use super::unless_empty;
use crate::{Array, Error, Result};

/// Convolution along the second axis, each channel by itself: y\[b, t, c\] = Σₖ x\[b, t + k, c\] · w\[c, k, 0\].
///
/// - `x`: `[B, L, C]` floating; `w`: `[C, K, 1]` floating, `K` at most `L`
/// - returns `[B, L - K + 1, C]`, accumulated in `float32`
pub fn depthwise_conv1d(x: &Array, w: &Array) -> Result<Array> {
    let fits = match (x.shape(), w.shape()) {
        ([_, l, c], [out, k, 1]) => c == out && *c > 0 && (1..=*l).contains(k),
        _ => false,
    };
    if !fits || !x.dtype().is_float() || !w.dtype().is_float() {
        let message = format!(
            "[depthwise_conv1d] expected x [B, L, C] and w [C, K, 1] with K <= L, both floating, got {:?} of {} and {:?} \
             of {}",
            x.shape(),
            x.dtype(),
            w.shape(),
            w.dtype()
        );
        return Err(Error::InvalidArgument { message });
    }
    let channels = x.dim(2);
    unless_empty(Array::wrap(ffi::conv1d(x.raw(), w.raw(), channels)?))
}

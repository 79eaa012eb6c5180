//! A token's keys and values into the buffers of a recorded step.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::array::from_array_vec;
use crate::{Array, Result};

/// What `recorded_append` is asked: it has no parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecordedAppend;

impl Ask for RecordedAppend {
    fn primitive(&self) -> &'static str {
        "recorded_append"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
    }
}

/// One token into buffers of keys and values as their token `lengths - 1`, in one launch and in place, whoever holds them;
/// that is why [`RecordedKv`](crate::recording::RecordedKv) alone calls it.
///
/// Stock: [`slice_update`](crate::ops::slice_update), twice.
///
/// - `k`, `v`: `[B, Hkv, 1, D]`; `keys`, `values`: `[B, Hkv, T, D]`, memory of their own
/// - `lengths`: `[B]` `int32`, how many tokens there are with this one, from 1 to `T` (a number outside is taken for the
///   nearest of them)
/// - returns the buffers
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// mlx-lm `cache.py` (`KVCache.update_and_fetch`).
pub(crate) fn recorded_append(
    k: &Array,
    v: &Array,
    keys: &Array,
    values: &Array,
    lengths: &Array,
) -> Result<(Array, Array)> {
    let (k, v, lengths) = (k.raw(), v.raw(), lengths.raw());
    let both = ffi::fused_recorded_append(k, v, keys.raw(), values.raw(), lengths)?;
    match <[Array; 2]>::try_from(from_array_vec(&both)?) {
        Ok([keys, values]) => Ok((keys, values)),
        Err(_) => unreachable!("it returns both buffers"),
    }
}

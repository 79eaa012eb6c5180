//! A row's new tokens into its cache.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::{Array, Result};

/// What [`cache_append`] is asked: it has no parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheAppend;

impl Ask for CacheAppend {
    fn primitive(&self) -> &'static str {
        "cache_append"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
    }
}

/// One row of a batch's new keys or values into that row's cache in one launch: in place where nobody else holds the
/// buffer.
///
/// Stock: [`slice`](crate::ops::slice), [`slice_update`](crate::ops::slice_update).
///
/// - `buffer`: `[1, H, T, D]`; `tokens`: `[B, H, L, D]`, L up to T
/// - `lengths`: `[B]` integers, how many tokens each row has with the new ones, from L to `T` (a number outside is taken
///   for the nearest of them)
/// - returns the buffer, whose tokens from `lengths[row] - L` are those of row `row`
///
/// # Errors
/// `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// mlx-lm `cache.py` (`KVCache.update_and_fetch`).
pub fn cache_append(buffer: &Array, tokens: &Array, row: i32, lengths: &Array) -> Result<Array> {
    Ok(Array::wrap(ffi::fused_cache_append(buffer.raw(), tokens.raw(), row, lengths.raw())?))
}

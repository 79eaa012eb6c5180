//! Buffers `[B, H, T, D]` that tokens are written to.

use mlx::{Array, ops};

use crate::error::Result;

/// Tokens by which a growing cache extends its buffers, mlx-lm's step.
pub const GROW_STEP: i32 = 256;

/// The tokens `from..to` of a buffer.
pub(super) fn between(buffer: &Array, from: i32, to: i32) -> Result<Array> {
    let shape = buffer.shape();
    if from == 0 && to == shape[2] {
        return Ok(buffer.clone());
    }
    Ok(ops::slice(buffer, &[0, 0, from, 0], &[shape[0], shape[1], to, shape[3]])?)
}

/// The first `end` tokens of a buffer.
pub(super) fn first(buffer: &Array, end: i32) -> Result<Array> {
    between(buffer, 0, end)
}

/// Room for `tokens` of the kind of `like`.
pub(super) fn room(like: &Array, tokens: i32) -> Result<Array> {
    let shape = [like.dim(0), like.dim(1), tokens, like.dim(3)];
    Ok(ops::zeros(&shape, like.dtype())?)
}

/// The first `len` tokens held, if any, followed by room for `tokens` of the kind of `like`.
pub(super) fn grow(held: Option<Array>, len: i32, like: &Array, tokens: i32) -> Result<Array> {
    let room = room(like, tokens)?;
    match held {
        None => Ok(room),
        Some(held) => Ok(ops::concatenate(&[first(&held, len)?, room], 2)?),
    }
}

/// `buffer` with `tokens` written from `start` on; in place where nobody else holds the buffer.
pub(super) fn write(buffer: Array, tokens: &Array, start: i32) -> Result<Array> {
    let shape = buffer.shape();
    let stop = [shape[0], shape[1], start + tokens.dim(2), shape[3]];
    Ok(ops::slice_update(&buffer, tokens, &[0, 0, start, 0], &stop)?)
}

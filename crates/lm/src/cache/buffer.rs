//! Buffers `[B, H, T, D]` that tokens are written to.

use mlx::{Array, ops};

use crate::error::Result;

/// Tokens by which a growing cache extends its buffers, mlx-lm's step.
pub const GROW_STEP: i32 = 256;

/// Whole steps of room for `added` tokens.
pub(super) fn whole_steps(added: i32) -> i32 {
    (GROW_STEP + added - 1) / GROW_STEP * GROW_STEP
}

/// Tokens of room for `added` of them behind `held`, where MLX's attention reads the buffer.
///
/// On CUDA stock's attention over buffers of whole steps is cuDNN's, which gives other bits from call to call while other
/// kernels run (docs/adr/0014-stock-on-cuda.md); over any other buffer it is a kernel of MLX's own that does not. So there
/// the buffers are never of whole steps.
pub(super) fn room_for(added: i32, held: i32) -> i32 {
    let room = whole_steps(added);
    if on_cuda() && (held + room) % GROW_STEP == 0 { room + BESIDE_STEPS } else { room }
}

/// Whether ops run on a CUDA device.
pub(crate) fn on_cuda() -> bool {
    cfg!(not(target_os = "macos")) && mlx::default_device() == mlx::Device::Gpu
}

/// Tokens more than whole steps.
const BESIDE_STEPS: i32 = 8;

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

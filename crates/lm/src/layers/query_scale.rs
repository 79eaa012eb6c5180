use mlx::{Array, Dtype, ops};

use crate::cache::Position;
use crate::error::Result;

/// A scale of queries that grows with their position, so that attention over long sequences stays sharp:
/// `1 + beta · ln(1 + floor(position / length))`.
///
/// # Source
/// arXiv:2501.19399; mlx-lm `ministral3.py` (`_get_llama_4_attn_scale`).
#[derive(Debug, Clone, Copy)]
pub struct QueryScale {
    /// How fast it grows.
    pub beta: f32,
    /// Length of the sequences that the model was first made for, up to which it is 1.
    pub length: i32,
}

impl QueryScale {
    /// - `q`: `[B, H, L, D]`, whose first row stands at `position`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, q: &Array, position: &Position) -> Result<Array> {
        let l = q.dim(2);
        let steps = ops::arange(0.0, f64::from(l), 1.0, Dtype::I32)?;
        let at = match position {
            Position::Static(offset) => ops::add(&steps, &Array::scalar(*offset)?)?,
            Position::Dynamic(offset) => ops::add(&steps, &offset.reshape(&[-1, 1])?)?,
        }; // [L] or [B, L]
        let rounds = ops::divide(&at.astype(Dtype::F32)?, &Array::scalar(self.length as f32)?)?;
        let one = Array::scalar(1.0_f32)?;
        let log = ops::log(&ops::add(&one, &ops::floor(&rounds)?)?)?;
        let scale = ops::add(&one, &ops::multiply(&Array::scalar(self.beta)?, &log)?)?;
        let scale = scale.astype(q.dtype())?.reshape(&[-1, 1, l, 1])?;
        Ok(ops::multiply(q, &scale)?)
    }
}

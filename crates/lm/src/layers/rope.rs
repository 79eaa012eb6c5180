use mlx::{Array, fast};

use crate::cache::Position;
use crate::error::Result;

/// Rotary position embedding (arXiv:2104.09864).
#[derive(Debug, Clone)]
pub struct Rope(fast::Rope);

impl Rope {
    /// Turns pairs half a head of `dims` apart, frequencies from `base`.
    pub fn new(dims: i32, base: f32) -> Self {
        Self(fast::Rope { dims, traditional: false, base, scale: 1.0, freqs: None })
    }

    pub(super) fn parts(&self) -> &fast::Rope {
        &self.0
    }

    /// - `x`: `[B, H, L, D]`, whose first row stands at `position`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array, position: &Position) -> Result<Array> {
        Ok(match position {
            Position::Static(offset) => fast::rope(x, &self.0, *offset)?,
            Position::Dynamic(offset) => fast::rope_dynamic(x, &self.0, offset)?,
        })
    }
}

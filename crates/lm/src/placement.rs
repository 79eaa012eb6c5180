//! Which part of a model a process holds.

use std::ops::Range;

use crate::error::{Error, Result};

/// A range of layers (pipeline parallel) and a share of each matrix (tensor parallel). The default is everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Decoder layers; `None` for all. The first stage reads the embedding, the last one the output projection.
    pub layers: Option<Range<usize>>,
    /// Which share, below `size`.
    pub rank: usize,
    /// Into how many shares matrices are cut.
    pub size: usize,
}

impl Default for Placement {
    fn default() -> Self {
        Self { layers: None, rank: 0, size: 1 }
    }
}

impl Placement {
    /// Whether the model is held whole.
    pub fn is_whole(&self) -> bool {
        *self == Self::default()
    }

    /// # Errors
    /// `Argument` when `rank` is no share of `size`.
    pub(crate) fn check(&self) -> Result<()> {
        if i32::try_from(self.size).is_err() || self.size == 0 {
            return Err(Error::argument("size", self.size, "expected a number from 1"));
        }
        if self.rank >= self.size {
            let reason = format!("expected a number below size ({})", self.size);
            return Err(Error::argument("rank", self.rank, reason));
        }
        Ok(())
    }

    /// The layers held, of `num_layers`.
    ///
    /// # Errors
    /// `Argument` when the range is empty or ends beyond them.
    pub(crate) fn layers_of(&self, num_layers: usize) -> Result<Range<usize>> {
        let Some(range) = &self.layers else { return Ok(0..num_layers) };
        if range.is_empty() || range.end > num_layers {
            let reason = format!("expected layers of 0..{num_layers}");
            return Err(Error::argument("layers", format!("{range:?}"), reason));
        }
        Ok(range.clone())
    }
}

/// How tensor parallelism cuts a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// Every rank holds it whole.
    #[default]
    Whole,
    /// Each rank has some of its outputs: rows.
    Outputs,
    /// Each rank has the columns of some of its inputs; the ranks' results add up.
    Inputs,
    /// Each rank has some matrices of a stack whole.
    Stack,
}

/// Where along a pipeline a weight outside the layers is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Where tokens enter.
    First,
    /// Where logits leave.
    Last,
    /// At both ends.
    Ends,
}

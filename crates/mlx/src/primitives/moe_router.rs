//! Scores, selection and normalisation of a router.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::array::from_array_vec;
use crate::bounds::Bounds;
use crate::{Array, Result};

/// How router logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scoring {
    /// Softmax over the experts, accumulated in `float32`.
    Softmax,
    /// Sigmoid of each expert.
    Sigmoid,
    /// Softmax over the experts that the logits chose.
    SoftmaxOfTopK,
}

impl Scoring {
    /// Name of the scoring.
    pub fn name(self) -> &'static str {
        match self {
            Scoring::Softmax => "softmax",
            Scoring::Sigmoid => "sigmoid",
            Scoring::SoftmaxOfTopK => "softmax_of_top_k",
        }
    }
}

/// What [`moe_router`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeRouter {
    /// Experts to choose from, E.
    pub num_experts: i32,
    /// Experts of a token.
    pub top_k: i32,
    /// Whether the chosen scores are divided by their sum.
    pub normalize: bool,
    /// How logits become scores.
    pub scoring: Scoring,
    /// Whether a bias is added to the scores for choosing, and for choosing only.
    pub selection_bias: bool,
    /// Groups of experts from which some are chosen first; 1 where there are none.
    pub num_groups: i32,
    /// What the scores are multiplied by in the end.
    pub scale: f32,
}

impl MoeRouter {
    /// Qwen3-30B-A3B's.
    pub(super) const TYPICAL: Self = Self {
        num_experts: 128,
        top_k: 8,
        normalize: true,
        scoring: Scoring::Softmax,
        selection_bias: false,
        num_groups: 1,
        scale: 1.0,
    };
}

impl Ask for MoeRouter {
    fn primitive(&self) -> &'static str {
        "moe_router"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
            .with("num_experts", self.num_experts)
            .with("top_k", self.top_k)
            .with("normalize", self.normalize)
            .with("scoring", self.scoring.name())
            .with("selection_bias", self.selection_bias)
            .with("num_groups", self.num_groups)
            .with("scale", self.scale)
    }
}

/// Scores, top-k selection and normalisation of a router in one launch.
///
/// Stock: `softmax(precise)`, `argpartition(kth = -k)`, the last k, `take_along_axis`, and with
/// `normalize` a division by their sum: the same experts in the same order.
///
/// - `logits`: `[.., E]`; returns indices `[.., k]` `uint32` and scores `[.., k]`, dtype of `logits`
///
/// # Source
/// mlx-lm `qwen3_moe.py` (`Qwen3MoeSparseMoeBlock`).
pub fn moe_router(
    logits: &Array,
    top_k: i32,
    normalize: bool,
    scoring: Scoring,
) -> Result<(Array, Array)> {
    let out = ffi::fused_moe_router(logits.raw(), top_k, normalize, scoring.name())?;
    match <[Array; 2]>::try_from(from_array_vec(&out)?) {
        Ok([indices, scores]) => Ok((indices.within(Bounds::of_axis(logits, -1)), scores)),
        Err(_) => unreachable!("the router returns indices and scores"),
    }
}

//! Scores, selection and weights of a router.

use zmlx_sys::ffi;

use super::{Ask, Parameters};
use crate::array::{from_array_vec, opt};
use crate::bounds::Bounds;
use crate::{Array, Dtype, Error, Result};

/// How router logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scoring {
    /// Softmax over the experts.
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

/// What [`moe_router`] does, and is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeRouter {
    /// Experts to choose from, E.
    pub num_experts: i32,
    /// Experts of a token.
    pub top_k: i32,
    /// How logits become scores.
    pub scoring: Scoring,
    /// Whether a softmax accumulates in `float32`.
    pub precise: bool,
    /// Whether the experts are the first of `argpartition(-scores, top_k - 1)`, and not the last of
    /// `argpartition(scores, -top_k)`.
    pub descending: bool,
    /// Whether scores are computed in `float32` whatever the type of the logits.
    pub in_f32: bool,
    /// Whether a bias is added, in `float32`, to the scores for choosing, and for choosing only.
    pub selection_bias: bool,
    /// Groups of experts from which some are chosen first; 1 where there are none.
    pub num_groups: i32,
    /// How many of them are kept: those with the largest sum of their two best scores. The scores of
    /// the others count as zero.
    pub top_k_groups: i32,
    /// Whether the weights are divided by their sum.
    pub normalize: bool,
    /// What is added to that sum.
    pub epsilon: f32,
    /// Whether the weights are multiplied by a factor of each expert.
    pub expert_scale: bool,
    /// What the weights are multiplied by in the end.
    pub scale: f32,
    /// The type of the weights; `None`: as they come.
    pub weights: Option<Dtype>,
}

impl MoeRouter {
    /// Qwen3-30B-A3B's.
    pub(super) const TYPICAL: Self =
        Self { normalize: true, ..Self::new(128, 8, Scoring::Softmax) };

    /// The `top_k` best scores, as they are.
    pub const fn new(num_experts: i32, top_k: i32, scoring: Scoring) -> Self {
        Self {
            num_experts,
            top_k,
            scoring,
            precise: true,
            descending: false,
            in_f32: false,
            selection_bias: false,
            num_groups: 1,
            top_k_groups: 1,
            normalize: false,
            epsilon: 0.0,
            expert_scale: false,
            scale: 1.0,
            weights: None,
        }
    }

    /// Whether these are arrays for it.
    fn check(&self, logits: &Array, arrays: [(&str, bool, Option<&Array>); 2]) -> Result<()> {
        if logits.shape().last().is_some_and(|experts| *experts != self.num_experts) {
            let (expected, got) = (format!("[.., {}]", self.num_experts), logits.shape().to_vec());
            return Err(Error::Shape { op: "moe_router", expected, got });
        }
        for (name, expected, array) in arrays {
            if expected != array.is_some() {
                let (expected, got) = if expected { ("one", "none") } else { ("none", "one") };
                let message = format!("[moe_router] expected {expected} as {name}, got {got}");
                return Err(Error::InvalidArgument { message });
            }
        }
        Ok(())
    }

    fn params(&self) -> ffi::RouterParams {
        ffi::RouterParams {
            top_k: self.top_k,
            scoring: self.scoring.name().to_owned(),
            precise: self.precise,
            descending: self.descending,
            in_f32: self.in_f32,
            num_groups: self.num_groups,
            top_k_groups: self.top_k_groups,
            normalize: self.normalize,
            epsilon: self.epsilon,
            scale: self.scale,
            casts: self.weights.is_some(),
            weights: self.weights.unwrap_or(Dtype::F32).id(),
        }
    }
}

impl Ask for MoeRouter {
    fn primitive(&self) -> &'static str {
        "moe_router"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
            .with("num_experts", self.num_experts)
            .with("top_k", self.top_k)
            .with("scoring", self.scoring.name())
            .with("precise", self.precise)
            .with("order", if self.descending { "descending" } else { "ascending" })
            .with("in_f32", self.in_f32)
            .with("selection_bias", self.selection_bias)
            .with("num_groups", self.num_groups)
            .with("top_k_groups", self.top_k_groups)
            .with("normalize", self.normalize)
            .with("epsilon", self.epsilon)
            .with("expert_scale", self.expert_scale)
            .with("scale", self.scale)
            .with("weights", self.weights.map_or("as_scored", Dtype::name))
    }
}

/// Scores, top-k selection and weights of a router in one launch.
///
/// Stock: `softmax` or `sigmoid`, a bias and groups for the choice, `argpartition`,
/// `take_along_axis`, a division by the sum, factors: the same experts in the same order with the
/// same bits.
///
/// - `logits`: `[.., E]` `bfloat16` | `float16` | `float32`
/// - `selection_bias`, `expert_scale`: `[E]` of any of these types, where `router` says so
/// - returns indices `[.., top_k]` `uint32` and weights `[.., top_k]`, of the type of the scores
///   promoted with that of `expert_scale`, or of `router.weights`
///
/// # Errors
/// `Shape` and `InvalidArgument` at the call, `Unsupported` without the feature, `Backend` at `eval`.
///
/// # Source
/// mlx-lm `qwen3_moe.py`, `deepseek_v3.py` (`group_expert_select`), `lfm2_moe.py`, `gpt_oss.py`,
/// `gemma4_text.py` (`Router`).
pub fn moe_router(
    logits: &Array,
    router: &MoeRouter,
    selection_bias: Option<&Array>,
    expert_scale: Option<&Array>,
) -> Result<(Array, Array)> {
    let arrays = [
        ("selection_bias", router.selection_bias, selection_bias),
        ("expert_scale", router.expert_scale, expert_scale),
    ];
    router.check(logits, arrays)?;
    let out = ffi::fused_moe_router(
        logits.raw(),
        &router.params(),
        &opt(selection_bias),
        &opt(expert_scale),
    )?;
    match <[Array; 2]>::try_from(from_array_vec(&out)?) {
        Ok([indices, scores]) => Ok((indices.within(Bounds::of_axis(logits, -1)), scores)),
        Err(_) => unreachable!("the router returns indices and scores"),
    }
}

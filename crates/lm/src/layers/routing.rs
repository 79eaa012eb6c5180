use mlx::primitives::{self, Ask, InType, MoeRouter, Scoring};
use mlx::{Array, Dtype, ops};

use super::Questions;
use crate::error::Result;

/// How router logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all experts, accumulated in `float32`.
    Softmax,
    /// Sigmoid of each expert.
    Sigmoid,
    /// Experts are chosen by logits; softmax over the chosen ones.
    SoftmaxOfChosen {
        /// Whether it is accumulated in `float32`.
        precise: bool,
    },
}

/// In which order the chosen experts come, and so in which they are added. Neither sorts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The last `top_k` of `argpartition(scores, -top_k)`.
    LastOfAscending,
    /// The first `top_k` of `argpartition(-scores, top_k - 1)`.
    FirstOfDescending,
}

/// Experts in groups, of which the best are kept before experts are chosen (arXiv:2412.19437).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Number of groups.
    pub num_groups: i32,
    /// Groups kept for each token.
    pub top_k: i32,
}

/// How a block turns router logits into experts and weights.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Experts per token.
    pub top_k: i32,
    /// From logits to scores.
    pub score: Score,
    /// Which of them, in which order.
    pub choice: Choice,
    /// Whether scores are computed in `float32` whatever the type of the logits.
    pub in_f32: bool,
    /// Added to the scores for the choice alone, `[E]`.
    pub selection_bias: Option<Array>,
    /// Groups of experts.
    pub groups: Option<Groups>,
    /// Whether the chosen weights are scaled to sum to one.
    pub norm_topk_prob: bool,
    /// Added to the sum that they are divided by.
    pub norm_eps: f32,
    /// What the weights of each expert are multiplied by, `[E]`.
    pub expert_scale: Option<Array>,
    /// What the weights are multiplied by in the end.
    pub scale: Option<f32>,
    /// Whether the weights take the type of what the experts get; otherwise they stay as they come.
    pub casts: bool,
}

impl Routing {
    /// Softmax, the `top_k` largest, nothing else.
    pub fn softmax(top_k: i32) -> Self {
        Self {
            top_k,
            score: Score::Softmax,
            choice: Choice::LastOfAscending,
            in_f32: false,
            selection_bias: None,
            groups: None,
            norm_topk_prob: false,
            norm_eps: 0.0,
            expert_scale: None,
            scale: None,
            casts: false,
        }
    }

    /// Each token's experts and their weights.
    ///
    /// - `logits`: `[.., E]`; returns indices u32 and scores, both `[.., top_k]`
    /// - `dtype`: of what the experts get; counts where the weights take it
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx-lm `qwen3_moe.py`, `deepseek_v3.py` (`group_expert_select`), `lfm2_moe.py`, `gpt_oss.py`, `minimax.py`,
    /// `gemma4_text.py` (`Router`).
    pub fn select(&self, logits: &Array, dtype: Dtype) -> Result<(Array, Array)> {
        let logits = if self.in_f32 { logits.astype(Dtype::F32)? } else { logits.clone() };
        let scores = match self.score {
            Score::Softmax => ops::softmax(&logits, -1, true)?,
            Score::Sigmoid => ops::sigmoid(&logits)?,
            Score::SoftmaxOfChosen { .. } => logits,
        };
        let indices = self.choose(&scores)?;
        let mut chosen = ops::take_along_axis(&scores, &indices, -1)?;
        if let Score::SoftmaxOfChosen { precise } = self.score {
            chosen = ops::softmax(&chosen, -1, precise)?;
        }
        if self.norm_topk_prob {
            let mut total = ops::sum(&chosen, &[-1], true)?;
            if self.norm_eps != 0.0 {
                total = ops::add(&total, &Array::scalar_like(self.norm_eps, &total)?)?;
            }
            chosen = ops::divide(&chosen, &total)?;
        }
        if let Some(expert_scale) = &self.expert_scale {
            chosen = ops::multiply(&chosen, &ops::take(expert_scale, &indices, 0)?)?;
        }
        if let Some(scale) = self.scale {
            chosen = ops::multiply(&chosen, &Array::scalar_like(scale, &chosen)?)?;
        }
        if self.casts {
            chosen = chosen.astype(dtype)?;
        }
        Ok((indices, chosen))
    }

    fn choose(&self, scores: &Array) -> Result<Array> {
        let (top_k, num_experts) = (self.top_k, scores.dim(-1));
        let mut scores = scores.clone();
        if let Some(bias) = &self.selection_bias {
            scores = ops::add(&scores.astype(Dtype::F32)?, bias)?;
        }
        if let Some(groups) = self.groups.filter(|groups| groups.num_groups > 1) {
            scores = groups.keep_best(&scores)?;
        }
        Ok(match self.choice {
            Choice::LastOfAscending => {
                let order = ops::argpartition(&scores, -top_k, -1)?;
                ops::slice_axis(&order, -1, num_experts - top_k, num_experts)?
            }
            Choice::FirstOfDescending => {
                let order = ops::argpartition(&ops::negative(&scores)?, top_k - 1, -1)?;
                ops::slice_axis(&order, -1, 0, top_k)?
            }
        })
    }

    /// The weighted sum over experts: `[.., top_k, D]` with `[.., top_k]` to `[.., D]`, in the type of `y`.
    pub(super) fn combine(&self, y: &Array, scores: &Array) -> Result<Array> {
        let weighted = ops::multiply(y, &ops::expand_dims(scores, &[-1])?)?;
        Ok(ops::sum(&weighted, &[-2], false)?.astype(y.dtype())?)
    }

    /// [`select`](Self::select) in one launch.
    pub(crate) fn select_fused(&self, logits: &Array, dtype: Dtype) -> Result<(Array, Array)> {
        let weights = self.casts.then_some(dtype);
        let router = self.router(logits.dim(-1), weights);
        let (bias, scale) = (self.selection_bias.as_ref(), self.expert_scale.as_ref());
        Ok(primitives::moe_router(logits, &router, bias, scale)?)
    }

    /// What the fused router is asked; `dtype`: that of the logits, where it is not the type of the activations.
    pub(super) fn questions(&self, num_experts: i32, dtype: Option<Dtype>) -> Questions {
        // which of these types the experts get is known when they run
        let weights: &[_] = match self.casts {
            true => &[Some(Dtype::Bf16), Some(Dtype::F16), Some(Dtype::F32)],
            false => &[None],
        };
        let asked = weights.iter().map(|weights| -> Box<dyn Ask> {
            let ask = self.router(num_experts, *weights);
            match dtype {
                Some(dtype) => Box::new(InType { ask, dtype }),
                None => Box::new(ask),
            }
        });
        Ok(asked.collect())
    }

    fn router(&self, num_experts: i32, weights: Option<Dtype>) -> MoeRouter {
        let (scoring, precise) = match self.score {
            Score::Softmax => (Scoring::Softmax, true),
            Score::Sigmoid => (Scoring::Sigmoid, true),
            Score::SoftmaxOfChosen { precise } => (Scoring::SoftmaxOfTopK, precise),
        };
        let groups = self.groups.unwrap_or(Groups { num_groups: 1, top_k: 1 });
        MoeRouter {
            num_experts,
            top_k: self.top_k,
            scoring,
            precise,
            descending: self.choice == Choice::FirstOfDescending,
            in_f32: self.in_f32,
            selection_bias: self.selection_bias.is_some(),
            num_groups: groups.num_groups,
            top_k_groups: groups.top_k,
            normalize: self.norm_topk_prob,
            epsilon: self.norm_eps,
            expert_scale: self.expert_scale.is_some(),
            scale: self.scale.unwrap_or(1.0),
            weights,
        }
    }
}

impl Groups {
    /// Scores `[.., E]` with those of all but the best groups set to zero. A group is as good as its two best
    /// experts together.
    fn keep_best(self, scores: &Array) -> Result<Array> {
        let dropped = self.num_groups - self.top_k;
        if dropped == 0 {
            return Ok(scores.clone());
        }
        let scores = ops::unflatten(scores, -1, &[self.num_groups, -1])?; // [.., G, E / G]
        let best = ops::sum(&ops::topk(&scores, 2, -1)?, &[-1], true)?; // [.., G, 1]
        let order = ops::argpartition(&best, dropped - 1, -2)?;
        let worst = ops::slice_axis(&order, -2, 0, dropped)?;
        let zero = Array::scalar_like(0.0, &scores)?;
        let kept = ops::put_along_axis(&scores, &worst, &zero, -2)?;
        Ok(ops::flatten(&kept, -2, -1)?)
    }
}

use mlx::primitives::{self, Scoring};
use mlx::{Array, ops};

use super::{Linear, Path, SwitchGlu, Weight};
use crate::error::Result;

/// How a block turns router logits into experts and weights.
#[derive(Debug, Clone, Copy)]
pub struct Routing {
    /// Experts per token.
    pub top_k: i32,
    /// Whether the chosen weights are scaled to sum to one.
    pub norm_topk_prob: bool,
}

/// Which implementation each part of a block takes. All stock unless a pattern sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MoePlan {
    /// Softmax, top-k and normalisation.
    pub router: Path,
    /// Gate and up projections with SwiGLU.
    pub mlp: Path,
    /// Down projection with the weighted sum over experts.
    pub combine: Path,
}

/// A mixture of experts: router, experts, weighted sum.
#[derive(Debug, Clone)]
pub struct MoeBlock {
    pub(crate) gate: Linear,
    pub(crate) switch_mlp: SwitchGlu,
    pub(crate) routing: Routing,
    pub(crate) plan: MoePlan,
}

impl MoeBlock {
    /// A block on stock ops.
    pub fn new(gate: Linear, switch_mlp: SwitchGlu, routing: Routing) -> Self {
        Self { gate, switch_mlp, routing, plan: MoePlan::default() }
    }

    /// - `x`: `[B, L, D]`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let logits = self.gate.forward(x)?; // [B, L, E]
        let Routing { top_k, norm_topk_prob } = self.routing;
        let (indices, scores) = match self.plan.router {
            Path::Stock => self.routing.select(&logits)?,
            Path::Fused(_) => {
                primitives::moe_router(&logits, top_k, norm_topk_prob, Scoring::Softmax)?
            }
        };
        self.experts(x, &indices, &scores)
    }

    /// The one place where a fused block departs from stock. Rows then stay in token order: the fused kernels
    /// visit experts in the order they like.
    fn experts(&self, x: &Array, indices: &Array, scores: &Array) -> Result<Array> {
        let experts = &self.switch_mlp;
        let entries = indices.size();
        let (mlp, down) = (self.plan.mlp.fused_for(entries), self.plan.combine.fused_for(entries));
        if mlp.is_none() && down.is_none() {
            return combine(&experts.forward(x, indices)?, scores);
        }
        let hidden = match mlp {
            Some(precision) => experts.fused_hidden(x, indices, precision)?,
            None => experts.stock_hidden(x, indices)?,
        }; // [B, L, top_k, 1, N]
        if let (Some(precision), Weight::Quantized(w)) = (down, &experts.down_proj.weight) {
            return Ok(primitives::gather_qmm_combine(&hidden, w, indices, scores, precision)?);
        }
        let y = experts.down_proj.forward(&hidden, indices, false)?;
        combine(&ops::squeeze(&y, &[-2])?, scores)
    }
}

impl Routing {
    /// Each token's experts and their weights: softmax in f32, the `top_k` largest, scaled to one on request.
    ///
    /// - `logits`: `[.., E]`; returns indices u32 and scores, both `[.., top_k]`.
    fn select(&self, logits: &Array) -> Result<(Array, Array)> {
        let num_experts = logits.dim(-1);
        let gates = ops::softmax(logits, -1, true)?;
        let order = ops::argpartition(&gates, -self.top_k, -1)?;
        let indices = ops::slice_axis(&order, -1, num_experts - self.top_k, num_experts)?;
        let scores = ops::take_along_axis(&gates, &indices, -1)?;
        if !self.norm_topk_prob {
            return Ok((indices, scores));
        }
        let total = ops::sum(&scores, &[-1], true)?;
        Ok((indices, ops::divide(&scores, &total)?))
    }
}

/// The weighted sum over experts: `[.., top_k, D]` with `[.., top_k]` to `[.., D]`, in the type of `y`.
fn combine(y: &Array, scores: &Array) -> Result<Array> {
    let weighted = ops::multiply(y, &ops::expand_dims(scores, &[-1])?)?;
    Ok(ops::sum(&weighted, &[-2], false)?.astype(y.dtype())?)
}

use mlx::{Array, ops, primitives};

use super::{Linear, Path, SwitchGlu};
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
        let (indices, scores) = match self.plan.router {
            Path::Stock => self.routing.select(&logits)?,
            Path::Fused(_) => primitives::moe_router(
                &logits,
                self.routing.top_k,
                self.routing.norm_topk_prob,
                primitives::Scoring::Softmax,
            )?,
        };
        self.experts(x, &indices, &scores)
    }

    /// The one place where a fused block departs from stock.
    fn experts(&self, x: &Array, indices: &Array, scores: &Array) -> Result<Array> {
        let mlp = &self.switch_mlp;
        if self.plan.mlp == Path::Stock && self.plan.combine == Path::Stock {
            return combine(&mlp.forward(x, indices)?, scores);
        }
        // Rows stay in token order: the fused kernels visit experts in the order they like.
        let fused = match self.plan.mlp {
            Path::Fused(precision) => mlp.fused_hidden(x, indices, precision)?,
            Path::Stock => None,
        };
        let hidden = match fused {
            Some(hidden) => hidden,
            None => mlp.stock_hidden(x, indices)?,
        }; // [B, L, top_k, 1, N]
        match (self.plan.combine, mlp.down_proj.weight.quantized()) {
            (Path::Fused(precision), Some(down)) => {
                Ok(primitives::gather_qmm_combine(&hidden, down, indices, scores, precision)?)
            }
            _ => {
                let y = mlp.down_proj.forward(&hidden, indices, false)?;
                combine(&ops::squeeze(&y, &[-2])?, scores)
            }
        }
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

//! Routing by scores alone.

use mlx::Array;
use mlx::primitives::{MoeRouter, Scoring, moe_router};

/// [`moe_router`] without bias, groups and factors.
pub(crate) fn route(
    logits: &Array,
    top_k: i32,
    normalize: bool,
    scoring: Scoring,
) -> mlx::Result<(Array, Array)> {
    let num_experts = logits.shape().last().copied().unwrap_or(0);
    let router = MoeRouter { normalize, ..MoeRouter::new(num_experts, top_k, scoring) };
    moe_router(logits, &router, None, None)
}

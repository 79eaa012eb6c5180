//! Layers: the ops that mlx-lm's modules run, in its order. Whether a weight is quantised is the layer's business.

mod embedding;
mod linear;
mod moe;
mod norm;
mod rope;
mod switch;
mod weight;

pub use embedding::Embedding;
pub use linear::Linear;
pub use moe::{MoeBlock, MoePlan, Routing};
pub use norm::RmsNorm;
pub use rope::Rope;
pub use switch::{SwitchGlu, SwitchLinear};
pub use weight::Weight;

use mlx::primitives::Precision;

/// Which implementation a module's forward pass takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Path {
    /// Stock MLX ops.
    #[default]
    Stock,
    /// The fused primitive of the pattern that set it.
    Fused(Precision),
}

//! Every quantised linear layer, the routers' and the output projection included, on our matrix product.

use mlx::primitives::Primitive;

use super::{Context, Pattern, require_quantized, require_support};
use crate::layers::{Path, Weight};
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "quantized_linear", targets, check, set };

fn weight<'a>(module: &'a Module<'_>) -> &'a Weight {
    match module {
        Module::Moe(moe) => &moe.gate.weight,
        Module::Linear(linear) => &linear.weight,
        Module::TiedEmbedding(embedding) => &embedding.weight,
    }
}

/// Dense layers are no business of this pattern.
fn targets(module: &Module<'_>) -> bool {
    weight(module).quantized().is_some()
}

fn check(module: &Module<'_>, context: &Context) -> Result<(), String> {
    let weight = require_quantized("weight", weight(module))?;
    require_support(Primitive::QuantizedMatmul, context, weight)
}

fn set(module: &mut Module<'_>, path: Path) {
    match module {
        Module::Moe(moe) => moe.gate.path = path,
        Module::Linear(linear) => linear.path = path,
        Module::TiedEmbedding(embedding) => embedding.path = path,
    }
}

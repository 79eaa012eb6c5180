//! Every quantised linear layer, the routers' and the output projection included, on our matrix product.

use mlx::primitives::QuantizedMatmul;
use mlx::quantization::QuantizedWeight;

use super::{Context, Pattern, require_support};
use crate::layers::Path;
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "quantized_linear", targets, check, set };

fn weight<'a>(module: &'a Module<'_>) -> Option<&'a QuantizedWeight> {
    match module {
        Module::Moe(moe) => moe.gate.weight.quantized(),
        Module::Linear(linear) => linear.weight.quantized(),
        Module::TiedEmbedding(embedding) => embedding.weight.quantized(),
        _ => None,
    }
}

/// Dense layers are no business of this pattern.
fn targets(module: &Module<'_>) -> bool {
    weight(module).is_some()
}

fn check(module: &Module<'_>, context: &Context) -> Result<(), String> {
    let weight = weight(module).ok_or("is dense")?;
    require_support(&QuantizedMatmul::of(weight), context)
}

fn set(module: &mut Module<'_>, path: Path) {
    match module {
        Module::Moe(moe) => moe.gate.path = path,
        Module::Linear(linear) => linear.path = path,
        Module::TiedEmbedding(embedding) => embedding.path = path,
        _ => {}
    }
}

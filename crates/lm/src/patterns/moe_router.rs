//! Softmax, top-k and normalisation of the router's logits in one launch.

use mlx::primitives::{self, Primitive};
use mlx::quantization::{Mode, Quantization};

use super::{Context, Pattern};
use crate::layers::Path;
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "moe_router", targets, check, set };

fn targets(module: &Module<'_>) -> bool {
    matches!(module, Module::Moe(_))
}

fn check(_: &Module<'_>, context: &Context) -> Result<(), String> {
    // works on logits, so no quantisation matters
    let any = Quantization::default_of(Mode::Affine);
    primitives::supports(Primitive::MoeRouter, context.device, context.dtype, any, true)
}

fn set(module: &mut Module<'_>, path: Path) {
    if let Module::Moe(moe) = module {
        moe.plan.router = path;
    }
}

//! Softmax, top-k and normalisation of the router's logits in one launch.

use super::{Context, Pattern, require_any_shape};
use crate::layers::Path;
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "moe_router", targets, check, set };

fn targets(module: &Module<'_>) -> bool {
    matches!(module, Module::Moe(_))
}

fn check(_: &Module<'_>, context: &Context) -> Result<(), String> {
    require_any_shape("moe_router", context)
}

fn set(module: &mut Module<'_>, path: Path) {
    if let Module::Moe(moe) = module {
        moe.plan.router = path;
    }
}

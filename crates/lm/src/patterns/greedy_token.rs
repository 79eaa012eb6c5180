//! The likeliest token from logits in one launch.

use mlx::primitives::Primitive;

use super::{Context, Pattern, require_dense_support};
use crate::layers::Path;
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "greedy_token", targets, check, set };

fn targets(module: &Module<'_>) -> bool {
    matches!(module, Module::Greedy(_))
}

fn check(_: &Module<'_>, context: &Context) -> Result<(), String> {
    require_dense_support(Primitive::GreedyToken, context)
}

fn set(module: &mut Module<'_>, path: Path) {
    if let Module::Greedy(greedy) = module {
        **greedy = path;
    }
}

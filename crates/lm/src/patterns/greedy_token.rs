//! The likeliest token from logits in one launch.

use super::{Context, Pattern, require_any_shape};
use crate::layers::Path;
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "greedy_token", targets, check, set };

fn targets(module: &Module<'_>) -> bool {
    matches!(module, Module::Greedy(_))
}

fn check(_: &Module<'_>, context: &Context) -> Result<(), String> {
    require_any_shape("greedy_token", context)
}

fn set(module: &mut Module<'_>, path: Path) {
    if let Module::Greedy(greedy) = module {
        **greedy = path;
    }
}

//! Norm and rotation of queries and keys, from projection to heads, in one launch.

use super::{Context, Pattern, require_any_shape};
use crate::layers::Path;
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "qk_norm_rope", targets, check, set };

fn targets(module: &Module<'_>) -> bool {
    matches!(module, Module::Attention(_))
}

fn check(_: &Module<'_>, context: &Context) -> Result<(), String> {
    require_any_shape("qk_norm_rope", context)
}

fn set(module: &mut Module<'_>, path: Path) {
    if let Module::Attention(plan) = module {
        plan.qk_norm_rope = path;
    }
}

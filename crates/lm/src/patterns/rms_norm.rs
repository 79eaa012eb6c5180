//! Norms of the residual stream on our kernel.

use super::{Context, Pattern, require_any_shape};
use crate::layers::Path;
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "rms_norm", targets, check, set };

fn targets(module: &Module<'_>) -> bool {
    matches!(module, Module::Norm(_))
}

fn check(_: &Module<'_>, context: &Context) -> Result<(), String> {
    require_any_shape("rms_norm", context)
}

fn set(module: &mut Module<'_>, path: Path) {
    if let Module::Norm(norm) = module {
        norm.path = path;
    }
}

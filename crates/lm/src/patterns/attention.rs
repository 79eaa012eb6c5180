//! Scores, softmax and weighted sum in one launch.

use mlx::Dtype;
use mlx::primitives::Precision;

use super::{Context, Pattern, require_any_shape};
use crate::layers::Path;
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "attention", targets, check, set };

fn targets(module: &Module<'_>) -> bool {
    matches!(module, Module::Attention(_))
}

fn check(_: &Module<'_>, context: &Context) -> Result<(), String> {
    if context.dtype == Dtype::F32 && context.precision == Precision::Exact {
        return Err("the order of stock's float32 products cannot be repeated".into());
    }
    require_any_shape("attention", context)
}

fn set(module: &mut Module<'_>, path: Path) {
    if let Module::Attention(plan) = module {
        plan.attention = path;
    }
}

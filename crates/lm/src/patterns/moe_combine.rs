//! The experts' down projection with the weighted sum in one launch.

use mlx::primitives::GatherQmmCombine;

use super::{Context, Pattern, require_quantized, require_support};
use crate::layers::Path;
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "moe_combine", targets, check, set };

fn targets(module: &Module<'_>) -> bool {
    matches!(module, Module::Moe(_))
}

fn check(module: &Module<'_>, context: &Context) -> Result<(), String> {
    let Module::Moe(moe) = module else { return Err("is no mixture of experts".into()) };
    let down = require_quantized("down_proj", &moe.switch_mlp.down_proj.weight)?;
    require_support(&GatherQmmCombine::of(down, moe.routing.top_k), context)
}

fn set(module: &mut Module<'_>, path: Path) {
    if let Module::Moe(moe) = module {
        moe.plan.combine = path;
    }
}

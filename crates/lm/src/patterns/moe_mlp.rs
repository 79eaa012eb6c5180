//! Gate and up projections with SwiGLU in one launch; routing and combine stay as they are.

use mlx::primitives::GatherQmmSwiglu;

use super::{Context, Pattern, require_quantized, require_support};
use crate::layers::Path;
use crate::models::Module;

pub(super) const PATTERN: Pattern = Pattern { name: "moe_mlp", targets, check, set };

fn targets(module: &Module<'_>) -> bool {
    matches!(module, Module::Moe(_))
}

fn check(module: &Module<'_>, context: &Context) -> Result<(), String> {
    let Module::Moe(moe) = module else { return Err("is no mixture of experts".into()) };
    let gate = require_quantized("gate_proj", &moe.switch_mlp.gate_proj.weight)?;
    let up = require_quantized("up_proj", &moe.switch_mlp.up_proj.weight)?;
    if gate.quantization != up.quantization {
        let (gate, up) = (gate.quantization, up.quantization);
        return Err(format!("gate_proj and up_proj are quantised differently: {gate} and {up}"));
    }
    require_support(&GatherQmmSwiglu::of(gate, moe.routing.top_k), context)
}

fn set(module: &mut Module<'_>, path: Path) {
    if let Module::Moe(moe) = module {
        moe.plan.mlp = path;
    }
}

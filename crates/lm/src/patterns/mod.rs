//! Patterns: each rewrites one kind of module onto a fused primitive, one file and one row each.

mod attention;
mod greedy_token;
mod moe_combine;
mod moe_mlp;
mod moe_router;
mod qk_norm_rope;
mod quantized_linear;
mod rms_norm;

use mlx::primitives::{Ask, Precision, Setting};
use mlx::quantization::QuantizedWeight;
use mlx::{Device, Dtype, primitives};

use crate::layers::{Path, Weight};
use crate::models::Module;

/// A row of [`PATTERNS`].
pub struct Pattern {
    /// The name users write.
    pub name: &'static str,
    /// Whether the pattern is about modules of this kind at all. Others are not reported.
    pub targets: fn(&Module<'_>) -> bool,
    /// Why this module cannot be fused, if it cannot.
    pub check: fn(&Module<'_>, &Context) -> Result<(), String>,
    /// Puts the module on a path. Called only where `targets` holds.
    pub set: fn(&mut Module<'_>, Path),
}

/// What patterns decide by, apart from the module.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Where the model runs.
    pub device: Device,
    /// Type of the activations.
    pub dtype: Dtype,
    /// Same bits as stock, or free order of additions.
    pub precision: Precision,
}

/// Every pattern there is.
pub const PATTERNS: &[Pattern] = &[
    moe_mlp::PATTERN,
    moe_combine::PATTERN,
    moe_router::PATTERN,
    quantized_linear::PATTERN,
    qk_norm_rope::PATTERN,
    attention::PATTERN,
    rms_norm::PATTERN,
    greedy_token::PATTERN,
];

/// The patterns that `auto` stands for.
struct Preset {
    model_type: &'static str,
    device: Device,
    patterns: &'static [&'static str],
}

/// On the CPU everything is fused: stock runs one thread and rounds after every addition there.
const PRESETS: &[Preset] = &[
    Preset {
        model_type: "qwen3_moe",
        device: Device::Cpu,
        patterns: &[
            "moe_mlp",
            "moe_combine",
            "moe_router",
            "quantized_linear",
            "qk_norm_rope",
            "attention",
            "rms_norm",
            "greedy_token",
        ],
    },
    Preset { model_type: "qwen3_moe", device: Device::Gpu, patterns: &["moe_mlp"] },
];

/// The names of [`PATTERNS`].
pub fn names() -> Vec<&'static str> {
    PATTERNS.iter().map(|pattern| pattern.name).collect()
}

/// The patterns that are on by default for a family on a device.
pub fn preset(model_type: &str, device: Device) -> &'static [&'static str] {
    PRESETS
        .iter()
        .find(|preset| preset.model_type == model_type && preset.device == device)
        .map_or(&[], |preset| preset.patterns)
}

/// A weight in packed form, or the reason why a fused path has no use for it.
fn require_quantized<'a>(name: &str, weight: &'a Weight) -> Result<&'a QuantizedWeight, String> {
    weight.quantized().ok_or_else(|| format!("{name} is dense"))
}

/// Whether a primitive runs fused as asked, where the context says.
fn require_support(ask: &dyn Ask, context: &Context) -> Result<(), String> {
    let Context { device, dtype, precision } = *context;
    primitives::supports(ask, &Setting { device, dtype, precision })
}

/// The same for a primitive that takes every shape.
fn require_any_shape(primitive: &str, context: &Context) -> Result<(), String> {
    let ask = primitives::TYPICAL.iter().find(|ask| ask.primitive() == primitive);
    require_support(*ask.ok_or_else(|| format!("there is no primitive {primitive}"))?, context)
}

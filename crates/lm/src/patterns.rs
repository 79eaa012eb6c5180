//! The patterns: the rewrites that users can name, and which of them are on by default.
//!
//! A pattern is a name that layers put on their [sites](crate::layers::Site); what it needs of a module, and what it
//! does there, is written where the site is.

use mlx::Device;

use crate::error::{Error, Result};
use crate::models::{Preset, find};

/// A row of [`PATTERNS`].
pub struct Pattern {
    /// The name users write.
    pub name: &'static str,
    /// What it fuses.
    pub about: &'static str,
}

/// Every pattern there is.
pub const PATTERNS: &[Pattern] = &[
    Pattern {
        name: "moe_mlp",
        about: "gate and up projections of the routed experts, with what joins them",
    },
    Pattern {
        name: "moe_combine",
        about: "the routed experts' down projection with the weighted sum over experts",
    },
    Pattern { name: "moe_router", about: "scores, choice and weights of the experts" },
    Pattern {
        name: "swiglu_mlp",
        about: "gate and up projections of dense and shared experts, with what joins them",
    },
    Pattern {
        name: "quantized_linear",
        about: "every other quantised product, routers and output projection included",
    },
    Pattern { name: "embedding", about: "rows of a quantised table, dequantised" },
    Pattern { name: "qk_norm_rope", about: "norm and rotation of queries and keys" },
    Pattern { name: "attention", about: "scores, softmax and weighted sum of attention" },
    Pattern {
        name: "cache_append",
        about: "new keys and values of a batch into the caches of its rows",
    },
    Pattern { name: "rms_norm", about: "norms of the residual stream" },
    Pattern {
        name: "add_norm",
        about: "what is added to the residual stream, with the norm of the sum",
    },
    Pattern { name: "short_conv", about: "short convolutions with their gates or activation" },
    Pattern {
        name: "gated_delta",
        about: "the gated delta rule with the norms and gates around it",
    },
    Pattern { name: "greedy_token", about: "from logits to the likeliest token" },
    Pattern {
        name: "recorded_step",
        about: "a greedy step of decode, recorded once and launched again for every token",
    },
];

/// On by default on a CPU: stock runs one thread there and rounds after every addition.
const CPU: &[&str] = &[
    "moe_mlp",
    "moe_combine",
    "moe_router",
    "swiglu_mlp",
    "quantized_linear",
    "embedding",
    "qk_norm_rope",
    "attention",
    "cache_append",
    "rms_norm",
    "add_norm",
    "short_conv",
    "gated_delta",
    "greedy_token",
];
/// On by default on another GPU, where the CPU is busy with launches: what has a kernel for CUDA and is one launch in place
/// of several, or does not wait as long, and steps that need nothing of the CPU.
const GPU: &[&str] = &[
    "moe_mlp",
    "moe_combine",
    "moe_router",
    "swiglu_mlp",
    "quantized_linear",
    "embedding",
    "qk_norm_rope",
    "add_norm",
    "greedy_token",
    "recorded_step",
];
/// On by default on a Mac, where launches cost more than they compute: what has a kernel there and is one launch in place
/// of several.
const METAL: &[&str] =
    &["moe_mlp", "moe_combine", "moe_router", "swiglu_mlp", "qk_norm_rope", "add_norm"];

/// The names of [`PATTERNS`].
pub fn names() -> Vec<&'static str> {
    PATTERNS.iter().map(|pattern| pattern.name).collect()
}

/// The pattern of a name.
///
/// # Errors
/// `UnknownPattern`.
pub(crate) fn named(name: &str) -> Result<&'static Pattern> {
    PATTERNS
        .iter()
        .find(|pattern| pattern.name == name)
        .ok_or_else(|| Error::UnknownPattern { name: name.to_owned(), known: names() })
}

/// The patterns that are on by default on a device, families apart.
pub fn preset(device: Device) -> &'static [&'static str] {
    match device {
        Device::Cpu => CPU,
        Device::Gpu if cfg!(target_os = "macos") => METAL,
        Device::Gpu => GPU,
    }
}

/// The patterns that are on by default on a Mac.
pub fn metal_preset() -> &'static [&'static str] {
    METAL
}

/// The patterns of a preset that are on by default for a family, and why others are not.
pub(crate) fn preset_of(model_type: &str, preset: &[&'static str]) -> Chosen {
    let family = find(model_type).map_or(Preset::Device, |row| row.preset);
    let (mut patterns, mut note) = (preset.to_vec(), None);
    match family {
        Preset::Device => {}
        Preset::Without(exceptions) => {
            patterns.retain(|name| exceptions.iter().all(|(excepted, _)| excepted != name));
            let reasons: Vec<_> =
                exceptions.iter().map(|(name, why)| format!("{name}: {why}")).collect();
            note = Some(format!("not on by default for {model_type}: {}", reasons.join("; ")));
        }
        Preset::None(why) => {
            patterns.clear();
            note = Some(format!("{model_type} has no preset: {why}; patterns can be named"));
        }
    }
    Chosen { patterns, note }
}

/// What [`preset_of`] chose.
pub(crate) struct Chosen {
    /// By name.
    pub(crate) patterns: Vec<&'static str>,
    /// What the family's preset leaves out, and why.
    pub(crate) note: Option<String>,
}

//! Which modules go onto fused primitives.

use mlx::primitives::Precision;
use zmlx::lm::{PatchOptions, Patterns, patterns};

/// Patching, as commands that run one model take it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Patching")]
pub(super) struct PatchingOptions {
    /// Fused patterns: auto, off, or names separated by commas
    #[arg(long, value_name = "PATTERNS", default_value = "auto", value_parser = parse_patterns)]
    patch: Patterns,
}

impl PatchingOptions {
    pub(super) fn options(&self, precision: Precision) -> PatchOptions {
        PatchOptions { patterns: self.patch.clone(), precision, ..PatchOptions::default() }
    }
}

/// `auto`, `off`, or names separated by commas. Names are checked against the table of patterns.
pub(super) fn parse_patterns(text: &str) -> Result<Patterns, String> {
    let known = patterns::names();
    match text {
        "auto" => return Ok(Patterns::Auto),
        "off" => return Ok(Patterns::Off),
        _ => {}
    }
    let names: Vec<&str> = text.split(',').map(str::trim).collect();
    match names.iter().find(|name| !known.contains(name)) {
        None => Ok(Patterns::Names(names.into_iter().map(str::to_owned).collect())),
        Some(name) => Err(format!(
            "pattern `{name}` is not known; known: auto, off, or any of {}",
            known.join(", ")
        )),
    }
}

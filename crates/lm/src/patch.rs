//! The patch layer: moves modules onto fused primitives and says, for each, what it ended up on and why.

use mlx::primitives::Precision;
use mlx::{Device, default_device};

use crate::error::{Error, Result};
use crate::layers::{Fusion, Path};
use crate::models::{Model, ModuleKind};
use crate::patterns::{self, Context, PATTERNS, Pattern};

/// Which patterns to try.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Patterns {
    /// The family's preset.
    #[default]
    Auto,
    /// None: all modules go back to stock.
    Off,
    /// These, by name.
    Names(Vec<String>),
}

/// What to do about a module that cannot be fused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fused {
    /// Leave it on stock ops and report why.
    #[default]
    Auto,
    /// Fail, and leave all modules on stock ops.
    Require,
}

/// How to patch.
#[derive(Debug, Clone, Default)]
pub struct PatchOptions {
    /// Which patterns to try.
    pub patterns: Patterns,
    /// Same bits as stock, or free order of additions.
    pub precision: Precision,
    /// What to do about a module that cannot be fused.
    pub fused: Fused,
}

/// What one module ended up on under one pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleReport {
    /// Path of the module in the model.
    pub module: String,
    /// The pattern.
    pub pattern: &'static str,
    /// Why it stays on stock ops; `None` when it is fused.
    pub fallback: Option<String>,
    /// What kind of module it is.
    pub kind: ModuleKind,
}

/// What became of every module.
#[derive(Debug, Clone)]
pub struct PatchReport {
    /// The patterns tried.
    pub patterns: Vec<&'static str>,
    /// Where the model runs.
    pub device: Device,
    /// The precision asked for.
    pub precision: Precision,
    /// One row per module and pattern that is about it, in order of execution.
    pub modules: Vec<ModuleReport>,
    /// Mixtures of experts in the model.
    pub num_moe_modules: usize,
}

impl PatchReport {
    /// Mixtures of experts with at least one fused part.
    pub fn patched_modules(&self) -> usize {
        self.count_fused(ModuleKind::Moe)
    }

    /// Linear layers outside the experts that run fused, routers not counted.
    pub fn patched_linears(&self) -> usize {
        self.count_fused(ModuleKind::Linear)
    }

    /// Rows of modules that stay on stock ops, with the reason.
    pub fn fallbacks(&self) -> impl Iterator<Item = (&ModuleReport, &str)> {
        self.modules.iter().filter_map(|row| Some((row, row.fallback.as_deref()?)))
    }

    /// Modules of a kind with at least one fused part.
    pub fn count_fused(&self, kind: ModuleKind) -> usize {
        let mut fused: Vec<_> = self
            .modules
            .iter()
            .filter(|row| row.fallback.is_none() && row.kind == kind)
            .map(|row| &row.module)
            .collect();
        fused.dedup();
        fused.len()
    }
}

/// Puts every module that a chosen pattern can fuse onto its primitive, all others on stock ops.
///
/// # Errors
/// `UnknownPattern`; `NotFused` under [`Fused::Require`]; `Mlx`. After an error all modules are on stock ops.
pub fn patch(
    model: &mut dyn Model,
    model_type: &str,
    options: &PatchOptions,
) -> Result<PatchReport> {
    unpatch(model);
    let report = plan(model, model_type, options)?;
    if options.fused == Fused::Require
        && let Some((row, reason)) = report.fallbacks().next()
    {
        return Err(Error::NotFused {
            module: row.module.clone(),
            pattern: row.pattern,
            reason: reason.to_owned(),
        });
    }
    let fusion = Fusion { precision: options.precision, decode_only: report.device == Device::Gpu };
    let mut rows = report.modules.iter();
    for (_, mut module) in model.modules() {
        for pattern in choose(model_type, report.device, &options.patterns)? {
            if !(pattern.targets)(&module) {
                continue;
            }
            // plan() walked the same modules and patterns
            if rows.next().is_some_and(|row| row.fallback.is_none()) {
                (pattern.set)(&mut module, Path::Fused(fusion));
            }
        }
    }
    Ok(report)
}

/// What [`patch`] would do, without doing it.
///
/// # Errors
/// `UnknownPattern`, `Mlx`.
pub fn plan(
    model: &mut dyn Model,
    model_type: &str,
    options: &PatchOptions,
) -> Result<PatchReport> {
    let device = default_device();
    let chosen = choose(model_type, device, &options.patterns)?;
    let context =
        Context { device, dtype: model.activation_dtype()?, precision: options.precision };
    let mut report = PatchReport {
        patterns: chosen.iter().map(|pattern| pattern.name).collect(),
        device,
        precision: options.precision,
        modules: Vec::new(),
        num_moe_modules: 0,
    };
    for (path, module) in model.modules() {
        let kind = module.kind();
        report.num_moe_modules += usize::from(kind == ModuleKind::Moe);
        for pattern in &chosen {
            if (pattern.targets)(&module) {
                report.modules.push(ModuleReport {
                    module: path.clone(),
                    pattern: pattern.name,
                    fallback: (pattern.check)(&module, &context).err(),
                    kind,
                });
            }
        }
    }
    Ok(report)
}

/// Puts every module back on stock ops.
pub fn unpatch(model: &mut dyn Model) {
    for (_, mut module) in model.modules() {
        for pattern in PATTERNS {
            (pattern.set)(&mut module, Path::Stock);
        }
    }
}

fn choose(model_type: &str, device: Device, patterns: &Patterns) -> Result<Vec<&'static Pattern>> {
    let wanted: Vec<&str> = match patterns {
        Patterns::Auto => patterns::preset(model_type, device).to_vec(),
        Patterns::Off => Vec::new(),
        Patterns::Names(names) => names.iter().map(String::as_str).collect(),
    };
    for name in &wanted {
        if !PATTERNS.iter().any(|pattern| pattern.name == *name) {
            return Err(Error::UnknownPattern {
                name: (*name).to_owned(),
                known: patterns::names(),
            });
        }
    }
    Ok(PATTERNS.iter().filter(|pattern| wanted.contains(&pattern.name)).collect())
}

//! The patch layer: moves sites onto fused primitives and says, for each, what it ended up on and why.

use std::ops::RangeInclusive;

use mlx::primitives::{self, Precision, Setting};
use mlx::{Device, default_device};

use crate::error::{Error, Result};
use crate::layers::{Fusion, ModuleKind, Path, Site};
use crate::models::{LoadedModel, Model};
use crate::patterns;

/// Which patterns to try.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Patterns {
    /// The preset of the device and the family.
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
    /// Modules to leave on stock ops, by globs over their paths.
    pub exclude: Vec<glob::Pattern>,
    /// The decoder layers to patch; what lies outside of all layers is then left alone. `None`: the whole model.
    pub layers: Option<Vec<RangeInclusive<usize>>>,
}

impl PatchOptions {
    /// Whether the user wants this site left alone, and by which word.
    fn left_out(&self, site: &Site<'_>) -> Option<String> {
        let module = site.module.as_str();
        if let Some(glob) = self.exclude.iter().find(|glob| glob.matches(module)) {
            return Some(format!("excluded by `{glob}`"));
        }
        let layers = self.layers.as_ref()?;
        let layer = site.module.layer_index();
        let chosen = layer.is_some_and(|layer| layers.iter().any(|range| range.contains(&layer)));
        (!chosen).then(|| "not in the chosen layers".to_owned())
    }
}

/// What one module ended up on under one pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleReport {
    /// Path of the module in the model.
    pub module: String,
    /// The decoder layer that it lies in.
    pub layer: Option<usize>,
    /// The pattern.
    pub pattern: &'static str,
    /// Why it stays on stock ops; `None` when it is fused.
    pub fallback: Option<String>,
    /// Whether it stays there because the options say so.
    pub left_out: bool,
    /// What kind of module it is.
    pub kind: ModuleKind,
}

/// What became of every module.
#[derive(Debug, Clone)]
pub struct PatchReport {
    /// The patterns tried; of a preset those that the model has a place for.
    pub patterns: Vec<&'static str>,
    /// Where the model runs.
    pub device: Device,
    /// The precision asked for.
    pub precision: Precision,
    /// One row per module and pattern that is about it, in order of execution.
    pub modules: Vec<ModuleReport>,
    /// Mixtures of experts in the model.
    pub num_moe_modules: usize,
    /// What the family's preset leaves out, and why.
    pub note: Option<String>,
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

/// Puts every site that a chosen pattern can fuse onto its primitive, all others on stock ops.
///
/// # Errors
/// `UnknownPattern`; `NotFused` under [`Fused::Require`]; `Mlx`. After an error all modules are on stock ops.
pub fn patch(loaded: &mut LoadedModel, options: &PatchOptions) -> Result<PatchReport> {
    patch_for(loaded, options, Target::Here)
}

/// Which machine's kernels are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Those of this build, on the default device.
    Here,
    /// Those of a Mac. The graphs can be built here and not be run.
    Metal,
}

impl Target {
    fn device(self) -> Device {
        match self {
            Self::Here => default_device(),
            Self::Metal => Device::Gpu,
        }
    }

    fn preset(self) -> &'static [&'static str] {
        match self {
            Self::Here => patterns::preset(default_device()),
            Self::Metal => patterns::metal_preset(),
        }
    }

    /// Whether stock's kernels for sorted and for many rows may add in another order than the fused ones.
    fn decode_only(self) -> bool {
        self.device() == Device::Gpu && (self == Self::Metal || cfg!(target_os = "macos"))
    }

    /// Why a question is answered with no, if it is.
    fn refusal(self, question: &dyn primitives::Ask, setting: &Setting) -> Option<String> {
        let here = || primitives::supports(question, setting).err();
        match self {
            Self::Here => here(),
            // a graph is built on the default device, which has a say too
            Self::Metal => primitives::supports_on_metal(question, setting)
                .err()
                .or_else(|| here().map(|reason| format!("not counted here: {reason}"))),
        }
    }
}

pub(crate) fn patch_for(
    loaded: &mut LoadedModel,
    options: &PatchOptions,
    target: Target,
) -> Result<PatchReport> {
    unpatch(loaded);
    let report = plan_for(loaded, options, target)?;
    if options.fused == Fused::Require
        && let Some((row, reason)) = report.fallbacks().find(|(row, _)| !row.left_out)
    {
        return Err(Error::NotFused {
            module: row.module.clone(),
            pattern: row.pattern,
            reason: reason.to_owned(),
        });
    }
    let fusion = Fusion { precision: options.precision, decode_only: target.decode_only() };
    let chosen = |site: &Site<'_>| report.patterns.contains(&site.pattern);
    let sites = sites_of(loaded.model.as_mut()).into_iter().filter(chosen);
    // plan() walked the same sites
    for (site, row) in sites.zip(&report.modules) {
        if row.fallback.is_none() {
            *site.path = Path::Fused(fusion);
        }
    }
    Ok(report)
}

/// What [`patch`] would do, without doing it.
///
/// # Errors
/// `UnknownPattern`, `Mlx`.
pub fn plan(loaded: &mut LoadedModel, options: &PatchOptions) -> Result<PatchReport> {
    plan_for(loaded, options, Target::Here)
}

fn plan_for(
    loaded: &mut LoadedModel,
    options: &PatchOptions,
    target: Target,
) -> Result<PatchReport> {
    let (patterns, note) = match &options.patterns {
        Patterns::Off => (Vec::new(), None),
        Patterns::Names(names) => {
            let known = names.iter().map(|name| Ok(patterns::named(name)?.name));
            (known.collect::<Result<_>>()?, None)
        }
        Patterns::Auto => {
            let chosen = patterns::preset_of(&loaded.config.model_type, target.preset());
            (chosen.patterns, chosen.note)
        }
    };
    let dtype = loaded.model.activation_dtype()?;
    let setting = Setting { device: default_device(), dtype, precision: options.precision };
    let mut report = PatchReport {
        patterns,
        device: target.device(),
        precision: options.precision,
        modules: Vec::new(),
        num_moe_modules: 0,
        note,
    };
    let mut last_moe = None;
    let sites = sites_of(loaded.model.as_mut());
    if options.patterns == Patterns::Auto {
        report.patterns.retain(|name| sites.iter().any(|site| site.pattern == *name));
    }
    for site in sites {
        if site.kind == ModuleKind::Moe && last_moe.as_ref() != Some(&site.module) {
            report.num_moe_modules += 1;
            last_moe = Some(site.module.clone());
        }
        if !report.patterns.contains(&site.pattern) {
            continue;
        }
        let left_out = options.left_out(&site);
        report.modules.push(ModuleReport {
            module: site.module.as_str().to_owned(),
            layer: site.module.layer_index(),
            pattern: site.pattern,
            left_out: left_out.is_some(),
            fallback: left_out.or_else(|| refusal(&site, &setting, target)),
            kind: site.kind,
        });
    }
    Ok(report)
}

/// Puts every module back on stock ops.
pub fn unpatch(loaded: &mut LoadedModel) {
    for site in sites_of(loaded.model.as_mut()) {
        *site.path = Path::Stock;
    }
}

/// Every site of a model, in order of execution.
pub(crate) fn sites_of(model: &mut dyn Model) -> Vec<Site<'_>> {
    let mut sites = Vec::new();
    model.sites(&mut sites);
    sites
}

/// Why a site cannot be fused in this setting, if it cannot.
fn refusal(site: &Site<'_>, setting: &Setting, target: Target) -> Option<String> {
    match &site.questions {
        Err(reason) => Some(reason.clone()),
        Ok(questions) => questions.iter().find_map(|question| target.refusal(&**question, setting)),
    }
}

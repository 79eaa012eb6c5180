//! Which modules go onto fused primitives.

use std::ops::RangeInclusive;

use anyhow::bail;
use mlx::primitives::Precision;
use zmlx::bench::smart::Choice;
use zmlx::bench::{SmartOptions, smart_patch};
use zmlx::lm::{self, CacheOptions, LoadedModel, PatchOptions, PatchReport, Patterns, patterns};

use super::place;
use super::render::Ui;

/// Patching, as commands that run one model take it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Patching")]
pub(super) struct PatchingOptions {
    /// Fused patterns: auto, off, names separated by commas, or smart: those of auto that are measured to help here
    #[arg(long, value_name = "PATTERNS", default_value = "auto", value_parser = parse_choice)]
    patch: PatchChoice,
    /// With --patch smart: measure again what is remembered
    #[arg(long)]
    remeasure: bool,
    #[command(flatten)]
    pub(super) targets: PatchTargets,
}

/// Who chooses the patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PatchChoice {
    User(Patterns),
    Smart,
}

fn parse_choice(text: &str) -> Result<PatchChoice, String> {
    match text {
        "smart" => Ok(PatchChoice::Smart),
        _ => parse_patterns(text)
            .map(PatchChoice::User)
            .map_err(|error| error.replace("known: auto, off,", "known: auto, off, smart,")),
    }
}

impl PatchingOptions {
    /// Patches a model, and says what there is to say.
    ///
    /// - `sample`: prompts like those to come
    /// - `cache`: how what the model remembers will be kept
    pub(super) fn apply(
        &self,
        loaded: &mut LoadedModel,
        precision: Precision,
        sample: impl FnOnce() -> anyhow::Result<Vec<Vec<u32>>>,
        cache: CacheOptions,
        ui: &Ui,
    ) -> anyhow::Result<PatchReport> {
        let report = match &self.patch {
            PatchChoice::User(patterns) => {
                lm::patch(loaded, &self.targets.options(patterns, precision))?
            }
            PatchChoice::Smart => self.smart(loaded, precision, sample()?, cache, ui)?,
        };
        self.targets.explain(&report, ui);
        Ok(report)
    }

    fn smart(
        &self,
        loaded: &mut LoadedModel,
        precision: Precision,
        sample: Vec<Vec<u32>>,
        cache: CacheOptions,
        ui: &Ui,
    ) -> anyhow::Result<PatchReport> {
        let options = SmartOptions {
            patch: self.targets.options(&Patterns::Auto, precision),
            cache,
            store: place::smart_store(),
            remeasure: self.remeasure,
            ..SmartOptions::new(sample, place::software())
        };
        let bar = ui.steps("measuring");
        let found = smart_patch(loaded, &options, &mut |step| bar.say(step))?;
        drop(bar);
        explain_choice("smart", &found.choice, found.remembered, ui);
        Ok(found.patch)
    }

    /// For commands that read no weights.
    pub(super) fn options(&self, precision: Precision) -> anyhow::Result<PatchOptions> {
        match &self.patch {
            PatchChoice::User(patterns) => Ok(self.targets.options(patterns, precision)),
            PatchChoice::Smart => bail!(
                "--patch smart measures a model in memory, and this reads no weights; take auto or names"
            ),
        }
    }
}

/// Says what was chosen, and why.
pub(super) fn explain_choice(who: &str, choice: &Choice, remembered: bool, ui: &Ui) {
    for decision in &choice.decisions {
        let gain = decision.gain.as_ref().map_or(String::new(), |gain| {
            format!("{:.2}x ({:.2}..{:.2}), ", gain.ratio, gain.low, gain.high)
        });
        let verb = if decision.kept { "takes" } else { "leaves" };
        ui.note(&format!("{who} {verb} {}: {gain}{}", decision.pattern, decision.reason));
    }
    let when = if remembered { " (remembered)" } else { "" };
    ui.note(&format!("{who}: {}{when}", choice.reason));
}

/// The modules that patterns are tried on.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Patching")]
pub(super) struct PatchTargets {
    /// Leave modules on stock ops whose paths match, such as '*.self_attn*'; may be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<glob::Pattern>,
    /// Decoder layers to patch, such as 0-3,7 [default: the whole model]
    #[arg(long, value_name = "LAYERS", value_parser = parse_layers)]
    layers: Option<Layers>,
}

impl PatchTargets {
    pub(super) fn options(&self, patterns: &Patterns, precision: Precision) -> PatchOptions {
        PatchOptions {
            patterns: patterns.clone(),
            precision,
            exclude: self.exclude.clone(),
            layers: self.layers.as_ref().map(|layers| layers.0.clone()),
            ..PatchOptions::default()
        }
    }

    /// Says what the family's preset leaves out, and which choices chose nothing.
    pub(super) fn explain(&self, report: &PatchReport, ui: &Ui) {
        if let Some(note) = &report.note {
            ui.note(note);
        }
        // without a pattern no module is looked at
        if report.modules.is_empty() {
            return;
        }
        for glob in &self.exclude {
            if !report.modules.iter().any(|row| glob.matches(&row.module)) {
                ui.note(&format!("--exclude {glob}: no module matches"));
            }
        }
        let layers = self.layers.iter().flat_map(|layers| &layers.0);
        for range in layers {
            let (first, last) = range.clone().into_inner();
            if !report.modules.iter().any(|row| row.layer.is_some_and(|l| range.contains(&l))) {
                ui.note(&format!("--layers {first}-{last}: the model has no such layer"));
            }
        }
    }
}

/// Layers by number, from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layers(Vec<RangeInclusive<usize>>);

fn parse_layers(text: &str) -> Result<Layers, String> {
    let number = |part: &str| {
        let part = part.trim();
        part.parse::<usize>().map_err(|_| format!("`{part}` is no layer; expected e.g. 0-3,7"))
    };
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = number(first)?..=number(last)?;
        if range.is_empty() {
            return Err(format!("`{part}` goes backwards; expected e.g. 0-3,7"));
        }
        Ok(range)
    };
    text.split(',').map(range).collect::<Result<_, _>>().map(Layers)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_layers_takes_numbers_and_ranges() {
        assert_eq!(parse_layers("0-3, 7"), Ok(Layers(vec![0..=3, 7..=7])));
        for (text, part) in [("", "``"), ("3-1", "backwards"), ("1,x", "`x`"), ("-1", "``")] {
            let error = parse_layers(text).expect_err(text);
            assert!(error.contains(part) && error.contains("0-3,7"), "{error}");
        }
    }
}

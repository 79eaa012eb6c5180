//! A measurement as somebody watches it, and what is found out beside the clock.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use zmlx::bench::memory::Memory;
use zmlx::bench::runner::{self, Plan};
use zmlx::bench::smart::{self, Decision};
use zmlx::bench::{Engine, VariantSpec, Watch, Work};
use zmlx::capsule::{Capsule, CaseKind, LayerRouting, LogitDistance, Sample, rounded};
use zmlx::lm::{self, GenerateOptions, LoadedModel, Side};

use super::lines::Interrupt;
use super::patching::explain_choice;
use super::place;
use super::render::{Bar, Ui};

/// How many of the likeliest tokens are compared.
pub(super) const TOP_K: usize = 10;

struct Progress<'a> {
    ui: &'a mut Ui,
    bar: Bar,
    interrupt: Interrupt,
    path: PathBuf,
    failed: Option<anyhow::Error>,
}

impl Watch for Progress<'_> {
    fn next(&mut self, done: usize, total: usize, what: &str) {
        self.bar.set(done as u64, total as u64);
        self.bar.say(what);
    }

    fn ran(&mut self, capsule: &Capsule, sample: &Sample) {
        let event = json!({
            "variant": capsule.variants[sample.variant].name, "case": capsule.cases[sample.case].name,
            "run": sample.run, "metrics": sample.metrics, "tokens_sha256": sample.tokens_sha256,
        });
        if let Err(error) = self.ui.event("sample", &event) {
            self.failed.get_or_insert(error);
        }
    }

    fn save(&mut self, capsule: &Capsule) -> zmlx::bench::Result<()> {
        Ok(capsule.write(&self.path)?)
    }

    fn cancelled(&self) -> bool {
        self.interrupt.is_set() || self.failed.is_some()
    }
}

/// Chooses the patterns of a variant by measurement; returns a note on it for the capsule.
pub(super) fn settle(
    loaded: &mut LoadedModel,
    spec: &mut VariantSpec,
    work: &[Work],
    ui: &Ui,
) -> anyhow::Result<String> {
    let bar = ui.steps("choosing");
    let name = spec.name.clone();
    let mut on_step = |step: &str| bar.say(&format!("{name}: {step}"));
    let (settled, choice) = smart::settle(loaded, spec, work, place::software(), &mut on_step)?;
    drop(bar);
    explain_choice(&name, &choice, false, ui);
    *spec = settled;
    let left = |d: &Decision| format!("; without {}: {}", d.pattern, d.reason);
    let left: String = choice.decisions.iter().filter(|d| !d.kept).map(left).collect();
    Ok(format!("{name} was chosen by measurement: {}{left}", choice.reason))
}

/// Measures what the capsule lacks, and saves it now and then. Ctrl-C ends it early, with what there is.
pub(super) fn run(
    engine: &mut dyn Engine,
    capsule: &mut Capsule,
    specs: &[VariantSpec],
    work: &[Work],
    path: &Path,
    ui: &mut Ui,
) -> anyhow::Result<()> {
    for (spec, variant) in specs.iter().zip(&mut capsule.variants) {
        engine.describe(spec, variant)?;
    }
    // before anything takes long: a file that cannot be written
    capsule.write(path).context("--out")?;
    let memory = (mlx::default_device() == mlx::Device::Cpu).then(Memory::new);
    let bar = ui.runs_bar();
    let mut progress =
        Progress { ui, bar, interrupt: Interrupt::listen()?, path: path.to_owned(), failed: None };
    let mut plan = Plan { variants: specs, work, memory };
    runner::run(&mut plan, engine, capsule, &mut progress)?;
    progress.failed.map_or(Ok(()), Err)
}

/// What else is to be found out.
pub(super) struct Extras {
    /// Positions at which logits are compared.
    pub(super) logits: Option<usize>,
    /// Whether choices of experts are counted.
    pub(super) routing: bool,
}

impl Extras {
    /// Adds what the capsule does not have yet.
    pub(super) fn add(
        &self,
        loaded: &mut LoadedModel,
        capsule: &mut Capsule,
        specs: &[VariantSpec],
        work: &[Work],
        ui: &Ui,
    ) -> anyhow::Result<()> {
        if capsule.interrupted {
            return Ok(());
        }
        if let Some(positions) = self.logits.filter(|_| capsule.logits.is_empty()) {
            capsule.logits = logits(loaded, capsule, specs, work, positions, ui)?;
        }
        if self.routing && capsule.routing.is_empty() {
            capsule.routing = routing(loaded, specs, work, ui)?;
            if capsule.routing.is_empty() {
                ui.note("--routing-histogram: the model has no routers");
            }
        }
        Ok(())
    }
}

/// Of every variant of this program, after the reference's tokens.
fn logits(
    loaded: &mut LoadedModel,
    capsule: &Capsule,
    specs: &[VariantSpec],
    work: &[Work],
    positions: usize,
    ui: &Ui,
) -> anyhow::Result<Vec<LogitDistance>> {
    use zmlx::capsule::EngineKind;
    let mut found = Vec::new();
    let mut bar = ui.runs_bar();
    let total = (work.len() * specs.len().saturating_sub(1)) as u64;
    if specs[0].engine != EngineKind::Zmlx {
        ui.note("--logits: the reference is another program, which tells no logits");
        return Ok(found);
    }
    let reference = specs[0].patch_options();
    for (case, work) in work.iter().enumerate().filter(|(_, w)| w.case.kind != CaseKind::Prefill) {
        let output = capsule.outputs.iter().find(|o| o.variant == 0 && o.case == case);
        let Some(tokens) = output.and_then(|output| output.rows.first()) else { continue };
        let tokens = &tokens[..tokens.len().min(positions)];
        for (variant, spec) in specs.iter().enumerate().skip(1) {
            bar.set(found.len() as u64, total);
            bar.say(&format!("logits of {}, {}", spec.name, work.case.name));
            if spec.engine != EngineKind::Zmlx {
                continue;
            }
            let options = spec.patch_options();
            let sides = [
                Side { patch: Some(&reference), cache: specs[0].cache_options() },
                Side { patch: Some(&options), cache: spec.cache_options() },
            ];
            let prompt = &work.rows[0][..specs[0].capped(work.rows[0].len())];
            let d = lm::logit_distance(loaded, prompt, tokens, sides, top_k(loaded))?;
            found.push(LogitDistance {
                variant,
                case,
                positions: d.positions,
                max_abs: rounded(d.max_abs),
                mean_abs: rounded(d.mean_abs),
                mean_kl: rounded(d.mean_kl),
                top_k: d.top_k,
                top_k_agreement: rounded(d.top_k_agreement),
                top_1_agreement: rounded(d.top_1_agreement),
                near_ties: d.near_ties,
            });
        }
    }
    Ok(found)
}

pub(super) fn top_k(loaded: &LoadedModel) -> usize {
    TOP_K.min(loaded.model.vocab_size() as usize)
}

/// Of the last variant of this program, which is usually the fastest; exact ones choose alike.
fn routing(
    loaded: &mut LoadedModel,
    specs: &[VariantSpec],
    work: &[Work],
    ui: &Ui,
) -> anyhow::Result<Vec<LayerRouting>> {
    use zmlx::capsule::EngineKind;
    let mut found = Vec::new();
    let Some(spec) = specs.iter().rev().find(|s| s.engine == EngineKind::Zmlx) else {
        return Ok(found);
    };
    lm::patch(loaded, &spec.patch_options())?;
    let mut bar = ui.runs_bar();
    for (case, work) in work.iter().enumerate().filter(|(_, w)| w.case.kind != CaseKind::Prefill) {
        bar.set(case as u64, work.size().max(1) as u64);
        bar.say(&format!("routing of {}", work.case.name));
        let options = GenerateOptions {
            max_tokens: spec.capped(work.case.generate_tokens),
            ignore_eos: true,
            cache: spec.cache_options(),
            ..GenerateOptions::default()
        };
        for layer in lm::routing_histogram(loaded, &work.rows[0], &options)? {
            found.push(LayerRouting {
                case,
                layer: layer.layer,
                tokens: layer.tokens,
                entropy_bits: rounded(layer.entropy_bits()),
                counts: layer.counts,
                weights: layer.weights.into_iter().map(rounded).collect(),
            });
        }
    }
    lm::unpatch(loaded);
    Ok(found)
}

//! The protocol: who runs when, and what becomes of it.

use std::thread;
use std::time::{Duration, Instant};

use zmlx_capsule::{Capsule, Divergence, EngineKind, Fidelity, Output, Sample};

use crate::case::Work;
use crate::engine::{Engine, Outcome};
use crate::memory::Memory;
use crate::variant::VariantSpec;
use crate::{Result, hash, machine};

/// Tokens of a warm-up run: enough to compile, load and fill what a run needs.
const WARMUP_TOKENS: usize = 4;
/// Time after which what was measured is saved again.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Whoever watches a measurement.
pub trait Watch {
    /// A run is about to start.
    ///
    /// - `done`, `total`: timed runs
    fn next(&mut self, done: usize, total: usize, what: &str);

    /// A run has ended.
    fn ran(&mut self, capsule: &Capsule, sample: &Sample);

    /// Now and then, and at the end: what there is until now.
    ///
    /// # Errors
    /// Whatever keeps it from being saved; the measurement then ends.
    fn save(&mut self, capsule: &Capsule) -> Result<()>;

    /// Whether it is to end here.
    fn cancelled(&self) -> bool;
}

/// What is measured, by the numbers that a capsule has.
pub struct Plan<'a> {
    /// The variants; the first one is the reference.
    pub variants: &'a [VariantSpec],
    /// The cases.
    pub work: &'a [Work],
    /// Measures memory between the runs.
    pub memory: Option<Memory>,
}

/// Runs what a capsule does not hold yet. When it returns early, because whoever watches wants no more, the capsule
/// says so and can be gone on with.
///
/// # Errors
/// Those of the engine and of [`Watch::save`]; what was measured until then is in the capsule.
pub fn run(
    plan: &mut Plan<'_>,
    engine: &mut dyn Engine,
    capsule: &mut Capsule,
    watch: &mut dyn Watch,
) -> Result<()> {
    capsule.interrupted = true;
    capsule.machine.hints.push(machine::hints("start"));
    let result = rounds(plan, engine, capsule, watch);
    capsule.machine.hints.push(machine::hints("end"));
    if let Ok(true) = result {
        capsule.interrupted = false;
    }
    watch.save(capsule)?;
    result.map(|_| ())
}

/// Whether all of it was done.
fn rounds(
    plan: &mut Plan<'_>,
    engine: &mut dyn Engine,
    capsule: &mut Capsule,
    watch: &mut dyn Watch,
) -> Result<bool> {
    let order = schedule(plan, engine, capsule);
    let total = order.len() + capsule.samples.len();
    if order.is_empty() {
        return Ok(true);
    }
    if !warm_up(plan, engine, capsule, &order, watch)? {
        return Ok(false);
    }
    let cooldown = Duration::from_millis(capsule.protocol.cooldown_ms);
    let mut saved = Instant::now();
    let mut round = None;
    for (number, turn) in order.iter().enumerate() {
        if round.replace(turn.run) != Some(turn.run)
            && let Some(memory) = &mut plan.memory
        {
            capsule.bandwidth.push(memory.measure());
        }
        let (spec, work) = (&plan.variants[turn.variant], &plan.work[turn.case]);
        let what = format!("{}, {}, run {}", spec.name, work.case.name, turn.run + 1);
        watch.next(total - order.len() + number, total, &what);
        if number > 0 {
            thread::sleep(cooldown);
        }
        let stop = { &|| watch.cancelled() };
        let Some(outcome) = engine.run(spec, work, stop)? else { return Ok(false) };
        record(capsule, turn, outcome);
        if let Some(sample) = capsule.samples.last() {
            watch.ran(capsule, sample);
        }
        if saved.elapsed() > SAVE_EVERY {
            watch.save(capsule)?;
            saved = Instant::now();
        }
        if watch.cancelled() && number + 1 < order.len() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// One run to come.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Turn {
    run: usize,
    case: usize,
    variant: usize,
}

/// All that is not measured yet. Variants of a case and run stand side by side; every second run turns them around (AB,
/// then BA), so that nobody always comes after the same neighbour and what drifts does not favour anybody. A case's runs
/// are spread over the whole measurement.
fn schedule(plan: &Plan<'_>, engine: &dyn Engine, capsule: &mut Capsule) -> Vec<Turn> {
    let mut turns = Vec::new();
    let mut refusals = Vec::new();
    for run in 0..capsule.protocol.runs {
        for (case, work) in plan.work.iter().enumerate() {
            let mut side_by_side: Vec<Turn> =
                (0..plan.variants.len()).map(|variant| Turn { run, case, variant }).collect();
            if run % 2 == 1 {
                side_by_side.reverse();
            }
            side_by_side.retain(|turn| {
                let spec = &plan.variants[turn.variant];
                match engine.refusal(spec, work) {
                    None => true,
                    Some(reason) => {
                        refusals.push(format!(
                            "{} has no part in {}: {reason}",
                            spec.name, work.case.name
                        ));
                        false
                    }
                }
            });
            turns.extend(side_by_side);
        }
    }
    for refusal in refusals {
        if !capsule.notes.contains(&refusal) {
            capsule.notes.push(refusal);
        }
    }
    let done = |turn: &Turn| {
        let same = |s: &Sample| (s.run, s.case, s.variant) == (turn.run, turn.case, turn.variant);
        capsule.samples.iter().any(same)
    };
    turns.retain(|turn| !done(turn));
    turns
}

fn warm_up(
    plan: &Plan<'_>,
    engine: &mut dyn Engine,
    capsule: &Capsule,
    order: &[Turn],
    watch: &mut dyn Watch,
) -> Result<bool> {
    let done = capsule.samples.len();
    for _ in 0..capsule.protocol.warmup {
        for (variant, spec) in plan.variants.iter().enumerate() {
            let Some(turn) = order.iter().find(|turn| turn.variant == variant) else { continue };
            watch.next(done, done + order.len(), &format!("{}, warm-up", spec.name));
            let cap = spec.capped(WARMUP_TOKENS);
            let spec = VariantSpec { cap: Some(cap), ..spec.clone() };
            let stop = { &|| watch.cancelled() };
            if engine.run(&spec, &plan.work[turn.case], stop)?.is_none() || watch.cancelled() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn record(capsule: &mut Capsule, turn: &Turn, outcome: Outcome) {
    let Turn { run, case, variant } = *turn;
    let rows = outcome.rows;
    capsule.samples.push(Sample {
        variant,
        case,
        run,
        metrics: outcome.metrics,
        tokens: rows.as_ref().map_or(0, |rows| rows.iter().map(Vec::len).sum()),
        tokens_sha256: rows.as_deref().map(hash::tokens),
    });
    if let Some(rows) = rows {
        compare(capsule, turn, rows);
    }
}

/// Holds a run's tokens to those of the reference's first run.
fn compare(capsule: &mut Capsule, turn: &Turn, rows: Vec<Vec<u32>>) {
    let Turn { run, case, variant } = *turn;
    let reference = capsule.outputs.iter().find(|o| o.variant == 0 && o.case == case);
    let Some(reference) = reference else {
        // the reference runs first, unless it has no part in this case
        if variant == 0 {
            capsule.outputs.push(Output { variant, case, run, rows });
        }
        return;
    };
    // what was said after less of a prompt is another answer
    let read = |i: usize| capped_prompt(capsule, i, case);
    if read(0) != read(variant) {
        return;
    }
    // a capped variant says less, and what it says is held to what is there
    let capped = |i: usize| capsule.variants[i].engine == EngineKind::Zmlx && is_capped(capsule, i);
    let partial =
        capped(0) || capped(variant) || capsule.variants[variant].settings.contains("cap=");
    let (compared, divergence) = first_difference(&reference.rows, &rows, partial, run);
    let at = capsule.fidelity.iter().position(|f| (f.variant, f.case) == (variant, case));
    let at = at.unwrap_or_else(|| {
        let none = Fidelity { variant, case, tokens_compared: 0, first_divergence: None };
        capsule.fidelity.push(none);
        capsule.fidelity.len() - 1
    });
    let fidelity = &mut capsule.fidelity[at];
    fidelity.tokens_compared += compared;
    if fidelity.first_divergence.is_none() && divergence.is_some() {
        fidelity.first_divergence = divergence;
        capsule.outputs.push(Output { variant, case, run, rows });
    }
}

/// Tokens of a case's prompt that a variant reads.
fn capped_prompt(capsule: &Capsule, variant: usize, case: usize) -> usize {
    let tokens = capsule.cases[case].prompt_tokens;
    VariantSpec::of(&capsule.variants[variant]).map_or(tokens, |spec| spec.capped(tokens))
}

fn is_capped(capsule: &Capsule, variant: usize) -> bool {
    VariantSpec::of(&capsule.variants[variant]).is_ok_and(|spec| spec.cap.is_some())
}

/// - `partial`: whether one of them may end earlier
fn first_difference(
    expected: &[Vec<u32>],
    got: &[Vec<u32>],
    partial: bool,
    run: usize,
) -> (usize, Option<Divergence>) {
    let mut compared = 0;
    for (row, (expected, got)) in expected.iter().zip(got).enumerate() {
        let length = match partial {
            true => expected.len().min(got.len()),
            false => expected.len().max(got.len()),
        };
        let same = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
        compared += length;
        if same < length {
            let (expected, got) = (expected.get(same).copied(), got.get(same).copied());
            return (compared, Some(Divergence { run, row, index: same, expected, got }));
        }
    }
    (compared, None)
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;

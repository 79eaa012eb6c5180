//! Whether a newer capsule is slower than an older one, or a variant than its reference.

use std::collections::BTreeMap;

use crate::stats::{self, Change, Rounds, Stratum, Verdict};
use crate::{Capsule, EngineKind, Error, Metric, Result};

/// The smallest change of speed that counts, where nothing else is said.
pub const THRESHOLD: f64 = 0.03;
/// The smallest growth of memory that counts. It hardly varies.
const MEMORY_THRESHOLD: f64 = 0.05;

/// By what the variants of two capsules are measured, so that what changes with the machine, and not with the variant,
/// cancels out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Control {
    /// Stock MLX, where both capsules have it: no change of this program makes it slower.
    #[default]
    Stock,
    /// A variant of both.
    Variant(String),
    /// Nothing.
    None,
}

/// How to compare.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The smallest change of speed that counts; `None` is [`THRESHOLD`].
    pub threshold: Option<f64>,
    /// What the others are measured by.
    pub control: Control,
}

/// One variant by one metric.
#[derive(Debug, Clone)]
pub struct Row {
    /// Name of the variant.
    pub variant: String,
    /// What is compared.
    pub metric: Metric,
    /// Over all cases.
    pub change: Change,
    /// What it comes to.
    pub verdict: Verdict,
    /// Case by case.
    pub cases: Vec<(String, Change)>,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Variants and metrics that both capsules have.
    pub rows: Vec<Row>,
    /// Variant and case where the same prompt has other tokens than before.
    pub other_tokens: Vec<(String, String)>,
    /// What the two were measured differently by.
    pub notes: Vec<String>,
    /// The smallest change of speed that counted.
    pub threshold: f64,
    /// Whether runs of one capsule were compared that stood side by side.
    pub paired: bool,
}

impl Comparison {
    /// Whether nothing got worse: no speed, no memory, no token.
    pub fn is_good(&self) -> bool {
        self.other_tokens.is_empty() && self.rows.iter().all(|row| row.verdict != Verdict::Slower)
    }
}

/// Compares the variants and cases of one name in both.
///
/// # Errors
/// `Nothing` where no variant and case is in both, or the control is not.
pub fn compare(old: &Capsule, new: &Capsule, options: &Options) -> Result<Comparison> {
    let threshold = options.threshold.unwrap_or(THRESHOLD);
    let control = match &options.control {
        Control::None => None,
        Control::Stock => common_stock(old, new),
        Control::Variant(name) => match (variant(old, name), variant(new, name)) {
            (Some(a), Some(b)) => Some((a, b)),
            _ => {
                let reason = format!("the control {name} is not a variant of both");
                return Err(Error::Nothing(reason));
            }
        },
    };
    let pairs = variant_pairs(old, new);
    let cases = case_pairs(old, new);
    let mut rows = Vec::new();
    let mut other_tokens = Vec::new();
    for &(a, b) in &pairs {
        let name = &new.variants[b].name;
        if control.is_none_or(|(control, _)| control != a) {
            let metrics = Metric::SPEEDS.into_iter().chain([Metric::PeakMemoryBytes]);
            rows.extend(metrics.filter_map(|metric| {
                let sides = [(old, a), (new, b)];
                let control = control.filter(|_| metric != Metric::PeakMemoryBytes);
                row(sides, control, &cases, metric, threshold)
            }));
        }
        for &(i, j) in cases.iter().filter(|(i, j)| same_prompt(old, *i, new, *j)) {
            let lossy = old.variants[a].lossy || new.variants[b].lossy;
            let (was, is) = (tokens(old, a, i), tokens(new, b, j));
            if !lossy && was.is_some() && is.is_some() && was != is {
                other_tokens.push((name.clone(), new.cases[j].name.clone()));
            }
        }
    }
    if rows.is_empty() && other_tokens.is_empty() {
        let reason = "the two have no other variant and case of the same name with samples";
        return Err(Error::Nothing(reason.to_owned()));
    }
    let mut notes = differences(old, new);
    match control {
        Some((_, b)) => notes.push(format!(
            "by {}, which ran in turns with the others; what changed with the machine cancels out",
            new.variants[b].name
        )),
        None => notes.push(
            "without a control, what changed with the machine between the two looks like a change"
                .to_owned(),
        ),
    }
    Ok(Comparison { rows, other_tokens, notes, threshold, paired: false })
}

/// Compares the variants of a capsule with its first one, or with the control, by runs that stood side by side. Speeds
/// count, and tokens; memory does not: variants may trade it.
///
/// # Errors
/// `Nothing` where there is no other variant with samples, or no such control.
pub fn within(capsule: &Capsule, options: &Options) -> Result<Comparison> {
    let threshold = options.threshold.unwrap_or(THRESHOLD);
    let reference = match &options.control {
        Control::Stock | Control::None => 0,
        Control::Variant(name) => variant(capsule, name)
            .ok_or_else(|| Error::Nothing(format!("there is no variant {name} to compare with")))?,
    };
    let cases = 0..capsule.cases.len();
    let mut rows = Vec::new();
    for (i, v) in capsule.variants.iter().enumerate().filter(|(i, _)| *i != reference) {
        for metric in Metric::SPEEDS {
            let ratios = capsule.ratios(i, reference, metric, cases.clone());
            let Some(change) = stats::paired(&ratios) else { continue };
            let of_case = |(case, ratios): (&crate::Case, &Vec<f64>)| {
                Some((case.name.clone(), stats::paired(std::slice::from_ref(ratios))?))
            };
            rows.push(Row {
                variant: v.name.clone(),
                metric,
                verdict: change.verdict(threshold),
                change,
                cases: capsule.cases.iter().zip(&ratios).filter_map(of_case).collect(),
            });
        }
    }
    if rows.is_empty() {
        let reason =
            "one capsule is compared variant by variant, and this one has no two with samples";
        return Err(Error::Nothing(reason.to_owned()));
    }
    let parted = capsule.fidelity.iter().filter(|f| f.first_divergence.is_some());
    let names = parted
        .filter(|f| !capsule.variants[f.variant].lossy)
        .map(|f| (capsule.variants[f.variant].name.clone(), capsule.cases[f.case].name.clone()));
    let notes = disturbances("the capsule", capsule);
    Ok(Comparison { rows, other_tokens: names.collect(), notes, threshold, paired: true })
}

fn variant(capsule: &Capsule, name: &str) -> Option<usize> {
    capsule.variants.iter().position(|v| v.name == name)
}

/// Stock MLX of the same build that both measured beside others.
fn common_stock(old: &Capsule, new: &Capsule) -> Option<(usize, usize)> {
    let build = |c: &Capsule| (c.mlx.version.clone(), c.mlx.mode.clone(), c.mlx.pin.clone());
    let is_stock = |c: &Capsule, i: usize| {
        let v = &c.variants[i];
        c.variants.len() > 1 && v.engine == EngineKind::Zmlx && v.settings == "off"
    };
    let same = build(old) == build(new) && old.machine.device == new.machine.device;
    variant_pairs(old, new).into_iter().find(|&(a, b)| same && is_stock(old, a) && is_stock(new, b))
}

/// Variants of one name in both.
fn variant_pairs(old: &Capsule, new: &Capsule) -> Vec<(usize, usize)> {
    let find = |(b, v): (usize, &crate::Variant)| Some((variant(old, &v.name)?, b));
    new.variants.iter().enumerate().filter_map(find).collect()
}

/// Cases of one name in both.
fn case_pairs(old: &Capsule, new: &Capsule) -> Vec<(usize, usize)> {
    let find = |(j, case): (usize, &crate::Case)| {
        Some((old.cases.iter().position(|c| c.name == case.name)?, j))
    };
    new.cases.iter().enumerate().filter_map(find).collect()
}

fn row(
    [(old, a), (new, b)]: [(&Capsule, usize); 2],
    control: Option<(usize, usize)>,
    cases: &[(usize, usize)],
    metric: Metric,
    threshold: f64,
) -> Option<Row> {
    let of = |capsule: &Capsule, variant: usize, control: Option<usize>, case: usize| match control
    {
        Some(control) => capsule.ratios(variant, control, metric, [case]).concat(),
        None => {
            let values = capsule.values(variant, case, metric).into_iter().filter(|v| *v > 0.0);
            values.map(|v| if metric.more_is_better() { v } else { 1.0 / v }).collect()
        }
    };
    let strata: Vec<(usize, Stratum)> = cases
        .iter()
        .map(|&(i, j)| {
            let old = of(old, a, control.map(|(a, _)| a), i);
            (j, Stratum { old, new: of(new, b, control.map(|(_, b)| b), j) })
        })
        .collect();
    // rounds drift; memory does not, and neither do ratios of runs side by side. Programs of calls have no rounds
    let rounds = [old, new].iter().all(|c| c.protocol.order == "abba");
    let change = if control.is_none() && rounds && metric != Metric::PeakMemoryBytes {
        let better = |runs: BTreeMap<usize, f64>| match metric.more_is_better() {
            true => runs,
            false => runs.into_iter().map(|(run, v)| (run, 1.0 / v)).collect(),
        };
        let rounds = cases.iter().map(|&(i, j)| Rounds {
            old: better(old.by_run(a, i, metric)),
            new: better(new.by_run(b, j, metric)),
        });
        stats::by_rounds(&rounds.collect::<Vec<_>>())?
    } else {
        stats::unpaired(&strata.iter().map(|(_, s)| s.clone()).collect::<Vec<_>>())?
    };
    let threshold = match metric {
        Metric::PeakMemoryBytes => threshold.max(MEMORY_THRESHOLD),
        _ => threshold,
    };
    let of_case = |(j, s): (usize, Stratum)| {
        Some((new.cases[j].name.clone(), stats::unpaired(std::slice::from_ref(&s))?))
    };
    Some(Row {
        variant: new.variants[b].name.clone(),
        metric,
        change,
        verdict: change.verdict(threshold),
        cases: strata.into_iter().filter_map(of_case).collect(),
    })
}

fn same_prompt(old: &Capsule, i: usize, new: &Capsule, j: usize) -> bool {
    let model = |c: &Capsule| c.model.as_ref().map(|m| m.fingerprint.clone());
    let (a, b) = (&old.cases[i], &new.cases[j]);
    model(old) == model(new)
        && a.prompt_sha256.is_some()
        && a.prompt_sha256 == b.prompt_sha256
        && a.generate_tokens == b.generate_tokens
}

/// The first run's hash and number of tokens.
fn tokens(capsule: &Capsule, variant: usize, case: usize) -> Option<(String, usize)> {
    let sample = capsule.samples_of(variant, case).min_by_key(|s| s.run)?;
    Some((sample.tokens_sha256.clone()?, sample.tokens))
}

/// What has to be known before a difference is blamed on the code.
fn differences(old: &Capsule, new: &Capsule) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |what: &str, a: String, b: String| {
        if a != b {
            notes.push(format!("{what}: {a} before, {b} now"));
        }
    };
    let model = |c: &Capsule| c.model.as_ref().map_or("none".to_owned(), |m| m.name.clone());
    let print = |c: &Capsule| {
        c.model.as_ref().map_or("none".to_owned(), |m| m.fingerprint.chars().take(12).collect())
    };
    note("model", model(old), model(new));
    note("checkpoint", print(old), print(new));
    let machine = |c: &Capsule| {
        format!("{}, {} threads, {}", c.machine.cpu, c.machine.threads, c.machine.device)
    };
    note("machine", machine(old), machine(new));
    note("MLX", format!("{} ({})", old.mlx.version, old.mlx.mode), {
        format!("{} ({})", new.mlx.version, new.mlx.mode)
    });
    let alone = |c: &Capsule| if c.protocol.isolate { "one process each" } else { "one process" };
    note("variants", alone(old).to_owned(), alone(new).to_owned());
    notes.extend(disturbances("the old capsule", old));
    notes.extend(disturbances("the new capsule", new));
    notes
}

/// What may have come between.
fn disturbances(what: &str, capsule: &Capsule) -> Vec<String> {
    let mut notes = Vec::new();
    if capsule.interrupted {
        notes.push(format!("{what} was stopped before its end"));
    }
    let busy = capsule.machine.hints.iter().filter_map(|h| h.load_average);
    let load = busy.fold(0.0, f64::max);
    if load > 1.5 * capsule.machine.cores as f64 {
        notes.push(format!("{what} was measured beside other work (load {load:.1})"));
    }
    notes
}

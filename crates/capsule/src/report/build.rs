//! What a report of one capsule says.

use super::plots::{self, Measured};
use super::{Block, Document};
use crate::metric::number;
use crate::stats::{self, Spread, Verdict};
use crate::{Capsule, CaseKind, EngineKind, Metric};

/// The report of a capsule.
pub fn report(capsule: &Capsule) -> Document {
    let what = capsule.model.as_ref().map_or(capsule.program.as_str(), |m| m.name.as_str());
    let mut document =
        Document { title: format!("{what}, {}", capsule.program), ..Document::default() };
    document.blocks.push(Block::Facts(facts(capsule)));
    for note in &capsule.notes {
        document.text(format!("Note: {note}."));
    }
    if capsule.interrupted {
        document.text("Stopped before its end: what follows is what was measured until then.");
    }
    if let Some(names) = repeated_runs(capsule) {
        document.text(names);
    }
    overview(capsule, &mut document);
    fidelity(capsule, &mut document);
    for metric in capsule.metrics() {
        cases(capsule, metric, &mut document);
    }
    logits(capsule, &mut document);
    routing(capsule, &mut document);
    document
}

fn facts(capsule: &Capsule) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
    if let Some(model) = &capsule.model {
        let size = number(model.num_parameters as f64 / 1e6);
        let read = number(model.decode_read_bytes as f64 / 1e6);
        let quantization = &model.quantization;
        let kind = &model.model_type;
        fact(
            "model",
            format!("{kind}, {size} M parameters, {quantization}, a token reads {read} MB"),
        );
    }
    let machine = &capsule.machine;
    let name = machine.device_name.as_deref().filter(|_| machine.device == "gpu");
    let name = name.unwrap_or(&machine.cpu);
    fact(
        "machine",
        format!("{name}, {} threads, {}, {}", machine.threads, machine.isa, machine.os),
    );
    fact("stock", format!("MLX {} ({})", capsule.mlx.version, capsule.mlx.mode));
    fact(
        "zmlx",
        format!("{} ({}), {}", capsule.zmlx.version, capsule.zmlx.commit, capsule.created),
    );
    let protocol = &capsule.protocol;
    let alone = if protocol.isolate { ", a process for each variant" } else { "" };
    fact(
        "protocol",
        format!(
            "{} runs of {} cases in turns ({}), {} warm-up, {} ms between{alone}",
            protocol.runs,
            capsule.cases.len(),
            protocol.order,
            protocol.warmup,
            protocol.cooldown_ms
        ),
    );
    for hints in &machine.hints {
        let parts = [
            hints.load_average.map(|x| format!("load {x:.1}")),
            hints.cpu_mhz.map(|x| format!("{x:.0} MHz")),
            hints.temperature_c.map(|x| format!("{x:.0} C")),
            hints.governor.clone(),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if !parts.is_empty() {
            fact(&hints.when, parts.join(", "));
        }
    }
    if let Some(memory) = capsule.bandwidth_median() {
        let (copy, read) = (memory.copy_bytes_per_s / 1e9, memory.read_bytes_per_s / 1e9);
        fact("memory", format!("copying {copy:.1} GB/s read and written, reading {read:.1} GB/s"));
    }
    facts
}

/// What can be said of so few runs.
fn repeated_runs(capsule: &Capsule) -> Option<String> {
    let few = capsule.protocol.runs < 3 && !capsule.samples.is_empty();
    few.then(|| format!("{} runs each say little about the noise.", capsule.protocol.runs))
}

/// One row for each variant: medians over all cases, and what it gained.
fn overview(capsule: &Capsule, document: &mut Document) {
    let speeds: Vec<Metric> =
        capsule.metrics().into_iter().filter(|m| Metric::SPEEDS.contains(m)).collect();
    if capsule.variants.len() < 2 || speeds.is_empty() {
        return;
    }
    let mut header = vec!["variant"];
    let titles: Vec<String> = speeds
        .iter()
        .map(|m| format!("{} against {}", gain(*m), capsule.variants[0].name))
        .collect();
    header.extend(titles.iter().map(String::as_str));
    header.push("verdict");
    let rows = (1..capsule.variants.len()).map(|i| {
        let changes: Vec<_> = speeds.iter().map(|m| capsule.speedup(i, *m)).collect();
        let mut row = vec![capsule.variants[i].name.clone()];
        row.extend(changes.iter().map(|c| c.map_or("-".to_owned(), |c| c.text())));
        let verdicts = changes.iter().flatten().map(|c| c.verdict(0.02));
        row.push(verdict_words(verdicts.collect()));
        row
    });
    document.heading("Speed, all cases");
    document.table(&header, rows.collect());
    document.text(
        "Medians of ratios of runs side by side, with 95 % bootstrap intervals; a verdict is one where signed ranks say that \
         noise does so less than once in a hundred.",
    );
    let changes = plots::changes(capsule, &speeds);
    document.blocks.extend(changes.map(Block::Plot));
}

fn gain(metric: Metric) -> &'static str {
    match metric {
        Metric::DecodeTokPerS => "decode",
        Metric::PromptTokPerS => "prefill",
        _ => "speed",
    }
}

fn verdict_words(verdicts: Vec<Verdict>) -> String {
    let has = |verdict| verdicts.contains(&verdict);
    match (has(Verdict::Faster), has(Verdict::Slower), has(Verdict::Unclear)) {
        (true, true, _) => "mixed".to_owned(),
        (true, false, _) => "faster".to_owned(),
        (false, true, _) => "slower".to_owned(),
        (false, false, true) => "too few runs".to_owned(),
        (false, false, false) => "the same".to_owned(),
    }
}

fn fidelity(capsule: &Capsule, document: &mut Document) {
    let modelled = capsule.cases.iter().any(|c| c.kind != CaseKind::Call);
    if !modelled {
        return;
    }
    document.heading("Tokens");
    let mut rows = Vec::new();
    for (i, variant) in capsule.variants.iter().enumerate() {
        let of: Vec<_> = capsule.fidelity.iter().filter(|f| f.variant == i).collect();
        let compared: usize = of.iter().map(|f| f.tokens_compared).sum();
        let parted: Vec<_> = of.iter().filter(|f| f.first_divergence.is_some()).collect();
        let first = parted.first().and_then(|f| Some((f, f.first_divergence.as_ref()?)));
        let answer = match (first, compared) {
            (None, 0) if i == 0 => "reference".to_owned(),
            (None, 0) => "not compared".to_owned(),
            (None, _) if i == 0 => "reference; every run alike".to_owned(),
            (None, _) => "identical".to_owned(),
            (Some((f, d)), _) => {
                let token = |t: Option<u32>| t.map_or("the end".to_owned(), |t| t.to_string());
                let expected = if variant.lossy { " (expected)" } else { "" };
                format!(
                    "not identical{expected}: {} of {} cases; {} row {} token {}: {} instead of {}",
                    parted.len(),
                    of.len(),
                    capsule.cases[f.case].name,
                    d.row,
                    d.index,
                    token(d.got),
                    token(d.expected)
                )
            }
        };
        rows.push(vec![variant.name.clone(), compared.to_string(), fused(capsule, i), answer]);
    }
    document.table(&["variant", "compared", "fused", "against the reference"], rows);
}

fn fused(capsule: &Capsule, variant: usize) -> String {
    let variant = &capsule.variants[variant];
    match (variant.engine, variant.patterns.len(), variant.fallbacks.len()) {
        (EngineKind::Zmlx, 0, _) => "stock".to_owned(),
        (EngineKind::Zmlx, n, 0) => format!("{n} patterns"),
        (EngineKind::Zmlx, n, left) => format!("{n} patterns, {left} places left"),
        _ => variant.engine_version.clone().unwrap_or_else(|| "-".to_owned()),
    }
}

/// Every case by every variant.
fn cases(capsule: &Capsule, metric: Metric, document: &mut Document) {
    let mut rows = Vec::new();
    for (j, case) in capsule.cases.iter().enumerate() {
        let spreads: Vec<Option<Spread>> =
            (0..capsule.variants.len()).map(|i| capsule.spread(i, j, metric)).collect();
        if spreads.iter().all(Option::is_none) {
            continue;
        }
        let cell = |spread: &Option<Spread>| match spread {
            None => "-".to_owned(),
            Some(s) if s.count == 1 || s.min == s.max => metric.text(s.median),
            Some(s) => format!(
                "{} ({}..{})",
                metric.text(s.median),
                metric.text(s.low_quartile),
                metric.text(s.high_quartile)
            ),
        };
        let cells = spreads.iter().map(cell);
        rows.push(std::iter::once(case.name.clone()).chain(cells).collect());
    }
    if rows.is_empty() {
        return;
    }
    document.heading(format!("{}: median (quartiles)", capitalized(metric.title())));
    let names = capsule.variants.iter().map(|v| v.name.as_str());
    let header: Vec<&str> = std::iter::once("case").chain(names).collect();
    document.table(&header, rows);
    if metric == Metric::DecodeTokPerS {
        let plots = [
            plots::by_length(capsule, Measured(metric)),
            plots::by_prompt(capsule, Measured(metric)),
            plots::distributions(capsule, Measured(metric)),
            plots::roofline(capsule),
        ];
        document.blocks.extend(plots.into_iter().flatten().map(Block::Plot));
    }
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn logits(capsule: &Capsule, document: &mut Document) {
    let rows = capsule.logits.iter().map(|d| {
        let fidelity = capsule.fidelity.iter().find(|f| (f.variant, f.case) == (d.variant, d.case));
        let first = fidelity.and_then(|f| f.first_divergence.as_ref());
        vec![
            format!("{}, {}", capsule.variants[d.variant].name, capsule.cases[d.case].name),
            d.positions.to_string(),
            number(d.max_abs),
            number(d.mean_abs),
            format!("{:.1e}", d.mean_kl),
            format!("{:.1} %", 100.0 * d.top_1_agreement),
            format!("{:.1} %", 100.0 * d.top_k_agreement),
            d.near_ties.to_string(),
            first.map_or("-".to_owned(), |d| d.index.to_string()),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if !rows.is_empty() {
        let top_k = format!("top {}", capsule.logits[0].top_k);
        document.heading("Logits after the reference's tokens");
        document.table(
            &[
                "variant, case",
                "positions",
                "largest",
                "mean",
                "KL",
                "top 1",
                &top_k,
                "near ties",
                "parts at",
            ],
            rows,
        );
    }
}

fn routing(capsule: &Capsule, document: &mut Document) {
    let Some(first) = capsule.routing.first() else { return };
    document.heading("Routing");
    let mut cases: Vec<usize> = capsule.routing.iter().map(|r| r.case).collect();
    cases.dedup();
    let evenness = |case: usize| {
        let of = capsule.routing.iter().filter(|r| r.case == case);
        let shares: Vec<f64> =
            of.map(|r| r.entropy_bits / (r.counts.len() as f64).log2().max(1e-9)).collect();
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    };
    let rows = cases.iter().map(|case| {
        let of: Vec<_> = capsule.routing.iter().filter(|r| r.case == *case).collect();
        let low = of.iter().map(|r| r.entropy_bits).fold(f64::INFINITY, f64::min);
        let high = of.iter().map(|r| r.entropy_bits).fold(0.0, f64::max);
        let unused: usize = of.iter().map(|r| r.counts.iter().filter(|c| **c == 0).count()).sum();
        let experts: usize = of.iter().map(|r| r.counts.len()).sum();
        let mut row = vec![
            capsule.cases[*case].name.clone(),
            format!("{low:.2}..{high:.2}"),
            format!("{:.1} %", 100.0 * evenness(*case)),
            format!("{unused} of {experts}"),
        ];
        for i in 1..capsule.variants.len() {
            let ratios = capsule.ratios(i, 0, Metric::DecodeTokPerS, [*case]);
            row.push(stats::paired(&ratios).map_or("-".to_owned(), |c| c.text()));
        }
        row
    });
    let rows: Vec<_> = rows.collect();
    let gains: Vec<String> =
        capsule.variants.iter().skip(1).map(|v| format!("{} decode", v.name)).collect();
    let mut header = vec!["case", "entropy, bits", "of an even choice", "experts never chosen"];
    header.extend(gains.iter().map(String::as_str));
    document.table(&header, rows);
    for (i, variant) in capsule.variants.iter().enumerate().skip(1) {
        let pair = |case: &usize| {
            let ratios = capsule.ratios(i, 0, Metric::DecodeTokPerS, [*case]);
            Some((evenness(*case), stats::median(&ratios.concat())?))
        };
        let pairs: Vec<(f64, f64)> = cases.iter().filter_map(pair).collect();
        let found = match stats::correlation(&pairs) {
            Some(r) => {
                format!("correlates by {r:+.2} with its decode speedup over {} cases", pairs.len())
            }
            None => format!("cannot be correlated with its speedup over {} cases", pairs.len()),
        };
        document.text(format!("{}: how evenly experts are chosen {found}.", variant.name));
    }
    document.text(format!("{} tokens in the first case.", first.tokens));
    document.blocks.extend(plots::heat_map(capsule).map(Block::Plot));
}

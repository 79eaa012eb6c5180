//! The plots of a report.

use super::Plot;
use super::plot::{Frame, Scale};
use super::svg::{Anchor, Svg, colour};
use crate::stats::{self, Spread};
use crate::{Capsule, CaseKind, EngineKind, Metric};

const WIDTH: f64 = 430.0;
const HEIGHT: f64 = 270.0;
/// Height of a row in plots that are lists.
const ROW: f64 = 26.0;

/// What is plotted.
#[derive(Clone, Copy)]
pub(super) struct Measured(pub(super) Metric);

fn legend(capsule: &Capsule) -> Vec<String> {
    capsule.variants.iter().map(|v| v.name.clone()).collect()
}

fn tip(capsule: &Capsule, variant: usize, case: usize, metric: Metric, s: &Spread) -> String {
    let (name, case) = (&capsule.variants[variant].name, &capsule.cases[case].name);
    let [median, low, high] = [s.median, s.low_quartile, s.high_quartile].map(|v| metric.text(v));
    format!("{name}, {case}: {median} ({low}..{high}) {}, {} runs", metric.title(), s.count)
}

/// Medians by the tokens that a case has in all, one line for each variant.
pub(super) fn by_length(capsule: &Capsule, Measured(metric): Measured) -> Option<Plot> {
    let length = |case: usize| {
        let case = &capsule.cases[case];
        match case.kind {
            CaseKind::Generate => case.generate_tokens,
            _ => case.depth + case.prompt_tokens + case.generate_tokens,
        }
    };
    let cases: Vec<usize> = (0..capsule.cases.len())
        .filter(|c| length(*c) > 0 && capsule.cases[*c].batch == 1)
        .collect();
    let mut lengths: Vec<usize> = cases.iter().map(|c| length(*c)).collect();
    lengths.sort_unstable();
    lengths.dedup();
    if lengths.len() < 2 {
        return None;
    }
    let series: Vec<Vec<(f64, Spread)>> = (0..capsule.variants.len())
        .map(|i| {
            let at = |l: &usize| {
                let of = cases.iter().filter(|c| length(**c) == *l);
                let values: Vec<f64> = of.flat_map(|c| capsule.values(i, *c, metric)).collect();
                Some((*l as f64, Spread::of(&values)?))
            };
            lengths.iter().filter_map(at).collect()
        })
        .collect();
    let frame = Frame { left: 52.0, right: WIDTH - 14.0, top: 24.0, bottom: HEIGHT - 40.0 };
    let all: Vec<f64> = series
        .iter()
        .flatten()
        .flat_map(|(_, s)| [s.low_quartile, s.high_quartile])
        .map(|v| metric.shown(v))
        .collect();
    let (left, right) = (frame.left + 12.0, frame.right - 8.0);
    let x = Scale::log(&lengths.iter().map(|l| *l as f64).collect::<Vec<_>>(), left, right);
    let y = Scale::log(&all, frame.bottom, frame.top);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    frame.y_axis(&mut svg, &y, metric.title());
    for l in &lengths {
        let at = x.at(*l as f64);
        svg.text("tick", (at, frame.bottom + 15.0), Anchor::Middle, &l.to_string());
    }
    let middle = (frame.left + frame.right) / 2.0;
    svg.text("tick", (middle, frame.bottom + 31.0), Anchor::Middle, "tokens");
    for (i, points) in series.iter().enumerate() {
        let place = |l: f64, v: f64| (x.at(l), y.at(metric.shown(v)));
        let line: Vec<_> = points.iter().map(|(l, s)| place(*l, s.median)).collect();
        svg.polyline(&format!("l {}", colour(i)), &line);
        for (l, s) in points {
            let class = format!("l {}", colour(i));
            svg.line(&class, place(*l, s.low_quartile), place(*l, s.high_quartile));
            let name = &capsule.variants[i].name;
            let tip = format!("{name}, {l} tokens: {} {}", metric.text(s.median), metric.title());
            svg.mark(i, place(*l, s.median), 4.0, &tip);
        }
    }
    let title = format!("{} by length", metric.title());
    Some(Plot {
        svg: svg.finish(&title),
        title,
        caption: "Medians over prompts and runs, with quartiles.".to_owned(),
        legend: legend(capsule),
    })
}

/// Medians by prompt, over all lengths.
pub(super) fn by_prompt(capsule: &Capsule, Measured(metric): Measured) -> Option<Plot> {
    let mut prompts: Vec<&str> = Vec::new();
    for prompt in capsule.cases.iter().filter_map(|c| c.prompt.as_deref()) {
        if !prompts.contains(&prompt) {
            prompts.push(prompt);
        }
    }
    if prompts.len() < 2 {
        return None;
    }
    let spread = |i: usize, prompt: &str| {
        let of = |c: &usize| capsule.cases[*c].prompt.as_deref() == Some(prompt);
        let cases = (0..capsule.cases.len()).filter(of);
        Spread::of(&cases.flat_map(|c| capsule.values(i, c, metric)).collect::<Vec<_>>())
    };
    let rows: Vec<(String, Vec<Option<Spread>>)> = prompts
        .iter()
        .map(|p| ((*p).to_owned(), (0..capsule.variants.len()).map(|i| spread(i, p)).collect()))
        .collect();
    Some(dots(
        capsule,
        &rows,
        metric,
        format!("{} by prompt", metric.title()),
        "Medians over lengths and runs, with quartiles.",
    ))
}

/// A list: one row for each name, a mark with a whisker for each variant.
fn dots(
    capsule: &Capsule,
    rows: &[(String, Vec<Option<Spread>>)],
    metric: Metric,
    title: String,
    caption: &str,
) -> Plot {
    let row = ROW.max(9.0 * capsule.variants.len() as f64);
    let height = 24.0 + row * rows.len() as f64 + 42.0;
    let frame = Frame { left: 128.0, right: WIDTH - 14.0, top: 10.0, bottom: height - 40.0 };
    let spreads = || rows.iter().flat_map(|(_, spreads)| spreads.iter().flatten());
    let all: Vec<f64> = spreads()
        .flat_map(|s| [s.low_quartile, s.high_quartile])
        .map(|v| metric.shown(v))
        .collect();
    let x = Scale::log(&all, frame.left, frame.right);
    let mut svg = Svg::new(WIDTH, height);
    frame.x_axis(&mut svg, &x, metric.title());
    for (number, (name, spreads)) in rows.iter().enumerate() {
        let y = frame.top + row * (number as f64 + 0.5);
        svg.text("tick", (frame.left - 8.0, y + 4.0), Anchor::End, &cut(name, 18));
        let count = spreads.len().max(1) as f64;
        for (i, s) in spreads.iter().enumerate() {
            let Some(s) = s else { continue };
            let y = y + (i as f64 - (count - 1.0) / 2.0) * 7.0;
            let at = |v: f64| (x.at(metric.shown(v)), y);
            svg.line(&format!("l {}", colour(i)), at(s.low_quartile), at(s.high_quartile));
            let tip = format!("{}, {name}: {}", capsule.variants[i].name, metric.text(s.median));
            svg.mark(i, at(s.median), 4.0, &tip);
        }
    }
    let svg = svg.finish(&title);
    Plot { title, caption: caption.to_owned(), legend: legend(capsule), svg }
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 2).chain("..".chars()).collect()
}

/// Every run by the median of its case: what noise looks like.
pub(super) fn distributions(capsule: &Capsule, Measured(metric): Measured) -> Option<Plot> {
    let mut points: Vec<(usize, f64, String)> = Vec::new();
    for i in 0..capsule.variants.len() {
        for j in 0..capsule.cases.len() {
            let Some(spread) = capsule.spread(i, j, metric).filter(|s| s.count >= 2) else {
                continue;
            };
            for value in capsule.values(i, j, metric) {
                let tip = tip(capsule, i, j, metric, &spread);
                points.push((i, 100.0 * (value / spread.median - 1.0), tip));
            }
        }
    }
    if points.is_empty() {
        return None;
    }
    let height = 24.0 + 34.0 * capsule.variants.len() as f64 + 42.0;
    let frame = Frame { left: 92.0, right: WIDTH - 14.0, top: 10.0, bottom: height - 40.0 };
    let values: Vec<f64> = points.iter().map(|(_, v, _)| *v).chain([-1.0, 1.0]).collect();
    let x = Scale::linear(&values, frame.left, frame.right);
    let mut svg = Svg::new(WIDTH, height);
    frame.x_axis(&mut svg, &x, "% off the median of the case");
    let mut seen = vec![0usize; capsule.variants.len()];
    for (i, variant) in capsule.variants.iter().enumerate() {
        let y = frame.top + 34.0 * (i as f64 + 0.5) + 4.0;
        svg.text("tick", (frame.left - 8.0, y), Anchor::End, &cut(&variant.name, 13));
    }
    for (i, value, tip) in &points {
        // side by side in the order measured, so that equal ones do not hide each other
        let lane = (seen[*i] % 5) as f64 - 2.0;
        seen[*i] += 1;
        let y = frame.top + 34.0 * (*i as f64 + 0.5) + 4.0 * lane;
        svg.mark(*i, (x.at(*value), y), 2.4, tip);
    }
    let title = format!("Spread of {}", metric.title());
    Some(Plot {
        svg: svg.finish(&title),
        title,
        caption: "One mark for each run, by how far it is from the median of its case.".to_owned(),
        legend: legend(capsule),
    })
}

/// Ratios to the first variant with their intervals, case by case and in all.
pub(super) fn changes<'a>(
    capsule: &'a Capsule,
    speeds: &'a [Metric],
) -> impl Iterator<Item = Plot> + 'a {
    speeds.iter().filter_map(move |metric| {
        let mut rows = Vec::new();
        for i in 1..capsule.variants.len() {
            let of_case = |j: usize| stats::paired(&capsule.ratios(i, 0, *metric, [j]));
            let name = |what: &str| format!("{} {what}", capsule.variants[i].name);
            // more rows than this are no picture
            const MOST_CASES: usize = 24;
            for j in (0..capsule.cases.len()).take(MOST_CASES) {
                rows.extend(of_case(j).map(|c| (i, capsule.cases[j].name.clone(), c, false)));
            }
            rows.extend(capsule.speedup(i, *metric).map(|c| (i, name("in all"), c, true)));
        }
        if rows.is_empty() {
            return None;
        }
        let height = 20.0 + 19.0 * rows.len() as f64 + 42.0;
        let frame = Frame { left: 160.0, right: WIDTH - 14.0, top: 8.0, bottom: height - 40.0 };
        let ends = rows.iter().flat_map(|(_, _, c, _)| [c.low, c.high]).chain([1.0]);
        let x = Scale::log(&ends.collect::<Vec<_>>(), frame.left, frame.right);
        let mut svg = Svg::new(WIDTH, height);
        let reference = &capsule.variants[0].name;
        frame.x_axis(&mut svg, &x, &format!("times as fast as {reference}"));
        svg.line("one", (x.at(1.0), frame.top), (x.at(1.0), frame.bottom));
        for (number, (i, name, change, all)) in rows.iter().enumerate() {
            let y = frame.top + 19.0 * (number as f64 + 0.5) + 4.0;
            let class = if *all { "tick strong" } else { "tick" };
            svg.text(class, (frame.left - 8.0, y + 4.0), Anchor::End, &cut(name, 24));
            let line = format!("{} {}", if *all { "l thick" } else { "l" }, colour(*i));
            svg.line(&line, (x.at(change.low), y), (x.at(change.high), y));
            let tip = format!("{}, {name}: {}", capsule.variants[*i].name, change.text());
            svg.mark(*i, (x.at(change.ratio), y), if *all { 5.0 } else { 3.5 }, &tip);
        }
        let title = format!("{} against {reference}", metric.title());
        Some(Plot {
            svg: svg.finish(&title),
            title,
            caption: "Median ratios of runs side by side, with 95 % intervals.".to_owned(),
            legend: legend(capsule),
        })
    })
}

/// Decode speed by the bytes that a token reads, below what memory could give.
pub(super) fn roofline(capsule: &Capsule) -> Option<Plot> {
    let (model, memory) = (capsule.model.as_ref()?, capsule.bandwidth_median()?);
    let mut points: Vec<(usize, f64, f64, String)> = Vec::new();
    for (i, variant) in capsule.variants.iter().enumerate() {
        // others read files of their own
        if variant.engine != EngineKind::Zmlx {
            continue;
        }
        for (j, case) in capsule.cases.iter().enumerate().filter(|(_, c)| c.batch == 1) {
            let Some(s) = capsule.spread(i, j, Metric::DecodeTokPerS) else { continue };
            let held = (case.depth + case.prompt_tokens) as f64 + case.generate_tokens as f64 / 2.0;
            let bytes = model.decode_read_bytes as f64 + held * model.kv_bytes_per_token as f64;
            points.push((i, bytes, s.median, tip(capsule, i, j, Metric::DecodeTokPerS, &s)));
        }
    }
    if points.is_empty() {
        return None;
    }
    let least = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min) / 2.0;
    let most = points.iter().map(|p| p.1).fold(0.0, f64::max) * 2.0;
    let roof = |bytes: f64| memory.read_bytes_per_s / bytes;
    let frame = Frame { left: 52.0, right: WIDTH - 14.0, top: 24.0, bottom: HEIGHT - 40.0 };
    let x = Scale::log(&[least, most], frame.left, frame.right);
    let speeds = points.iter().map(|p| p.2).chain([roof(least), roof(most)]);
    let y = Scale::log(&speeds.collect::<Vec<_>>(), frame.bottom, frame.top);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    frame.y_axis(&mut svg, &y, "decode tok/s");
    frame.x_axis(&mut svg, &x, "bytes that a token reads");
    let at = |bytes: f64, speed: f64| (x.at(bytes), y.at(speed));
    svg.line("one", at(least, roof(least)), at(most, roof(most)));
    for (i, bytes, speed, tip) in &points {
        svg.mark(*i, at(*bytes, *speed), 3.5, tip);
    }
    let title = "Roofline of decode".to_owned();
    Some(Plot {
        svg: svg.finish(&title),
        title,
        caption: format!(
            "The dashed line is reading at {:.1} GB/s, measured beside the runs; weights and half-filled caches counted.",
            memory.read_bytes_per_s / 1e9
        ),
        legend: legend(capsule),
    })
}

/// How often each expert of each layer was chosen, over all cases.
pub(super) fn heat_map(capsule: &Capsule) -> Option<Plot> {
    let layers: std::collections::BTreeSet<usize> =
        capsule.routing.iter().map(|r| r.layer).collect();
    let experts = capsule.routing.iter().map(|r| r.counts.len()).max()?;
    let row = (240.0 / layers.len().max(1) as f64).clamp(4.0, 18.0);
    let (left, top) = (40.0, 22.0);
    let cell = (WIDTH - left - 8.0) / experts as f64;
    let height = top + row * layers.len() as f64 + 26.0;
    let mut svg = Svg::new(WIDTH, height);
    svg.text("tick", (2.0, 12.0), Anchor::Start, "layer");
    for (number, layer) in layers.iter().enumerate() {
        let y = top + row * number as f64;
        let mut counts = vec![0u64; experts];
        for routing in capsule.routing.iter().filter(|r| r.layer == *layer) {
            counts.iter_mut().zip(&routing.counts).for_each(|(sum, count)| *sum += count);
        }
        let total: u64 = counts.iter().sum();
        if row >= 10.0 || number % 5 == 0 {
            svg.text(
                "tick",
                (left - 6.0, y + row.min(14.0) - 2.0),
                Anchor::End,
                &layer.to_string(),
            );
        }
        for (expert, count) in counts.iter().enumerate() {
            // 1 is what each would get if all were chosen alike
            let times = *count as f64 * experts as f64 / total.max(1) as f64;
            let strength = (times / 3.0).min(1.0);
            let tip = format!(
                "layer {layer}, expert {expert}: {count} times, {times:.2} of an even share"
            );
            let style = format!(r#"class="heat" fill-opacity="{:.2}""#, 0.04 + 0.96 * strength);
            let size = (cell.max(0.6) - 0.3, row - 0.6);
            svg.rect(&style, (left + cell * expert as f64, y), size, &tip);
        }
    }
    let middle = (left + WIDTH) / 2.0;
    let below = height - 8.0;
    svg.text("tick", (middle, below), Anchor::Middle, &format!("experts 0 to {}", experts - 1));
    let title = "How often experts are chosen".to_owned();
    Some(Plot {
        svg: svg.finish(&title),
        title,
        caption: "Full colour is three times an even share, or more.".to_owned(),
        legend: Vec::new(),
    })
}

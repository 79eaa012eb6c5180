//! Every figure in the README has a measurement in the repository that says so.
//!
//! `benchmarks/figures.json` names, for each figure, the line it stands in and where it comes from. A figure without an
//! entry is a problem, and so is one that its measurement does not round to.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use zmlx_capsule::{Capsule, Metric, stats};

/// The list, from the root.
pub(crate) const LIST: &str = "benchmarks/figures.json";

/// What is counted as a figure, after a number.
const UNITS: [&str; 8] = [" tok/s", " %", " GB/s", " ms", " us", "x ", "x\n", " times as fast"];

/// One figure.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Figure {
    /// What the README's line begins with.
    line: String,
    /// The figure, as it is written.
    shown: String,
    /// Where it comes from.
    source: Source,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Source {
    /// A median over the runs of a capsule.
    Capsule {
        file: String,
        variant: String,
        /// One case; without it all of them.
        case: Option<String>,
        metric: Metric,
        scale: Option<f64>,
    },
    /// A median over lines of JSON.
    Lines {
        file: String,
        /// What a line must say to be counted.
        #[serde(rename = "where", default)]
        filter: Map<String, Value>,
        /// A field, or fields from the outside in, separated by dots.
        field: String,
        scale: Option<f64>,
    },
    /// A line of a table that a program printed.
    Text { file: String, says: String },
    /// Nothing yet, for this reason.
    Unrecorded(String),
}

/// Checks the README against the list.
pub(crate) fn check(files: &BTreeMap<String, Vec<u8>>, problems: &mut Vec<String>) {
    let text = |path: &str| std::str::from_utf8(files.get(path)?).ok();
    let (Some(readme), Some(list)) = (text("README.md"), text(LIST)) else {
        problems.push(format!("README.md or {LIST}: is not there"));
        return;
    };
    let figures: Vec<Figure> = match serde_json::from_str(list) {
        Ok(figures) => figures,
        Err(error) => {
            problems.push(format!("{LIST}: {error}"));
            return;
        }
    };
    for (number, line) in figure_lines(readme) {
        let of_line: Vec<&Figure> = figures.iter().filter(|f| line.starts_with(&f.line)).collect();
        for shown in figures_of(line) {
            if !of_line.iter().any(|figure| figure.shown == shown) {
                problems.push(format!("README.md:{number}: {shown} has no entry in {LIST}"));
            }
        }
    }
    for figure in &figures {
        let there =
            readme.lines().any(|l| l.starts_with(&figure.line) && l.contains(&figure.shown));
        if !there {
            problems.push(format!("{LIST}: no line {:?} with {}", figure.line, figure.shown));
        } else if let Err(reason) = holds(figure, files) {
            problems.push(format!("{LIST}: {} in {:?}: {reason}", figure.shown, figure.line));
        }
    }
}

/// Lines that may hold figures: not those of generated tables, and of code only what a program printed.
fn figure_lines(readme: &str) -> impl Iterator<Item = (usize, &str)> {
    let (mut generated, mut code, mut console) = (false, false, false);
    readme.lines().enumerate().filter_map(move |(index, line)| {
        if let Some(comment) = line.strip_prefix("<!-- ") {
            generated = !comment.starts_with('/') && (generated || comment.contains("written by"));
            return None;
        }
        if line.starts_with("```") {
            code = !code;
            console = code && line.contains("console");
            return None;
        }
        (!generated && (!code || console)).then_some((index + 1, line))
    })
}

/// The figures of a line: numbers with a unit, and cells of a table that begin with a number.
fn figures_of(line: &str) -> Vec<String> {
    if line.starts_with('|') {
        let cells = line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).skip(1);
        return cells.filter_map(leading_number).collect();
    }
    let ended = format!("{line}\n");
    let mut found = Vec::new();
    for unit in UNITS {
        for (at, _) in ended.match_indices(unit) {
            let before = &ended[..at];
            let start = before.rfind(|c: char| !c.is_ascii_digit() && c != '.' && c != ',');
            let number = &before[start.map_or(0, |i| i + 1)..];
            if number.starts_with(|c: char| c.is_ascii_digit()) {
                found.push(number.to_owned());
            }
        }
    }
    found
}

fn leading_number(cell: &str) -> Option<String> {
    let end = cell.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(cell.len());
    (end > 0 && cell.starts_with(|c: char| c.is_ascii_digit())).then(|| cell[..end].to_owned())
}

/// Whether the measurement says what is shown.
fn holds(figure: &Figure, files: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    let bytes = |file: &str| files.get(file).ok_or_else(|| format!("{file} is not there"));
    let (values, scale) = match &figure.source {
        Source::Capsule { file, variant, case, metric, scale } => {
            let capsule =
                Capsule::parse(bytes(file)?, Path::new(file)).map_err(|e| e.to_string())?;
            let place = capsule.variants.iter().position(|v| v.name == *variant);
            let place = place.ok_or_else(|| format!("{file} has no variant {variant}"))?;
            let cases = capsule.cases.iter().enumerate();
            let cases = cases.filter(|(_, c)| case.as_ref().is_none_or(|case| *case == c.name));
            let values = cases.flat_map(|(i, _)| capsule.values(place, i, *metric)).collect();
            (values, *scale)
        }
        Source::Lines { file, filter, field, scale } => {
            let text = String::from_utf8_lossy(bytes(file)?).into_owned();
            let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let rows =
                rows.filter(|row| filter.iter().all(|(key, value)| row.get(key) == Some(value)));
            let value =
                |row: Value| field.split('.').try_fold(row, |row, key| row.get(key).cloned());
            let values: Vec<f64> = rows.filter_map(value).filter_map(|v| v.as_f64()).collect();
            (values, *scale)
        }
        Source::Text { file, says } => {
            let text = String::from_utf8_lossy(bytes(file)?);
            let line = says.contains(&figure.shown) && text.lines().any(|line| line.contains(says));
            return if line { Ok(()) } else { Err(format!("{file} does not say {says:?}")) };
        }
        Source::Unrecorded(reason) => {
            return if reason.is_empty() { Err("no reason is given".to_owned()) } else { Ok(()) };
        }
    };
    let median = stats::median(&values).ok_or("no value is there")? * scale.unwrap_or(1.0);
    let digits = figure.shown.split_once('.').map_or(0, |(_, digits)| digits.len());
    let rounded = format!("{median:.digits$}");
    if rounded == figure.shown { Ok(()) } else { Err(format!("the median is {median}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = "{\"variant\":\"a\",\"speed\":27.9}\n{\"variant\":\"a\",\"speed\":28.44}\n{\"variant\":\"a\",\"speed\":30}\n{\"variant\":\"b\",\"speed\":1}\n";

    fn found(readme: &str, figures: Value) -> Vec<String> {
        let files = [
            ("README.md", readme.to_owned()),
            (LIST, figures.to_string()),
            ("runs/x.jsonl", ROWS.to_owned()),
            ("runs/x.txt", "a  28.4 tok/s\n".to_owned()),
        ];
        let files = files.into_iter().map(|(path, text)| (path.to_owned(), text.into_bytes()));
        let mut problems = Vec::new();
        check(&files.collect(), &mut problems);
        problems
    }

    fn lines(shown: &str) -> Value {
        let source = serde_json::json!({"lines": {"file": "runs/x.jsonl", "where": {"variant": "a"}, "field": "speed"}});
        serde_json::json!([{"line": "It runs", "shown": shown, "source": source}])
    }

    #[test]
    fn a_figure_that_its_measurement_rounds_to_is_fine() {
        assert_eq!(found("It runs at 28.4 tok/s.\n", lines("28.4")), [""; 0]);
        let source = serde_json::json!({"text": {"file": "runs/x.txt", "says": "28.4 tok/s"}});
        let list = serde_json::json!([{"line": "It runs", "shown": "28.4", "source": source}]);
        assert_eq!(found("It runs at 28.4 tok/s.\n", list), [""; 0]);
    }

    #[test]
    fn figures_without_a_measurement_or_with_another_are_found() {
        for (readme, list, reason) in [
            ("It runs at 28.5 tok/s.\n", lines("28.5"), "the median is 28.44"),
            ("It runs at 28.4 tok/s and 9 GB/s.\n", lines("28.4"), "README.md:1: 9 has no entry"),
            ("It runs.\n", lines("28.4"), "no line \"It runs\" with 28.4"),
            ("| x | 12.5 |\n", serde_json::json!([]), "README.md:1: 12.5 has no entry"),
        ] {
            let problems = found(readme, list);
            assert!(problems.iter().any(|p| p.contains(reason)), "{reason}: {problems:?}");
        }
    }

    #[test]
    fn what_is_no_figure_is_left_alone() {
        let readme = "MLX 0.32.2, 4 bits, 128 tokens, two cores\n```sh\nx 3 ms\n```\n\
                      <!-- families: written by x -->\n| a | 5 |\n<!-- /families -->\n";
        assert_eq!(found(readme, serde_json::json!([])), [""; 0]);
        assert_eq!(found("```console\nspeed 3.5x\n```\n", serde_json::json!([])).len(), 1);
    }
}

//! `zmlx report`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::Serialize;
use zmlx::capsule::compare::{self, Comparison, Control, compare, within};
use zmlx::capsule::report::{Document, comparison, markdown, page, report, terminal};
use zmlx::capsule::stats::Verdict;
use zmlx::capsule::{Capsule, Metric, matrix};

use super::options::OutputOptions;
use super::render::{Answer, Ui};
use super::{CommandArgs, Examples, Exit};

/// Arguments of `zmlx report`.
#[derive(Debug, clap::Args)]
pub(super) struct Report {
    /// Files of zmlx bench and of the programs in benchmarks
    #[arg(value_name = "CAPSULE", required = true)]
    capsules: Vec<PathBuf>,
    /// Compare two capsules, the older one first: exit with 1 when the newer one is slower, larger or says other tokens.
    /// Of one capsule, compare the variants with the first
    #[arg(long, help_heading = "Comparison")]
    compare: bool,
    /// Smallest change that counts, in percent
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 100.0 * compare::THRESHOLD,
        value_parser = parse_percent,
        requires = "compare",
        help_heading = "Comparison"
    )]
    threshold: f64,
    /// Variant of both that the others are measured by, so that what changed with the machine cancels out, or none
    /// [default: stock, where both have it]; of one capsule, the one to compare with [default: the first]
    #[arg(long, value_name = "VARIANT", requires = "compare", help_heading = "Comparison")]
    control: Option<String>,
    /// How to print
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = false,
        help_heading = "Output"
    )]
    format: Format,
    /// Write a page with plots, which needs nothing else
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Add lines for each variant and case to this file of JSON Lines
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    append: Option<PathBuf>,
    #[command(flatten)]
    _output: OutputOptions,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    #[default]
    Text,
    Markdown,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.0..=1000.0).contains(&percent) => Ok(percent),
        _ => Err(format!("`{text}`: expected a number of percent, such as 3")),
    }
}

#[derive(Debug, Serialize)]
struct Begin {
    capsules: Vec<String>,
}

/// What was read.
#[derive(Debug, Serialize)]
struct Summary {
    /// Medians of every variant and case.
    rows: Vec<matrix::MatrixRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<ComparisonSummary>,
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
struct ComparisonSummary {
    regression: bool,
    threshold: f64,
    rows: Vec<ComparisonRow>,
    other_tokens: Vec<OtherTokens>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ComparisonRow {
    variant: String,
    metric: Metric,
    ratio: f64,
    low: f64,
    high: f64,
    p_slower: f64,
    verdict: &'static str,
}

#[derive(Debug, Serialize)]
struct OtherTokens {
    variant: String,
    case: String,
}

impl CommandArgs for Report {
    const ABOUT: &'static str = "Show what was measured, or compare two measurements";
    const EXAMPLES: Examples = &[
        ("Tables for the terminal, and a page with plots", "zmlx report x.json --html x.html"),
        ("For a document", "zmlx report x.json --format markdown > x.md"),
        ("In a script: fail when something got slower", "zmlx report --compare old.json new.json"),
        ("Fail when a variant is slower than the first one", "zmlx report --compare x.json"),
        ("Speeds over time, for a program", "zmlx report x.json --append benchmarks/matrix.jsonl"),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let capsules: Vec<Capsule> =
            self.capsules.iter().map(|path| Capsule::read(path)).collect::<Result<_, _>>()?;
        ensure!(
            !self.compare || capsules.len() <= 2,
            "--compare takes two capsules, the older one first, or one, to compare its variants; there are {}",
            capsules.len()
        );
        let names: Vec<String> = self.capsules.iter().map(|path| file_name(path)).collect();
        ui.begin("report", &Begin { capsules: names.clone() })?;
        let mut documents = Vec::new();
        let mut found = None;
        if self.compare {
            let options = compare::Options {
                threshold: Some(self.threshold / 100.0),
                control: match self.control.as_deref() {
                    None => Control::Stock,
                    Some("none") => Control::None,
                    Some(name) => Control::Variant(name.to_owned()),
                },
            };
            let (old, new, comparison_found) = match &capsules[..] {
                [one] => {
                    let first = one.variants.first().map_or("", |v| v.name.as_str());
                    let reference = self.control.as_deref().unwrap_or(first);
                    (reference, &names[0], within(one, &options)?)
                }
                _ => (names[0].as_str(), &names[1], compare(&capsules[0], &capsules[1], &options)?),
            };
            documents.push(comparison(&comparison_found, old, new));
            found = Some(comparison_found);
        } else {
            documents.extend(capsules.iter().map(report));
        }
        if let Some(path) = &self.html {
            // a comparison's page has both reports below it
            let parts = documents.clone().into_iter();
            let below = capsules.iter().filter(|_| self.compare).map(report);
            fs::write(path, page(&joined(parts.chain(below))))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(path) = &self.append {
            for (capsule, name) in capsules.iter().zip(&names) {
                match matrix::append(path, capsule, name)? {
                    0 => ui.note(&format!("{name} is in {} already", path.display())),
                    rows => ui.note(&format!("{rows} lines added to {}", path.display())),
                }
            }
        }
        let show = match self.format {
            Format::Text => terminal,
            Format::Markdown => markdown,
        };
        let rows = capsules.iter().zip(&names).flat_map(|(c, name)| matrix::rows(c, name));
        let exit =
            if found.as_ref().is_none_or(Comparison::is_good) { Exit::Done } else { Exit::No };
        ui.finish(&Summary {
            rows: rows.collect(),
            comparison: found.map(ComparisonSummary::from),
            text: documents.iter().map(show).collect::<Vec<_>>().join("\n"),
        })?;
        Ok(exit)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn joined(documents: impl Iterator<Item = Document>) -> Document {
    documents
        .reduce(|mut all, next| {
            all.blocks.push(zmlx::capsule::report::Block::Heading(next.title));
            all.blocks.extend(next.blocks);
            all
        })
        .unwrap_or_default()
}

impl From<Comparison> for ComparisonSummary {
    fn from(found: Comparison) -> Self {
        let row = |row: &compare::Row| ComparisonRow {
            variant: row.variant.clone(),
            metric: row.metric,
            ratio: row.change.ratio,
            low: row.change.low,
            high: row.change.high,
            p_slower: row.change.p_slower,
            verdict: match row.verdict {
                Verdict::Faster => "faster",
                Verdict::Slower => "slower",
                Verdict::Same => "same",
                Verdict::Unclear => "unclear",
            },
        };
        Self {
            regression: !found.is_good(),
            threshold: found.threshold,
            rows: found.rows.iter().map(row).collect(),
            other_tokens: found
                .other_tokens
                .into_iter()
                .map(|(variant, case)| OtherTokens { variant, case })
                .collect(),
            notes: found.notes,
        }
    }
}

impl Answer for Summary {
    fn text(&self) -> String {
        self.text.clone()
    }
}

//! `zmlx patterns`

use mlx::Device;
use serde::Serialize;
use zmlx::lm::patterns::{PATTERNS, preset};

use super::options::OutputOptions;
use super::render::{Answer, Rows, Ui};
use super::{CommandArgs, Examples, Exit};

/// Arguments of `zmlx patterns`.
#[derive(Debug, clap::Args)]
pub(super) struct Patterns {
    #[command(flatten)]
    _output: OutputOptions,
}

#[derive(Debug, Serialize)]
struct Begin {}

/// What there is.
#[derive(Debug, Serialize)]
struct Summary {
    patterns: Vec<PatternRow>,
}

#[derive(Debug, Serialize)]
struct PatternRow {
    name: &'static str,
    about: &'static str,
    /// The devices on which `auto` takes it, families' exceptions apart.
    default_on: Vec<String>,
}

impl CommandArgs for Patterns {
    const ABOUT: &'static str = "List what can be fused, and where it is by default";
    const EXAMPLES: Examples = &[
        ("What --patch can name", "zmlx patterns"),
        ("The same for a program", "zmlx patterns --json | tail -n 1 | jq .patterns"),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        ui.begin("patterns", &Begin {})?;
        let row = |pattern: &zmlx::lm::patterns::Pattern| PatternRow {
            name: pattern.name,
            about: pattern.about,
            default_on: [Device::Cpu, Device::Gpu]
                .into_iter()
                .filter(|device| preset(*device).contains(&pattern.name))
                .map(|device| device.to_string())
                .collect(),
        };
        ui.finish(&Summary { patterns: PATTERNS.iter().map(row).collect() })?;
        Ok(Exit::Done)
    }
}

impl Answer for Summary {
    fn text(&self) -> String {
        let width = self.patterns.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let mut rows = Rows::new(width + 2);
        for PatternRow { name, about, default_on } in &self.patterns {
            let on = match default_on.is_empty() {
                true => "when named".to_owned(),
                false => format!("by default on {}", default_on.join(", ")),
            };
            rows.row(name, format!("{about} ({on})"));
        }
        rows.into_text()
    }
}

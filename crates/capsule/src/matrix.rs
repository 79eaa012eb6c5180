//! The matrix: one line for each variant and case of every capsule that was added, for programs that follow speeds
//! over time.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Capsule, Error, Metric, Result};

/// A line of `matrix.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixRow {
    /// File name of the capsule.
    pub capsule: String,
    /// As the capsule says.
    pub created: String,
    /// Likewise.
    pub commit: String,
    /// Version and delivery.
    pub mlx: String,
    /// Processor.
    pub cpu: String,
    /// `cpu` or `gpu`.
    pub device: String,
    /// Threads.
    pub threads: i32,
    /// Name of the model; `null` for calls.
    pub model: Option<String>,
    /// Name of the variant.
    pub variant: String,
    /// Name of the case.
    pub case: String,
    /// Runs that the medians are of.
    pub runs: usize,
    /// Medians.
    pub medians: std::collections::BTreeMap<Metric, f64>,
    /// Whether the tokens were the reference's; `null` where none were compared.
    pub identical: Option<bool>,
}

/// The lines of a capsule.
///
/// - `name`: the file's name
pub fn rows(capsule: &Capsule, name: &str) -> Vec<MatrixRow> {
    let mut rows = Vec::new();
    for (i, variant) in capsule.variants.iter().enumerate() {
        for (j, case) in capsule.cases.iter().enumerate() {
            let medians: std::collections::BTreeMap<Metric, f64> = capsule
                .metrics()
                .into_iter()
                .filter_map(|metric| Some((metric, capsule.spread(i, j, metric)?.median)))
                .collect();
            if medians.is_empty() {
                continue;
            }
            let fidelity = capsule.fidelity.iter().find(|f| f.variant == i && f.case == j);
            rows.push(MatrixRow {
                capsule: name.to_owned(),
                created: capsule.created.clone(),
                commit: capsule.zmlx.commit.clone(),
                mlx: format!("{} ({})", capsule.mlx.version, capsule.mlx.mode),
                cpu: capsule.machine.cpu.clone(),
                device: capsule.machine.device.clone(),
                threads: capsule.machine.threads,
                model: capsule.model.as_ref().map(|m| m.name.clone()),
                variant: variant.name.clone(),
                case: case.name.clone(),
                runs: capsule.samples_of(i, j).count(),
                medians,
                identical: fidelity.map(|f| f.first_divergence.is_none()),
            });
        }
    }
    rows
}

/// Adds a capsule's lines to a file that is made where there is none. Returns how many; 0 when it was added before.
///
/// # Errors
/// `Io`; `Field` where a line of the file is not one of a matrix.
pub fn append(matrix: &Path, capsule: &Capsule, name: &str) -> Result<usize> {
    let error = |verb| move |source| Error::Io { verb, path: matrix.into(), source };
    let text = match fs::read_to_string(matrix) {
        Ok(text) => text,
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(error("read")(source)),
    };
    for (number, line) in text.lines().enumerate() {
        let row: MatrixRow = serde_json::from_str(line).map_err(|problem| Error::Field {
            path: matrix.into(),
            field: format!("line {}", number + 1),
            reason: problem.to_string(),
        })?;
        if row.capsule == name && row.created == capsule.created {
            return Ok(0);
        }
    }
    let rows = rows(capsule, name);
    let mut lines = String::new();
    if !text.is_empty() && !text.ends_with('\n') {
        lines.push('\n');
    }
    for row in &rows {
        let line = serde_json::to_value(row).map_err(|e| error("write")(e.into()))?;
        lines.push_str(&Value::to_string(&line));
        lines.push('\n');
    }
    let file = OpenOptions::new().create(true).append(true).open(matrix);
    let written = file.and_then(|mut file| file.write_all(lines.as_bytes()));
    written.map_err(error("write"))?;
    Ok(rows.len())
}

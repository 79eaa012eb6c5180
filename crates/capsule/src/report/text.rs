//! Documents as text: for a terminal, and as Markdown.

use super::{Block, Document, Table};

/// For a terminal: columns one below the other.
pub fn terminal(document: &Document) -> String {
    let mut out = format!("{}\n", document.title);
    for block in &document.blocks {
        match block {
            Block::Heading(text) => out.push_str(&format!("\n{text}\n")),
            Block::Text(text) => out.push_str(&format!("{text}\n")),
            Block::Facts(facts) => {
                let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
                for (name, value) in facts {
                    out.push_str(&format!("{name:<width$}  {value}\n"));
                }
            }
            Block::Table(table) => out.push_str(&aligned(table)),
            Block::Plot(_) => {}
        }
    }
    out
}

fn aligned(table: &Table) -> String {
    let rows = || std::iter::once(&table.header).chain(&table.rows);
    let width = |column: usize| {
        rows().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> =
        (0..table.header.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            if column == 0 { format!("{cell}{pad}") } else { format!("{pad}{cell}") }
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows().map(line).collect()
}

/// As Markdown, without raw HTML.
pub fn markdown(document: &Document) -> String {
    let mut out = format!("# {}\n", escaped(&document.title));
    for block in &document.blocks {
        out.push('\n');
        match block {
            Block::Heading(text) => out.push_str(&format!("## {}\n", escaped(text))),
            Block::Text(text) => out.push_str(&format!("{}\n", escaped(text))),
            Block::Facts(facts) => {
                for (name, value) in facts {
                    out.push_str(&format!("- {}: {}\n", escaped(name), escaped(value)));
                }
            }
            Block::Table(table) => {
                let line = |row: &Vec<String>| {
                    let cells = row.iter().map(|cell| escaped(cell));
                    format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
                };
                out.push_str(&line(&table.header));
                let rule = |i| if i == 0 { "---" } else { "---:" };
                let rules: Vec<&str> = (0..table.header.len()).map(rule).collect();
                out.push_str(&format!("| {} |\n", rules.join(" | ")));
                table.rows.iter().for_each(|row| out.push_str(&line(row)));
            }
            // the table above says the same in numbers
            Block::Plot(_) => {
                out.pop();
            }
        }
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ")
}

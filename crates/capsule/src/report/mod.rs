//! Reports: one document, shown as text, as Markdown or as a page.

mod build;
mod changes;
mod html;
mod plot;
mod plots;
mod svg;
mod text;

pub use build::report;
pub use changes::comparison;
pub use html::page;
pub use text::{markdown, terminal};

/// What is to be shown, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Document {
    /// Its title.
    pub title: String,
    /// Its parts.
    pub blocks: Vec<Block>,
}

/// A part of a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A heading.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// Short facts: names and values.
    Facts(Vec<(String, String)>),
    /// A table.
    Table(Table),
    /// A drawing, which pages alone show.
    Plot(Plot),
}

/// A table whose first column names the rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// Titles of the columns.
    pub header: Vec<String>,
    /// Rows of as many cells.
    pub rows: Vec<Vec<String>>,
}

/// A drawing with its title.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// What to know when reading it.
    pub caption: String,
    /// Names of the series, in the order of their colours; empty where colours mean nothing else.
    pub legend: Vec<String>,
    /// The drawing.
    pub svg: String,
}

impl Document {
    fn heading(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Heading(text.into()));
    }

    fn text(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Text(text.into()));
    }

    fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) {
        if !rows.is_empty() {
            let header = header.iter().map(|h| (*h).to_owned()).collect();
            self.blocks.push(Block::Table(Table { header, rows }));
        }
    }
}

#[cfg(test)]
mod tests;

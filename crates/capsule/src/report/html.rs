//! Documents as one page that needs nothing else: no script, no font, no network.

use super::svg::{colour, escaped};
use super::{Block, Document, Plot, Table};

/// Letters of a cell from which on its column is broken into lines.
const LONG: usize = 36;

const STYLE: &str = include_str!("page.css");

/// A page.
pub fn page(document: &Document) -> String {
    let mut body = String::new();
    let mut plots = String::new();
    for block in &document.blocks {
        if let Block::Plot(plot) = block {
            plots.push_str(&figure(plot));
            continue;
        }
        flush(&mut plots, &mut body);
        match block {
            Block::Heading(text) => body.push_str(&format!("<h2>{}</h2>\n", escaped(text))),
            Block::Text(text) => body.push_str(&format!("<p>{}</p>\n", escaped(text))),
            Block::Facts(facts) => {
                let row = |(name, value): &(String, String)| {
                    format!("<dt>{}</dt><dd>{}</dd>\n", escaped(name), escaped(value))
                };
                let rows: String = facts.iter().map(row).collect();
                body.push_str(&format!("<dl>\n{rows}</dl>\n"));
            }
            Block::Table(table) => body.push_str(&table_html(table)),
            Block::Plot(_) => {}
        }
    }
    flush(&mut plots, &mut body);
    let title = escaped(&document.title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// Plots in a row stand side by side where there is room.
fn flush(plots: &mut String, body: &mut String) {
    if !plots.is_empty() {
        body.push_str(&format!("<div class=\"plots\">\n{plots}</div>\n"));
        plots.clear();
    }
}

fn figure(plot: &Plot) -> String {
    let key = |(i, name): (usize, &String)| {
        let mut mark = super::svg::Svg::new(12.0, 12.0);
        mark.mark(i, (6.0, 6.0), 4.0, name);
        format!("<span class=\"key {}\">{}{}</span> ", colour(i), mark.finish(name), escaped(name))
    };
    let legend: String = plot.legend.iter().enumerate().map(key).collect();
    format!(
        "<figure><h3>{}</h3><div class=\"legend\">{legend}</div>{}<figcaption>{}</figcaption></figure>\n",
        escaped(&plot.title),
        plot.svg,
        escaped(&plot.caption)
    )
}

fn table_html(table: &Table) -> String {
    // sentences are read, not compared by digits
    let is_prose = |i: usize| {
        let cells = table.rows.iter().filter_map(|row| row.get(i));
        cells.map(|cell| cell.chars().count()).max().is_some_and(|longest| longest > LONG)
    };
    let classes: Vec<&str> = (0..table.header.len())
        .map(|i| if is_prose(i) { " class=\"prose\"" } else { "" })
        .collect();
    let row = |tag: &str, row: &Vec<String>| {
        let cell =
            |(text, class): (&String, &&str)| format!("<{tag}{class}>{}</{tag}>", escaped(text));
        let cells: String = row.iter().zip(&classes).map(cell).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let rows: String = table.rows.iter().map(|r| row("td", r)).collect();
    format!(
        "<div class=\"scroll\"><table>\n<thead>{}</thead>\n<tbody>{rows}</tbody>\n</table></div>\n",
        row("th", &table.header)
    )
}

//! The user's side of a command. stdout holds the answer alone; progress, remarks and errors go to stderr.

use std::fmt::Display;
use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Exit;

/// Version of the JSON Lines; a field that changes its meaning raises it.
const SCHEMA: u32 = 1;

/// What a command found out: its fields are the summary of `--json`.
pub(super) trait Answer: Serialize {
    /// What people read on stdout.
    fn text(&self) -> String;

    /// What whoever watches is told on stderr.
    fn remark(&self) -> Option<String> {
        None
    }
}

/// The reader of stdout has gone.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
pub(super) struct Closed;

/// All output of a command.
pub(super) struct Ui {
    json: bool,
}

impl Ui {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether stdout is for programs.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// The first line of `--json`.
    pub(super) fn begin(&mut self, command: &str, begin: &impl Serialize) -> anyhow::Result<()> {
        let mut line = Map::new();
        line.insert("schema".to_owned(), SCHEMA.into());
        line.insert("command".to_owned(), command.into());
        line.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        line.insert("stock".to_owned(), mlx::build_info().stock().into());
        line.extend(fields(begin)?);
        self.line("begin", line)
    }

    /// A generated token, with the text that it completed.
    pub(super) fn token(&mut self, index: usize, id: u32, text: &str) -> anyhow::Result<()> {
        self.event("token", &json!({ "index": index, "id": id, "text": text }))?;
        self.text(text)
    }

    /// A piece of the answer for people.
    pub(super) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        if self.json || text.is_empty() {
            return Ok(());
        }
        put(text.as_bytes())
    }

    /// The end of the text, where it was held back until no token could change it.
    pub(super) fn rest(&mut self, text: &str) -> anyhow::Result<()> {
        if !text.is_empty() {
            self.event("text", &json!({ "text": text }))?;
        }
        self.text(text)
    }

    /// A line of `--json` between the first and the last.
    pub(super) fn event(&mut self, kind: &str, event: &impl Serialize) -> anyhow::Result<()> {
        if !self.json {
            return Ok(());
        }
        self.line(kind, fields(event)?)
    }

    /// The last of the answer.
    pub(super) fn finish(&mut self, answer: &impl Answer) -> anyhow::Result<()> {
        if self.json {
            return self.line("summary", fields(answer)?);
        }
        put(answer.text().as_bytes())?;
        if let Some(remark) = answer.remark() {
            self.note(&remark);
        }
        Ok(())
    }

    /// A script for another program.
    pub(super) fn script(&mut self, script: &[u8]) -> anyhow::Result<()> {
        put(script)
    }

    /// Says something to whoever watches.
    pub(super) fn note(&self, text: &str) {
        // stderr that cannot be written to is nobody's loss
        writeln!(io::stderr(), "{text}").ok();
    }

    /// What a checkpoint's loader noticed.
    pub(super) fn notes(&self, notes: &[String]) {
        for note in notes {
            self.note(&format!("note: {note}"));
        }
    }

    /// Progress in bytes.
    pub(super) fn bytes_bar(&self, what: &'static str) -> Bar {
        Bar::new(what, "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})")
    }

    /// Progress in tokens.
    pub(super) fn tokens_bar(&self, what: &'static str) -> Bar {
        Bar::new(what, "{msg} [{wide_bar}] {pos}/{len} tokens ({eta})")
    }

    /// Progress in runs of a measurement.
    pub(super) fn runs_bar(&self) -> Bar {
        Bar::new("measuring", "[{wide_bar}] {pos}/{len} runs ({eta}) {msg}")
    }

    /// What is under way, where nobody knows how far it is.
    pub(super) fn steps(&self, what: &'static str) -> Bar {
        let mut bar = Bar::new(what, "{spinner} {msg}");
        bar.set(0, 0);
        bar
    }

    /// Reports a failure.
    pub(super) fn error(&mut self, error: &anyhow::Error) -> Exit {
        let message = message(error);
        self.failure(&message);
        self.note(&format!("zmlx: error: {message}"));
        Exit::Failed
    }

    /// What clap says: help and version go to stdout, mistakes to stderr.
    pub(super) fn usage(&mut self, error: &clap::Error) -> Exit {
        if !error.use_stderr() {
            error.print().ok();
            return Exit::Done;
        }
        let text = error.to_string();
        if text.starts_with("error: ") {
            write!(io::stderr(), "zmlx: ").ok();
        }
        error.print().ok();
        self.failure(text.lines().next().unwrap_or_default().trim_start_matches("error: "));
        Exit::Failed
    }

    fn failure(&mut self, message: &str) {
        self.event("error", &json!({ "message": message })).ok();
    }

    fn line(&mut self, kind: &str, fields: Map<String, Value>) -> anyhow::Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut line = Map::new();
        line.insert("type".to_owned(), kind.into());
        line.extend(fields);
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        put(text.as_bytes())
    }
}

fn fields(of: &impl Serialize) -> anyhow::Result<Map<String, Value>> {
    match serde_json::to_value(of)? {
        Value::Object(fields) => Ok(fields),
        other => Ok(Map::from_iter([("value".to_owned(), other)])),
    }
}

/// An error and its causes in one line. Some libraries put the cause into the message as well; what has been said
/// is left out.
pub(super) fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if cause.starts_with(&text) {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Writes to stdout at once.
fn put(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        result => Ok(result?),
    }
}

/// Progress towards a known end, on a terminal only. Disappears when dropped.
pub(super) struct Bar {
    what: &'static str,
    template: &'static str,
    bar: Option<ProgressBar>,
}

impl Bar {
    fn new(what: &'static str, template: &'static str) -> Self {
        Self { what, template, bar: None }
    }

    pub(super) fn set(&mut self, done: u64, total: u64) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template(self.template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(self.what);
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    /// Says what is under way.
    pub(super) fn say(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Lines of a name and a value, values one below the other.
pub(super) struct Rows {
    width: usize,
    text: String,
}

impl Rows {
    /// - `width`: of the longest name
    pub(super) fn new(width: usize) -> Self {
        Self { width, text: String::new() }
    }

    pub(super) fn row(&mut self, name: &str, value: impl Display) {
        self.line(&format!("{name:<width$} {value}", width = self.width));
    }

    pub(super) fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// Names one after the other, or what to say when there is none.
pub(super) fn list(items: &[&str], none: &str) -> String {
    if items.is_empty() { none.to_owned() } else { items.join(", ") }
}

pub(super) fn rate(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// Bytes by powers of 1000, three digits.
pub(super) fn bytes(value: u64) -> String {
    scaled(value, &["B", "kB", "MB", "GB", "TB"])
}

/// A number by powers of 1000, three digits.
pub(super) fn count(value: u64) -> String {
    scaled(value, &["", "k", "M", "G", "T"]).trim_end().to_owned()
}

fn scaled(value: u64, units: &[&str]) -> String {
    let mut value = value as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { 2 - usize::from(value >= 9.995) };
    format!("{value:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_three_digits() {
        let got = [0, 999, 1000, 12_345, 123_456, 999_999, 1_500_000_000].map(bytes);
        assert_eq!(got, ["0 B", "999 B", "1.00 kB", "12.3 kB", "123 kB", "1.00 MB", "1.50 GB"]);
        assert_eq!(count(30_532_122_624), "30.5 G");
        assert_eq!(count(7), "7");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read x: {source}")]
    struct SaysItsCause {
        source: io::Error,
    }

    #[test]
    fn message_says_every_cause_once() {
        let gone = || io::Error::other("it is gone");
        let error = anyhow::Error::from(SaysItsCause { source: gone() });
        assert_eq!(message(&error), "cannot read x: it is gone");
        assert_eq!(message(&error.context("cannot read x")), "cannot read x: it is gone");
        let apart = anyhow::Error::from(gone()).context("cannot read x").context("no prompt");
        assert_eq!(message(&apart), "no prompt: cannot read x: it is gone");
    }
}

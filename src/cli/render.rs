//! All output. stdout holds the answer alone; progress, notes and errors go to stderr.

use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Exit, doctor, generate, inspect, synth, validate};

/// Version of the JSON Lines; a field that changes its meaning raises it.
const SCHEMA: u32 = 1;

/// What a command found out.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Report {
    Generate(generate::Summary),
    Validate(validate::Summary),
    Inspect(inspect::Summary),
    Doctor(doctor::Summary),
    Synth(synth::Summary),
}

/// The reader of stdout has gone.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
pub(super) struct Closed;

/// The user's side of a command.
pub(super) struct Ui {
    json: bool,
}

impl Ui {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// The first line of `--json`.
    pub(super) fn begin(&mut self, command: &str, begin: &impl Serialize) -> anyhow::Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut line = Map::new();
        line.insert("schema".to_owned(), SCHEMA.into());
        line.insert("command".to_owned(), command.into());
        line.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        line.insert("stock".to_owned(), mlx::build_info().stock().into());
        if let Value::Object(fields) = serde_json::to_value(begin)? {
            line.extend(fields);
        }
        self.line("begin", line)
    }

    /// A generated token, with the text that it completed.
    pub(super) fn token(&mut self, index: usize, id: u32, text: &str) -> anyhow::Result<()> {
        if self.json {
            let Value::Object(line) = json!({ "index": index, "id": id, "text": text }) else {
                return Ok(());
            };
            return self.line("token", line);
        }
        self.text(text)
    }

    /// A piece of the answer.
    pub(super) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        if self.json || text.is_empty() {
            return Ok(());
        }
        put(text.as_bytes())
    }

    /// The last of the answer.
    pub(super) fn finish(&mut self, report: &Report) -> anyhow::Result<()> {
        if self.json {
            if let Value::Object(fields) = serde_json::to_value(report)? {
                self.line("summary", fields)?;
            }
            return Ok(());
        }
        let mut text = String::new();
        match report {
            Report::Generate(summary) => {
                text.push_str(&generated(summary));
                put(text.as_bytes())?;
                self.note(&statistics(summary));
                return Ok(());
            }
            Report::Validate(summary) => validated(summary, &mut text),
            Report::Inspect(summary) => inspected(summary, &mut text),
            Report::Doctor(summary) => examined(summary, &mut text),
            Report::Synth(summary) => synthesized(summary, &mut text),
        }
        put(text.as_bytes())
    }

    /// A script for another program.
    pub(super) fn script(&mut self, script: &[u8]) -> anyhow::Result<()> {
        put(script)
    }

    /// Says something to whoever watches.
    /// What a checkpoint's loader noticed.
    pub(super) fn notes(&self, notes: &[String]) {
        for note in notes {
            self.note(&format!("note: {note}"));
        }
    }

    pub(super) fn note(&self, text: &str) {
        // stderr that cannot be written to is nobody's loss
        writeln!(io::stderr(), "{text}").ok();
    }

    /// A bar on a terminal, nothing elsewhere.
    pub(super) fn bar(&self, what: &'static str) -> Bar {
        Bar { what, bar: None }
    }

    /// Reports a failure.
    pub(super) fn error(&mut self, error: &anyhow::Error) -> Exit {
        self.failure(&format!("{error:#}"));
        self.note(&format!("zmlx: error: {error:#}"));
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
        if self.json
            && let Value::Object(line) = json!({ "message": message })
        {
            self.line("error", line).ok();
        }
    }

    fn line(&mut self, kind: &str, fields: Map<String, Value>) -> anyhow::Result<()> {
        let mut line = Map::new();
        line.insert("type".to_owned(), kind.into());
        line.extend(fields);
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        put(text.as_bytes())
    }
}

/// Writes to stdout at once.
fn put(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        result => Ok(result?),
    }
}

/// Progress in bytes. Disappears when dropped.
pub(super) struct Bar {
    what: &'static str,
    bar: Option<ProgressBar>,
}

impl Bar {
    pub(super) fn set(&mut self, bytes: u64, total_bytes: u64) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(total_bytes);
            let style = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(self.what);
            bar
        });
        bar.set_length(total_bytes);
        bar.set_position(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What is still to be printed after the tokens.
fn generated(summary: &generate::Summary) -> String {
    match summary.text {
        Some(_) => "\n".to_owned(),
        None => {
            let ids: Vec<String> = summary.token_ids.iter().map(u32::to_string).collect();
            format!("{}\n", ids.join(","))
        }
    }
}

fn statistics(summary: &generate::Summary) -> String {
    let fast = if summary.precision == "exact" { "" } else { ", precision fast" };
    format!(
        "{} prompt tokens at {:.1} tok/s, {} tokens at {} tok/s, peak {}, {} modules patched{fast}",
        summary.prompt_tokens,
        summary.prompt_tok_per_s,
        summary.generated_tokens,
        rate(summary.decode_tok_per_s),
        bytes(summary.peak_memory_bytes as u64),
        summary.patched_modules,
    )
}

fn validated(summary: &validate::Summary, text: &mut String) {
    let mut row = |name: &str, value: String| text.push_str(&format!("{name:<10} {value}\n"));
    row("reference", summary.reference.clone());
    row("stock", summary.stock.clone());
    let precision = if summary.precision == "exact" { "" } else { ", precision fast" };
    row(
        "fused",
        format!(
            "{} of {} MoE modules ({}{precision})",
            summary.patched_modules,
            summary.moe_modules,
            if summary.patterns.is_empty() {
                "no pattern".to_owned()
            } else {
                summary.patterns.join(", ")
            },
        ),
    );
    for (reason, modules) in grouped(summary) {
        row("fallback", format!("{modules}: {reason}"));
    }
    let runs = if summary.runs == 1 { String::new() } else { format!(", {} runs", summary.runs) };
    let prompts = if summary.prompts == 1 { "prompt" } else { "prompts" };
    row(
        "compared",
        format!("{} tokens: {} {prompts}{runs}", summary.tokens_compared, summary.prompts),
    );
    if let Some(d) = &summary.first_divergence {
        let token = |id: Option<u32>, text: &Option<String>| match (id, text) {
            (Some(id), Some(text)) => format!("{id} {text:?}"),
            (Some(id), None) => id.to_string(),
            (None, _) => "the end".to_owned(),
        };
        let margin = d.logit_margin.map_or_else(String::new, |m| format!(", logit margin {m}"));
        row(
            "differs",
            format!(
                "run {}, prompt {}, token {}: expected {}, got {}{margin}",
                d.run,
                d.prompt,
                d.index,
                token(d.expected, &d.expected_text),
                token(d.got, &d.got_text),
            ),
        );
    }
    row("baseline", format!("{} tok/s", rate(summary.baseline_decode_tok_per_s)));
    row("patched", format!("{} tok/s", rate(summary.patched_decode_tok_per_s)));
    row("speedup", summary.speedup.map_or_else(|| "-".to_owned(), |x| format!("{x:.2}x")));
    if summary.require_fused && !summary.is_fused() {
        row("required", "all fused, which is not so: see the fallbacks".to_owned());
    }
    text.push_str(&format!("identical: {}\n", if summary.identical { "yes" } else { "no" }));
}

/// Reasons with the modules they hold for, in order of appearance.
fn grouped(summary: &validate::Summary) -> Vec<(&str, String)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for fallback in &summary.fallbacks {
        match groups.iter_mut().find(|(reason, _)| *reason == fallback.reason) {
            Some((_, modules)) => modules.push(&fallback.module),
            None => groups.push((&fallback.reason, vec![&fallback.module])),
        }
    }
    let shorten = |modules: Vec<&str>| match modules.as_slice() {
        [one] => (*one).to_owned(),
        [first, .., last] => format!("{first} to {last} ({} modules)", modules.len()),
        [] => String::new(),
    };
    groups.into_iter().map(|(reason, modules)| (reason, shorten(modules))).collect()
}

fn inspected(summary: &inspect::Summary, text: &mut String) {
    let mut row = |name: &str, value: String| text.push_str(&format!("{name:<23} {value}\n"));
    row("model", summary.model.clone());
    row("type", summary.model_type.clone());
    for (name, value) in &summary.architecture {
        row(&name.replace('_', " "), value.to_string());
    }
    row(
        "parameters",
        format!(
            "{}, {} per token",
            count(summary.num_parameters),
            count(summary.num_active_parameters)
        ),
    );
    let quantization = summary.quantization.as_ref();
    row(
        "quantization",
        quantization.map_or_else(
            || "none".to_owned(),
            |q| format!("{} {} bits, group size {}", q.mode, q.bits, q.group_size),
        ),
    );
    for (format, weights) in &summary.weight_formats {
        row("", format!("{weights} weights {format}"));
    }
    let memory = &summary.memory;
    row("weights", format!("{} in {} files", bytes(memory.weights_bytes), summary.num_files));
    row("read per token", bytes(memory.decode_read_bytes));
    row("kv cache", format!("{} per token", bytes(memory.kv_bytes_per_token)));
    row(
        "patch",
        format!(
            "{} of {} MoE modules on {} ({})",
            summary.patched_modules,
            summary.moe_modules,
            summary.device,
            if summary.patterns.is_empty() {
                "no pattern".to_owned()
            } else {
                summary.patterns.join(", ")
            },
        ),
    );
    for module in &summary.modules {
        let outcome = module
            .reason
            .as_ref()
            .map_or_else(|| "fused".to_owned(), |reason| format!("stock: {reason}"));
        text.push_str(&format!("  {:<32} {:<18} {outcome}\n", module.module, module.pattern));
    }
}

fn examined(summary: &doctor::Summary, text: &mut String) {
    let list = |items: &[&str]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let mut row = |name: &str, value: String| text.push_str(&format!("{name:<11} {value}\n"));
    row("zmlx", format!("{} ({})", summary.version, summary.git_hash));
    row("stock", format!("{}, {}", summary.stock, summary.source));
    if let Some(problem) = &summary.mlx_problem {
        row("problem", problem.clone());
    }
    row("pin", format!("MLX {} {}", summary.pinned_mlx_version, summary.pin));
    row("patches", list(&summary.patches));
    row("backends", list(&summary.backends));
    for device in &summary.devices {
        let name = device.name.as_deref().unwrap_or("yes");
        let default = if device.default { " (default)" } else { "" };
        let state = if device.available { format!("{name}{default}") } else { "not here".into() };
        row(&device.device, state);
    }
    row("kernels", format!("{} instructions, {} threads", summary.cpu_isa, summary.threads));
    row("models", list(&summary.models));
    row("patterns", list(&summary.patterns));
    let missing = || "not found".to_owned();
    row("hub cache", summary.hub_cache.clone().unwrap_or_else(missing));
    row("demo model", summary.demo_model.clone().unwrap_or_else(missing));
    text.push_str("primitives\n");
    for p in &summary.primitives {
        let outcome = p.reason.as_ref().map_or_else(
            || format!("fused ({}, {})", p.dtype, p.parameters),
            |reason| format!("stock: {reason}"),
        );
        text.push_str(&format!("  {:<20} {:<4} {outcome}\n", p.primitive, p.device));
    }
}

fn synthesized(summary: &synth::Summary, text: &mut String) {
    text.push_str(&format!(
        "{}: {} layers, {} parameters, {} in {} files\n",
        summary.out,
        summary.num_layers,
        count(summary.num_parameters),
        bytes(summary.bytes),
        summary.num_files,
    ));
}

fn rate(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// Bytes by powers of 1000, three digits.
fn bytes(value: u64) -> String {
    scaled(value, &["B", "kB", "MB", "GB", "TB"])
}

fn count(value: u64) -> String {
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
}

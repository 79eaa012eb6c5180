//! Chat templates, rendered as transformers renders them.
//!
//! A template is Jinja2 that comes with the checkpoint, written for Python. minijinja runs it; what Jinja2 or
//! transformers do differently is set up in [`environment`].

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use crate::error::{Error, Result};
use crate::tokenizer::{Tokenizer, read_fields};

/// The template's name when a checkpoint has one only.
const DEFAULT: &str = "default";
/// The template that transformers takes when tools are given and the checkpoint has it.
const TOOL_USE: &str = "tool_use";
/// Templates are untrusted: a template that runs for longer than this many instructions is stopped.
const FUEL: u64 = 5_000_000;

/// What one rendering gets besides the messages.
#[derive(Debug, Clone)]
pub struct ChatOptions {
    /// End with the header of the assistant's turn.
    pub add_generation_prompt: bool,
    /// JSON schemas of callable tools.
    pub tools: Option<Json>,
    /// Further variables, such as `enable_thinking`; they win over the defaults.
    pub variables: Map<String, Json>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, tools: None, variables: Map::new() }
    }
}

/// The chat templates of a checkpoint.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    sources: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Reads the templates: `chat_template.jinja`, with `additional_chat_templates/*.jinja` beside it, else
    /// `chat_template.json`, else `chat_template` in `tokenizer_config.json` (one, or a list of named ones).
    /// `None` when there is none.
    ///
    /// # Errors
    /// `Io`, `Json`, `Template`.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let mut sources = BTreeMap::new();
        for name in ["tokenizer_config.json", "chat_template.json"] {
            if let Some(fields) = read_fields(&folder.join(name))? {
                let own = named_templates(fields.get("chat_template"))?;
                if !own.is_empty() {
                    sources = own;
                }
            }
        }
        let file = folder.join("chat_template.jinja");
        if file.exists() {
            sources = extra_templates(&folder.join("additional_chat_templates"))?;
            sources.insert(DEFAULT.to_owned(), read_text(&file)?);
        }
        Ok((!sources.is_empty()).then_some(Self { sources }))
    }

    /// One template from its source.
    pub fn from_source(source: impl Into<String>) -> Self {
        Self { sources: BTreeMap::from([(DEFAULT.to_owned(), source.into())]) }
    }

    /// The prompt's text for a conversation.
    ///
    /// - `messages`: objects with `role` and `content`, as in the chat APIs
    /// - `tokenizer`: gives `bos_token` and its like, and whether the model reasons
    ///
    /// # Errors
    /// `Template`, also when the template itself refuses the conversation.
    /// # Source
    /// transformers `chat_template_utils.py` (`render_jinja_template`); mlx-lm `tokenizer_utils.py`.
    pub fn render(
        &self,
        messages: &[Json],
        tokenizer: &Tokenizer,
        options: &ChatOptions,
    ) -> Result<String> {
        let mut variables = options.variables.clone();
        for (role, token) in tokenizer.special_tokens() {
            variables.entry(role.as_str()).or_insert_with(|| token.as_str().into());
        }
        variables.entry("enable_thinking").or_insert_with(|| tokenizer.has_thinking().into());
        self.render_with(messages, variables, options)
    }

    fn render_with(
        &self,
        messages: &[Json],
        mut variables: Map<String, Json>,
        options: &ChatOptions,
    ) -> Result<String> {
        let messages: Vec<Json> = messages.iter().map(with_reasoning).collect();
        variables.insert("messages".to_owned(), Json::Array(messages));
        variables.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        variables.insert("tools".to_owned(), options.tools.clone().unwrap_or(Json::Null));
        variables.entry("documents").or_insert(Json::Null);
        let source = without_generation_tags(self.pick(options.tools.is_some())?);
        let mut environment = environment();
        environment
            .add_template(DEFAULT, &source)
            .and_then(|()| {
                environment.get_template(DEFAULT)?.render(Value::from(Serde(&variables)))
            })
            .map_err(|error| failure(describe(&error)))
    }

    fn pick(&self, with_tools: bool) -> Result<&str> {
        let named = with_tools.then(|| self.sources.get(TOOL_USE)).flatten();
        named.or_else(|| self.sources.get(DEFAULT)).map(String::as_str).ok_or_else(|| {
            let names: Vec<&str> = self.sources.keys().map(String::as_str).collect();
            failure(format!("none of the templates is called `{DEFAULT}`: {}", names.join(", ")))
        })
    }
}

/// A conversation of one user message.
pub fn user_message(text: &str) -> Vec<Json> {
    vec![serde_json::json!({ "role": "user", "content": text })]
}

fn named_templates(field: Option<&Json>) -> Result<BTreeMap<String, String>> {
    let refuse = |what: &Json| failure(format!("`chat_template` holds {what}, expected text"));
    match field {
        None | Some(Json::Null) => Ok(BTreeMap::new()),
        Some(Json::String(source)) => Ok(BTreeMap::from([(DEFAULT.to_owned(), source.clone())])),
        Some(Json::Array(list)) => list
            .iter()
            .map(|entry| match (entry["name"].as_str(), entry["template"].as_str()) {
                (Some(name), Some(template)) => Ok((name.to_owned(), template.to_owned())),
                _ => Err(refuse(entry)),
            })
            .collect(),
        Some(other) => Err(refuse(other)),
    }
}

fn extra_templates(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut templates = BTreeMap::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(templates) };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "jinja")
            && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
        {
            templates.insert(name.to_owned(), read_text(&path)?);
        }
    }
    Ok(templates)
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Error::io(path, error))
}

/// A message's reasoning goes by three names; templates read any of them.
fn with_reasoning(message: &Json) -> Json {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let mut message = message.clone();
    let found = NAMES.iter().find_map(|name| message.get(name).filter(|v| !v.is_null()).cloned());
    if let (Some(reasoning), Some(fields)) = (found, message.as_object_mut()) {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".to_owned(), reasoning);
    }
    message
}

/// `{% generation %}` marks the assistant's text for training; for a prompt it is a plain block with its own
/// scope, which is what `with` is.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end];
        let name = inner.trim_matches(['-', '+']).trim();
        let replaced = match name {
            "generation" => inner.replace(name, "with"),
            "endgeneration" => inner.replace(name, "endwith"),
            _ => inner.to_owned(),
        };
        out.push_str("{%");
        out.push_str(&replaced);
        out.push_str("%}");
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

/// Jinja2 as transformers configures it.
fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", to_json);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function("strftime_now", strftime_now);
    // In Python text is a sequence and can be iterated over.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("iterable", |value: &Value| {
        value.kind() == ValueKind::String || value.try_iter().is_ok()
    });
    environment
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// `json.dumps` with transformers' defaults: nothing is escaped for HTML, non-ASCII stays.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let refuse = |error: String| minijinja::Error::new(ErrorKind::InvalidOperation, error);
    let json = serde_json::to_value(value).map_err(|error| refuse(error.to_string()))?;
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(refuse("tojson: separators takes two strings".to_owned())),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let dump = Dump {
        item,
        key,
        indent,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    dump.write(&json, 0, &mut out);
    Ok(out)
}

/// The arguments of Python's `json.dumps`.
struct Dump {
    item: String,
    key: String,
    indent: Option<usize>,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl Dump {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::Array(items) => {
                self.block(('[', ']'), items.iter(), depth, out, |this, item, out| {
                    this.write(item, depth + 1, out);
                });
            }
            Json::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if self.sort_keys {
                    fields.sort_by_key(|(key, _)| *key);
                }
                self.block(('{', '}'), fields.into_iter(), depth, out, |this, (key, item), out| {
                    this.text(key, out);
                    out.push_str(&this.key);
                    this.write(item, depth + 1, out);
                });
            }
            Json::String(text) => self.text(text, out),
            other => out.push_str(&other.to_string()),
        }
    }

    fn block<T>(
        &self,
        (open, close): (char, char),
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        out: &mut String,
        write: impl Fn(&Self, T, &mut String),
    ) {
        let is_empty = items.len() == 0;
        out.push(open);
        for (index, item) in items.enumerate() {
            if index > 0 {
                out.push_str(&self.item);
            }
            self.line(depth + 1, out);
            write(self, item, out);
        }
        if !is_empty {
            self.line(depth, out);
        }
        out.push(close);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.push_str(&" ".repeat(indent * depth));
        }
    }

    fn text(&self, text: &str, out: &mut String) {
        let quoted = Json::String(text.to_owned()).to_string();
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return;
        }
        for letter in quoted.chars() {
            if letter.is_ascii() {
                out.push(letter);
            } else {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

/// The message, with the template's own line: no source excerpt, which can be pages long.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

fn failure(reason: impl Into<String>) -> Error {
    Error::Template { reason: reason.into() }
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;

//! Chat templates, rendered as transformers renders them.
//!
//! A template is Jinja2 that comes with the checkpoint, written for Python; [`jinja`] runs it. Few models have
//! none and a renderer of their own in mlx-lm instead, chosen by `chat_template_type`.

mod deepseek_v32;
mod jinja;
mod json;
mod loops;
mod python;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jiff::Zoned;
use serde_json::{Map, Value as Json, json};

use crate::error::{Error, Result};
use crate::tokenizer::{Tokenizer, read_fields};

/// The template's name when a checkpoint has one only.
const DEFAULT: &str = "default";
/// The template that transformers takes when tools are given and the checkpoint has it.
const TOOL_USE: &str = "tool_use";
/// Values of `chat_template_type` whose model has a Jinja template all the same.
const TYPES_WITH_TEMPLATES: [&str; 1] = ["muse_spark"];

/// What one rendering gets besides the messages.
#[derive(Debug, Clone)]
pub struct ChatOptions {
    /// End with the header of the assistant's turn.
    pub add_generation_prompt: bool,
    /// JSON schemas of callable tools, as in the chat APIs.
    pub tools: Option<Vec<Json>>,
    /// Whether the model shall reason before it answers; `None` where it can.
    pub enable_thinking: Option<bool>,
    /// Further variables for the template; they win over all others.
    pub variables: Map<String, Json>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            tools: None,
            enable_thinking: None,
            variables: Map::new(),
        }
    }
}

/// The chat templates of a checkpoint.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    method: Method,
}

#[derive(Debug, Clone)]
enum Method {
    /// Jinja sources by name.
    Jinja(BTreeMap<String, String>),
    DeepseekV32,
}

impl ChatTemplate {
    /// Reads the templates: `chat_template.jinja`, with `additional_chat_templates/*.jinja` beside it, else
    /// `chat_template.json`, else `chat_template` in `tokenizer_config.json` (one, or a list of named ones). A
    /// `chat_template_type` in `tokenizer_config.json` comes before all of them, as in mlx-lm. `None` when
    /// there is nothing of this.
    ///
    /// # Errors
    /// `Io`, `Json`, `Template`, the latter also for a `chat_template_type` that is not known.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let mut sources = BTreeMap::new();
        let mut kind = None;
        for name in ["tokenizer_config.json", "chat_template.json"] {
            if let Some(fields) = read_fields(&folder.join(name))? {
                let own = named_templates(fields.get("chat_template"))?;
                if !own.is_empty() {
                    sources = own;
                }
                let named = fields.get("chat_template_type").and_then(Json::as_str);
                kind = kind.or_else(|| named.map(str::to_owned));
            }
        }
        let file = folder.join("chat_template.jinja");
        if file.exists() {
            sources = extra_templates(&folder.join("additional_chat_templates"))?;
            sources.insert(DEFAULT.to_owned(), read_text(&file)?);
        }
        let method = match kind.as_deref() {
            Some("deepseek_v32") => Some(Method::DeepseekV32),
            Some(kind) if !TYPES_WITH_TEMPLATES.contains(&kind) => {
                return Err(failure(format!(
                    "chat_template_type `{kind}` in {} is not known; known: deepseek_v32; \
                     remove it to use the checkpoint's template, or give a prompt without one",
                    folder.join("tokenizer_config.json").display()
                )));
            }
            _ => (!sources.is_empty()).then_some(Method::Jinja(sources)),
        };
        Ok(method.map(|method| Self { method }))
    }

    /// One template from its source.
    pub fn from_source(source: impl Into<String>) -> Self {
        Self { method: Method::Jinja(BTreeMap::from([(DEFAULT.to_owned(), source.into())])) }
    }

    /// The prompt's text for a conversation.
    ///
    /// - `messages`: objects with `role` and `content`, as in the chat APIs; see [`message`]
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
        let mut options = options.clone();
        options.enable_thinking.get_or_insert(tokenizer.has_thinking());
        if tokenizer.sorts_tools() {
            options.tools = options.tools.map(|tools| tools.iter().map(sorted).collect());
        }
        self.render_at(messages, tokenizer.special_tokens(), &options, &Zoned::now())
    }

    fn render_at(
        &self,
        messages: &[Json],
        special_tokens: &BTreeMap<String, String>,
        options: &ChatOptions,
        now: &Zoned,
    ) -> Result<String> {
        let sources = match &self.method {
            Method::Jinja(sources) => sources,
            Method::DeepseekV32 => {
                return deepseek_v32::render(messages, options).map_err(failure);
            }
        };
        let mut variables: Map<String, Json> =
            special_tokens.iter().map(|(role, token)| (role.clone(), json!(token))).collect();
        if let Some(thinking) = options.enable_thinking {
            variables.insert("enable_thinking".to_owned(), thinking.into());
        }
        variables.insert("documents".to_owned(), Json::Null);
        variables.extend(options.variables.clone());
        variables.insert("messages".to_owned(), messages.iter().map(with_reasoning).collect());
        variables.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        variables.insert("tools".to_owned(), json!(options.tools));
        let source = pick(sources, options.tools.is_some())?;
        jinja::render(source, &variables, now).map_err(failure)
    }
}

/// The template that transformers takes.
fn pick(sources: &BTreeMap<String, String>, with_tools: bool) -> Result<&str> {
    let named = with_tools.then(|| sources.get(TOOL_USE)).flatten();
    named.or_else(|| sources.get(DEFAULT)).map(String::as_str).ok_or_else(|| {
        let names: Vec<&str> = sources.keys().map(String::as_str).collect();
        failure(format!("none of the templates is called `{DEFAULT}`: {}", names.join(", ")))
    })
}

/// A message of a conversation.
///
/// - `role`: `system`, `user`, `assistant` or `tool`, as the template knows them
pub fn message(role: &str, content: &str) -> Json {
    json!({ "role": role, "content": content })
}

/// A conversation that begins: what the user says, after instructions if there are any.
pub fn conversation(system: Option<&str>, user: &str) -> Vec<Json> {
    system.map(|text| message("system", text)).into_iter().chain([message("user", user)]).collect()
}

/// A conversation of one user message.
pub fn user_message(text: &str) -> Vec<Json> {
    conversation(None, text)
}

/// The value with the keys of all its objects in order.
fn sorted(value: &Json) -> Json {
    match value {
        Json::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            Json::Object(fields.into_iter().collect())
        }
        Json::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
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

fn failure(reason: impl Into<String>) -> Error {
    Error::Template { reason: reason.into() }
}

#[cfg(test)]
mod tests;

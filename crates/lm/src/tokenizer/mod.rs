//! Text to token ids and back, as transformers and mlx-lm do it: `tokenizer.json` (or Kimi's `tiktoken.model`)
//! runs, `tokenizer_config.json` names the special tokens.

mod tiktoken;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Larger files are hostile: the biggest published vocabulary takes 35 MB.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Pairs of tokens that mark a reasoning section; mlx-lm turns `enable_thinking` on when the vocabulary has one.
const THINKING_MARKS: [(&str, &str); 4] = [
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|channel>", "<channel|>"),
];

/// A checkpoint's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    special: BTreeMap<String, String>,
    is_tiktoken: bool,
}

impl Tokenizer {
    /// Whether the folder has a tokenizer; random checkpoints have none.
    pub fn exists(folder: &Path) -> bool {
        ["tokenizer.json", tiktoken::FILE].iter().any(|name| folder.join(name).is_file())
    }

    /// Reads `tokenizer.json`, or `tiktoken.model` where there is no such file, and the special tokens' names
    /// from `tokenizer_config.json` or `special_tokens_map.json`.
    ///
    /// # Errors
    /// `Io`, `Json`, `Tokenizer`.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut path = folder.join("tokenizer.json");
        let ranks = folder.join(tiktoken::FILE);
        let is_tiktoken = !path.exists() && ranks.exists();
        let inner = if is_tiktoken {
            path = ranks;
            load_tiktoken(folder, &path)?
        } else {
            load_json(&path)?
        };
        let mut special = BTreeMap::new();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            if let Some(fields) = read_fields(&folder.join(name))? {
                collect_special(&fields, &mut special);
            }
        }
        Ok(Self { inner, path, special, is_tiktoken })
    }

    /// Token ids of `text`.
    ///
    /// - `add_special_tokens`: let `tokenizer.json` add what it adds around a sequence, such as BOS
    ///
    /// # Errors
    /// `Tokenizer`.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|error| failure(&self.path, error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a prompt as mlx-lm takes it: with special tokens, unless the text already begins with BOS.
    ///
    /// # Errors
    /// `Tokenizer`.
    /// # Source
    /// mlx-lm `generate.py` (`stream_generate`).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let has_bos = self.special("bos_token").is_some_and(|bos| text.starts_with(bos));
        self.encode(text, !has_bos)
    }

    /// Text of a whole sequence, special tokens included. Ids outside the vocabulary yield nothing.
    ///
    /// # Errors
    /// `Tokenizer`.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|error| failure(&self.path, error.to_string()))
    }

    /// The token of a role: `bos_token`, `eos_token`, `pad_token`, ...
    pub fn special(&self, role: &str) -> Option<&str> {
        self.special.get(role).map(String::as_str)
    }

    /// All roles and their tokens, as chat templates receive them.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.special
    }

    /// Ids that end generation: those of the model's configuration, and the tokenizer's own EOS.
    ///
    /// - `config`: `ModelConfig::eos_token_ids`
    pub fn eos_token_ids(&self, config: &[u32]) -> Vec<u32> {
        let mut ids = config.to_vec();
        let own = self.special("eos_token").and_then(|token| self.token_to_id(token));
        ids.extend(own.filter(|id| !config.contains(id)));
        ids
    }

    /// The id of a token, by its exact text in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of ids, added tokens included. A model's embedding may be padded to more.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether the vocabulary marks reasoning sections, the default of `enable_thinking` in chat templates.
    pub fn has_thinking(&self) -> bool {
        let has = |token: &str| self.token_to_id(token).is_some();
        THINKING_MARKS.iter().any(|(start, end)| has(start) && has(end))
    }

    /// Whether chat templates get tools with their keys in order: Kimi's Python tokenizer sorts them.
    pub(crate) fn sorts_tools(&self) -> bool {
        self.is_tiktoken
    }

    /// `tokenizer.json`'s decoder section, by which the detokenizer picks its method.
    pub(crate) fn decoder_json(&self) -> Value {
        let decoder = self.inner.get_decoder();
        decoder.and_then(|decoder| serde_json::to_value(decoder).ok()).unwrap_or(Value::Null)
    }
}

fn load_json(path: &Path) -> Result<tokenizers::Tokenizer> {
    let text = read_capped(path)?;
    let refuse = |error: tokenizers::Error| failure(path, error.to_string());
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(&text).map_err(refuse)?;
    // A file saved after training may still pad or truncate; transformers ignores both here.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(refuse)?;
    Ok(tokenizer)
}

fn load_tiktoken(folder: &Path, path: &Path) -> Result<tokenizers::Tokenizer> {
    let ranks = String::from_utf8(read_capped(path)?)
        .map_err(|_| failure(path, "is no text; expected lines of base64 and rank"))?;
    let config = read_fields(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    tiktoken::tokenizer(&ranks, &config).map_err(|reason| failure(path, reason))
}

/// Reads at most [`MAX_FILE_BYTES`].
fn read_capped(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
    if size > MAX_FILE_BYTES {
        return Err(failure(path, format!("{size} bytes; at most {MAX_FILE_BYTES} are read")));
    }
    fs::read(path).map_err(|error| Error::io(path, error))
}

/// The object in a JSON file; `None` without the file.
pub(crate) fn read_fields(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    serde_json::from_slice(&read_capped(path)?)
        .map(Some)
        .map_err(|error| Error::Json { path: path.to_owned(), reason: error.to_string() })
}

/// Takes every `*_token` field: a string, or an object with the string under `content`.
fn collect_special(fields: &Map<String, Value>, into: &mut BTreeMap<String, String>) {
    for (role, value) in fields.iter().filter(|(role, _)| role.ends_with("_token")) {
        let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
        if let Some(text) = text {
            into.insert(role.clone(), text.to_owned());
        }
    }
}

fn failure(path: &Path, reason: impl Into<String>) -> Error {
    Error::Tokenizer { path: path.to_owned(), reason: reason.into() }
}

#[cfg(test)]
pub(crate) mod tests;

//! `config.json` and `generation_config.json`, read with errors that name file and field.

mod numbers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

pub use crate::quantization::QuantizationConfig;
pub use numbers::{Count, Finite, Positive, Size, count, size, whole, yes};

/// Where a configuration that wraps a text model keeps that model's fields.
const TEXT_CONFIG: &str = "text_config";
/// The field with the tokens that end generation.
const EOS: &str = "eos_token_id";

/// Keys that transformers writes for every model, and those that are read elsewhere.
const COMMON_KEYS: &[&str] = &[
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "quantization",
    "quantization_config",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// A model's fields of `config.json`: a struct that derives `Deserialize`, with the file's keys as names.
pub trait Fields: DeserializeOwned {
    /// Fields that count at the top level, even where a `text_config` has them too.
    const TOP_LEVEL: &'static [&'static str] = &[];

    /// Fields whose `null` says something else than their absence.
    const NULLS: &'static [&'static str] = &[];
    /// What fields are that are not there, as JSON. A field that is `null` is absent, but has no default.
    const DEFAULTS: &'static [(&'static str, &'static str)] = &[];

    /// Fields that the reference implementation reads past, whatever they say.
    const UNUSED: &'static [&'static str] = &[];

    /// Fields that it reads past and what it takes them to be, as JSON. The user is told where they are anything else.
    const ASSUMED: &'static [(&'static str, &'static str)] = &[];

    /// Fields that the type has for other families: of this one, they are unknown.
    const FOREIGN: &'static [&'static str] = &[];

    /// Checks what one field cannot know of another; [`ModelConfig::error`] makes the error.
    ///
    /// # Errors
    /// `Config`.
    fn check(&self, _config: &ModelConfig) -> Result<()> {
        Ok(())
    }
}

/// A checkpoint's configuration: what every model needs, plus the raw fields for its own [`Fields`].
#[derive(Debug, Clone)]
pub struct ModelConfig {
    path: PathBuf,
    fields: Map<String, Value>,
    /// Fields that [`parse`](Self::parse) met and that the model does not know.
    unknown: OnceLock<Vec<String>>,
    /// Names the architecture, and so the file in `models/`.
    pub model_type: String,
    /// How weights are quantised; `None` for a dense checkpoint.
    pub quantization: Option<QuantizationConfig>,
    /// Tokens that end generation; `generation_config.json` wins over `config.json`. Empty when neither names one.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads `config.json`, and `generation_config.json` where there is one, from a checkpoint folder.
    ///
    /// # Errors
    /// `Io`, `Json`, `Config`.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let fields = read_object(&path)?;
        let generation = read_generation(dir)?;
        Self::from_fields(path, fields, generation.as_ref())
    }

    /// Builds the configuration from parsed JSON; `path` is used in messages.
    ///
    /// # Errors
    /// `Config`.
    pub fn from_fields(
        path: impl Into<PathBuf>,
        fields: Map<String, Value>,
        generation: Option<&Map<String, Value>>,
    ) -> Result<Self> {
        let mut config = Self {
            path: path.into(),
            fields,
            unknown: OnceLock::new(),
            model_type: String::new(),
            quantization: None,
            eos_token_ids: Vec::new(),
        };
        let model_type = config.get("model_type");
        let model_type = model_type.ok_or_else(|| config.error("model_type", "is missing"))?;
        config.model_type = match model_type.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let reason = format!("is {}, expected a string", shown(model_type));
                return Err(config.error("model_type", reason));
            }
        };
        config.quantization = QuantizationConfig::read(&config)?;
        config.eos_token_ids = config.read_eos(generation)?;
        Ok(config)
    }

    /// The file the fields came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The raw value of a top-level field; `null` counts as absent.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Every top-level field, as it stands in the file.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The `eos_token_id` of a folder's `generation_config.json` where it counts, as it stands there.
    pub(crate) fn generation_eos(dir: &Path) -> Result<Option<Value>> {
        let eos = read_generation(dir)?.and_then(|fields| fields.get(EOS).cloned());
        Ok(eos.filter(is_truthy))
    }

    /// An error about one field.
    pub fn error(&self, field: &str, reason: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), field: field.to_owned(), reason: reason.into() }
    }

    /// The number of token ids.
    ///
    /// # Errors
    /// `Config` when it is missing or no whole number from 1.
    pub fn vocab_size(&self) -> Result<u32> {
        #[derive(serde::Deserialize)]
        struct Vocab {
            vocab_size: Size,
        }
        impl Fields for Vocab {
            const TOP_LEVEL: &'static [&'static str] = &["vocab_size"];
        }
        let (vocab, _) = self.read::<Vocab>(&[])?;
        Ok(vocab.vocab_size.unsigned_abs())
    }

    /// Reads and checks a model's fields: those of `text_config` where there is one. `null` counts as absent.
    ///
    /// # Errors
    /// `Config` with file, field, what arrived and what is allowed.
    pub fn parse<T: Fields>(&self) -> Result<T> {
        self.parse_or::<T>(&[])
    }

    /// The same with values for fields that are absent.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_or<T: Fields>(&self, defaults: &[(&str, Value)]) -> Result<T> {
        let (fields, unknown) = self.read::<T>(defaults)?;
        fields.check(self)?;
        self.unknown.get_or_init(|| unknown);
        Ok(fields)
    }

    /// The fields that the model does not know, dotted where nested, but for those that every configuration has and
    /// those that are `null` or `false`. Empty before the model was loaded.
    pub fn unknown_fields(&self) -> &[String] {
        self.unknown.get().map_or(&[], Vec::as_slice)
    }

    fn read<T: Fields>(&self, defaults: &[(&str, Value)]) -> Result<(T, Vec<String>)> {
        let nested = self.get(TEXT_CONFIG).and_then(Value::as_object);
        if let (Some(value), None) = (self.get(TEXT_CONFIG), nested) {
            return Err(self.error(TEXT_CONFIG, format!("is {}, expected an object", shown(value))));
        }
        let mut section = nested.unwrap_or(&self.fields).clone();
        if nested.is_some() {
            for field in T::TOP_LEVEL {
                if let Some(value) = self.get(field) {
                    section.insert((*field).to_owned(), value.clone());
                }
            }
        }
        for (field, default) in T::DEFAULTS {
            if !section.contains_key(*field) {
                section.insert((*field).to_owned(), self.json(field, default)?);
            }
        }
        section.retain(|field, value| !value.is_null() || T::NULLS.contains(&field.as_str()));
        for (field, value) in defaults {
            section.entry(*field).or_insert_with(|| value.clone());
        }
        let section = Value::Object(section);
        let mut assumed = BTreeMap::new();
        for (field, value) in T::ASSUMED {
            assumed.insert(*field, self.json(field, value)?);
        }
        let is_silent = |path: &str| {
            if let Some(assumed) = assumed.get(path) {
                return section.get(path).is_some_and(|value| is_same(value, assumed));
            }
            COMMON_KEYS.contains(&path)
                || T::UNUSED.contains(&path)
                || section.pointer(&format!("/{}", path.replace('.', "/")))
                    == Some(&Value::Bool(false))
        };
        let named = |path: String| match nested {
            Some(_) if !T::TOP_LEVEL.contains(&path.as_str()) => format!("{TEXT_CONFIG}.{path}"),
            _ => path,
        };
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(&section, &mut track);
        let parsed = serde_ignored::deserialize(deserializer, |path| {
            // serde_ignored writes `?` for the inside of an `Option`
            let path = path.to_string().replace(".?", "");
            if !is_silent(&path) {
                unknown.push(named(path));
            }
        });
        let foreign = T::FOREIGN.iter().filter(|field| section.get(field).is_some());
        unknown.extend(foreign.map(|field| named((*field).to_owned())));
        match parsed {
            Ok(fields) => Ok((fields, unknown)),
            Err(error) => {
                let (field, reason) = explain(&section, &track.path().to_string(), &error);
                Err(self.error(&named(field), reason))
            }
        }
    }

    /// A value that the source of a model states for a field.
    fn json(&self, field: &str, text: &str) -> Result<Value> {
        serde_json::from_str(text).map_err(|_| self.error(field, format!("stands for `{text}`")))
    }

    fn read_eos(&self, generation: Option<&Map<String, Value>>) -> Result<Vec<u32>> {
        let generation = generation.and_then(|g| g.get(EOS)).filter(|v| is_truthy(v));
        let Some(value) = generation.or(self.get(EOS)) else { return Ok(Vec::new()) };
        let token = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        match value {
            Value::Array(list) => list.iter().map(token).collect(),
            single => token(single).map(|t| vec![t]),
        }
        .ok_or_else(|| {
            let reason = format!("is {}, expected a token id or a list of them", shown(value));
            self.error(EOS, reason)
        })
    }
}

/// Field and reason of what serde says about the value at `path`.
fn explain(section: &Value, path: &str, error: &serde_json::Error) -> (String, String) {
    let error = error.to_string();
    let below = |name: &str| if path == "." { name.to_owned() } else { format!("{path}.{name}") };
    let missing = error.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    if let Some(name) = missing {
        return (below(name), "is missing".to_owned());
    }
    // serde_path_to_error writes `a.b[2]`
    let pointer = format!("/{}", path.replace(']', "").replace(['.', '['], "/"));
    let got = section.pointer(&pointer).map_or_else(|| "what it is".to_owned(), shown);
    let expected = error.strip_prefix("expected ");
    let reason = match expected.or(error.split_once(", expected ").map(|(_, expected)| expected)) {
        Some(expected) => format!("is {got}, expected {expected}"),
        None => format!("is {got}: {error}"),
    };
    (path.to_owned(), reason)
}

/// A value as messages show it: its JSON, cut where it is long.
pub(crate) fn shown(value: &Value) -> String {
    const MOST: usize = 80;
    let mut text = value.to_string();
    if let Some((at, _)) = text.char_indices().nth(MOST) {
        text.truncate(at);
        text.push_str("...");
    }
    text
}

/// Whether two values are equal, numbers by what they are worth.
fn is_same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a))
}

/// Python's notion of a value that counts: mlx-lm lets the generation config's id win only then.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

/// Reads `generation_config.json` as mlx-lm does: none is needed, and one that does not parse is skipped.
fn read_generation(dir: &Path) -> Result<Option<Map<String, Value>>> {
    match read_object(&dir.join("generation_config.json")) {
        Ok(fields) => Ok(Some(fields)),
        Err(Error::Json { .. }) => Ok(None),
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a JSON file whose top level is an object.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let reason = match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => return Ok(map),
        Ok(_) => "the top level is no object".to_owned(),
        Err(e) => match non_finite_literal(&text, &e) {
            Some(literal) => {
                format!("line {} holds {literal}, which JSON does not have", e.line())
            }
            None => e.to_string(),
        },
    };
    Err(Error::Json { path: path.to_owned(), reason })
}

/// The literal that Python's writer emits for a number that is not finite, when parsing stopped at one.
fn non_finite_literal(text: &str, error: &serde_json::Error) -> Option<&'static str> {
    let line = text.lines().nth(error.line().checked_sub(1)?)?;
    let at = error.column().saturating_sub(2);
    let rest = line.get(at..).unwrap_or(line);
    ["-Infinity", "Infinity", "NaN"].into_iter().find(|literal| rest.contains(literal))
}

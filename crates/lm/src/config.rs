//! `config.json` and `generation_config.json`, read with errors that name file and field.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mlx::quantization::{Mode, Quantization};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A checkpoint's configuration: what every model needs, plus the raw fields for its own `Config`.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    path: PathBuf,
    fields: Map<String, Value>,
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
        let generation = dir.join("generation_config.json");
        // mlx-lm skips a generation config that does not parse; an unreadable one is an error here too.
        let generation = if generation.exists() { read_object(&generation).ok() } else { None };
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
            model_type: String::new(),
            quantization: None,
            eos_token_ids: Vec::new(),
        };
        config.model_type = config.text("model_type")?.to_owned();
        config.quantization = config.read_quantization()?;
        config.eos_token_ids = config.read_eos(generation)?;
        Ok(config)
    }

    /// The file the fields came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The raw value of a field; `null` counts as absent.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// An error about one field.
    pub fn error(&self, field: &str, reason: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), field: field.to_owned(), reason: reason.into() }
    }

    fn require(&self, field: &str) -> Result<&Value> {
        self.get(field).ok_or_else(|| self.error(field, "is missing"))
    }

    /// A string field.
    ///
    /// # Errors
    /// `Config` when it is missing or no string.
    pub fn text(&self, field: &str) -> Result<&str> {
        let value = self.require(field)?;
        value.as_str().ok_or_else(|| self.error(field, format!("is {value}, expected a string")))
    }

    /// A boolean field.
    ///
    /// # Errors
    /// `Config` when it is missing or no boolean.
    pub fn flag(&self, field: &str) -> Result<bool> {
        let value = self.require(field)?;
        value
            .as_bool()
            .ok_or_else(|| self.error(field, format!("is {value}, expected true or false")))
    }

    /// A whole number within `at_least..=i32::MAX`.
    ///
    /// # Errors
    /// `Config` when it is missing, no whole number, or out of range.
    pub fn count(&self, field: &str, at_least: i32) -> Result<i32> {
        let value = self.require(field)?;
        value.as_i64().and_then(|n| i32::try_from(n).ok()).filter(|n| *n >= at_least).ok_or_else(
            || self.error(field, format!("is {value}, expected a whole number from {at_least}")),
        )
    }

    /// A finite number above zero.
    ///
    /// # Errors
    /// `Config` when it is missing, no number, not finite, or not positive.
    pub fn positive(&self, field: &str) -> Result<f32> {
        let value = self.require(field)?;
        value
            .as_f64()
            .map(|x| x as f32)
            .filter(|x| x.is_finite() && *x > 0.0)
            .ok_or_else(|| self.error(field, format!("is {value}, expected a number above zero")))
    }

    /// A list of whole numbers from zero.
    ///
    /// # Errors
    /// `Config` when it is missing or holds anything else.
    pub fn counts(&self, field: &str) -> Result<Vec<i32>> {
        let value = self.require(field)?;
        value
            .as_array()
            .and_then(|list| {
                list.iter()
                    .map(|n| n.as_i64().and_then(|n| i32::try_from(n).ok()).filter(|n| *n >= 0))
                    .collect()
            })
            .ok_or_else(|| {
                self.error(field, format!("is {value}, expected a list of layer numbers"))
            })
    }

    fn read_eos(&self, generation: Option<&Map<String, Value>>) -> Result<Vec<u32>> {
        const FIELD: &str = "eos_token_id";
        let generation = generation.and_then(|g| g.get(FIELD)).filter(|v| is_truthy(v));
        let Some(value) = generation.or(self.get(FIELD)) else { return Ok(Vec::new()) };
        let token = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        match value {
            Value::Array(list) => list.iter().map(token).collect(),
            single => token(single).map(|t| vec![t]),
        }
        .ok_or_else(|| {
            self.error(FIELD, format!("is {value}, expected a token id or a list of them"))
        })
    }

    fn read_quantization(&self) -> Result<Option<QuantizationConfig>> {
        if let Some(value) = self.get("quantization") {
            return QuantizationConfig::parse(self, "quantization", value).map(Some);
        }
        let Some(value) = self.get("quantization_config") else { return Ok(None) };
        let field = "quantization_config";
        let Some(method) = value.get("quant_method") else {
            return QuantizationConfig::parse(self, field, value).map(Some);
        };
        let default = match method.as_str() {
            Some("mxfp4") => Quantization::default_of(Mode::Mxfp4),
            Some("mxfp8") => Quantization::default_of(Mode::Mxfp8),
            _ => {
                let reason = format!("is {method}; convert the checkpoint with mlx-lm first");
                return Err(self.error("quantization_config.quant_method", reason));
            }
        };
        Ok(Some(QuantizationConfig { default, overrides: BTreeMap::new() }))
    }
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

/// The checkpoint's quantisation: one default and exceptions by module path.
#[derive(Debug, Clone)]
pub struct QuantizationConfig {
    /// The global setting.
    pub default: Quantization,
    /// Exceptions by module path; `None` leaves that module dense.
    pub overrides: BTreeMap<String, Option<Quantization>>,
}

impl QuantizationConfig {
    fn parse(config: &ModelConfig, field: &str, value: &Value) -> Result<Self> {
        let Some(map) = value.as_object() else {
            return Err(config.error(field, format!("is {value}, expected an object")));
        };
        for key in ["group_size", "bits"] {
            if !map.contains_key(key) {
                return Err(config.error(&format!("{field}.{key}"), "is missing"));
            }
        }
        let default = parse_setting(config, field, map)?;
        let mut overrides = BTreeMap::new();
        for (path, value) in map {
            let setting = match value {
                Value::Bool(true) => Some(default),
                Value::Bool(false) => None,
                Value::Object(own) => Some(parse_setting(config, &format!("{field}.{path}"), own)?),
                // group_size, bits, mode and what other tools leave beside them
                _ => continue,
            };
            overrides.insert(path.clone(), setting);
        }
        Ok(Self { default, overrides })
    }
}

fn parse_setting(
    config: &ModelConfig,
    field: &str,
    map: &Map<String, Value>,
) -> Result<Quantization> {
    let mode = match map.get("mode").filter(|v| !v.is_null()) {
        None => Mode::Affine,
        Some(value) => value.as_str().and_then(Mode::from_name).ok_or_else(|| {
            let reason = format!("is {value}, expected affine, mxfp4, mxfp8 or nvfp4");
            config.error(&format!("{field}.mode"), reason)
        })?,
    };
    let number = |key: &str, default: i32| -> Result<i32> {
        match map.get(key).filter(|v| !v.is_null()) {
            None => Ok(default),
            Some(value) => value.as_i64().and_then(|n| i32::try_from(n).ok()).ok_or_else(|| {
                let reason = format!("is {value}, expected a whole number");
                config.error(&format!("{field}.{key}"), reason)
            }),
        }
    };
    let setting = Quantization {
        group_size: number("group_size", mode.default_group_size())?,
        bits: number("bits", mode.default_bits())?,
        mode,
    };
    if is_valid(setting) {
        return Ok(setting);
    }
    let reason = format!(
        "asks for {} bits in groups of {} ({}); MLX has affine with 2, 3, 4, 5, 6 or 8 bits in groups of 32, \
         64 or 128, mxfp4 with 4 bits in 32, mxfp8 with 8 in 32, nvfp4 with 4 in 16",
        setting.bits, setting.group_size, setting.mode,
    );
    Err(config.error(field, reason))
}

/// Whether MLX has kernels for the setting.
pub(crate) fn is_valid(setting: Quantization) -> bool {
    match setting.mode {
        Mode::Affine => {
            [2, 3, 4, 5, 6, 8].contains(&setting.bits)
                && [32, 64, 128].contains(&setting.group_size)
        }
        mode => setting == Quantization::default_of(mode),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<ModelConfig> {
        let Value::Object(fields) = value else { panic!("not an object") };
        ModelConfig::from_fields("config.json", fields, None)
    }

    fn message(value: Value) -> String {
        parse(value).unwrap_err().to_string()
    }

    #[test]
    fn model_type_missing_names_file_and_field() {
        assert_eq!(message(json!({})), "config.json: field `model_type` is missing");
        assert!(message(json!({"model_type": 3})).contains("is 3, expected a string"));
    }

    #[test]
    fn count_rejects_negative_zero_huge_and_fractional() {
        for bad in [json!(-1), json!(0), json!(1_i64 << 40), json!(1.5), json!("8"), json!(true)] {
            let config = parse(json!({"model_type": "x", "n": bad})).unwrap();
            assert!(config.count("n", 1).is_err(), "{bad}");
        }
        assert_eq!(parse(json!({"model_type": "x", "n": 8})).unwrap().count("n", 1).unwrap(), 8);
    }

    #[test]
    fn positive_rejects_zero_overflow_and_null() {
        for bad in [json!(0.0), json!(-1e-6), json!(1e300), Value::Null, json!("NaN")] {
            let config = parse(json!({"model_type": "x", "eps": bad})).unwrap();
            assert!(config.positive("eps").is_err(), "{bad}");
        }
    }

    #[test]
    fn non_finite_literals_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for literal in ["NaN", "Infinity", "-Infinity"] {
            let text = format!("{{\n \"model_type\": \"x\",\n \"rms_norm_eps\": {literal}\n}}");
            fs::write(dir.path().join("config.json"), text).unwrap();
            let message = ModelConfig::load(dir.path()).unwrap_err().to_string();
            assert!(message.contains(&format!("line 3 holds {literal}")), "{message}");
        }
    }

    #[test]
    fn eos_follows_mlx_lm_precedence() {
        let fields = |eos: Value| {
            json!({"model_type": "x", "eos_token_id": eos}).as_object().unwrap().clone()
        };
        let eos = |own: Value, generation: Value| {
            let generation = json!({"eos_token_id": generation}).as_object().unwrap().clone();
            ModelConfig::from_fields("c", fields(own), Some(&generation)).unwrap().eos_token_ids
        };
        assert_eq!(eos(json!(7), json!([1, 2])), [1, 2]);
        assert_eq!(eos(json!([7, 8]), json!(3)), [3]);
        // falsy in Python: config.json's stays
        assert_eq!(eos(json!(7), json!(0)), [7]);
        assert_eq!(eos(json!(7), json!([])), [7]);
        assert_eq!(eos(Value::Null, Value::Null), [0_u32; 0]);
        assert!(parse(json!({"model_type": "x", "eos_token_id": -1})).is_err());
        assert!(parse(json!({"model_type": "x", "eos_token_id": "</s>"})).is_err());
    }

    #[test]
    fn quantization_reads_default_and_overrides() {
        let config = parse(json!({"model_type": "x", "quantization": {
            "group_size": 64, "bits": 4, "mode": "affine",
            "a.gate": {"group_size": 32, "bits": 8}, "b": false, "c": true}}))
        .unwrap();
        let q = config.quantization.unwrap();
        assert_eq!((q.default.group_size, q.default.bits), (64, 4));
        assert_eq!(q.overrides["a.gate"].unwrap().bits, 8);
        assert!(q.overrides["b"].is_none());
        assert_eq!(q.overrides["c"].unwrap().bits, 4);
        assert_eq!(q.overrides.len(), 3);
    }

    #[test]
    fn quantization_reads_config_key_and_method() {
        let config = |q| parse(json!({"model_type": "x", "quantization_config": q}));
        let q = config(json!({"group_size": 32, "bits": 6})).unwrap().quantization.unwrap();
        assert_eq!((q.default.group_size, q.default.bits), (32, 6));
        let q = config(json!({"quant_method": "mxfp4"})).unwrap().quantization.unwrap();
        assert_eq!(q.default.mode, Mode::Mxfp4);
        assert!(config(json!({"quant_method": "fp8"})).is_err());
    }

    #[test]
    fn quantization_rejects_what_mlx_lacks() {
        for bad in [
            json!({"group_size": 64}),
            json!({"bits": 4}),
            json!({"group_size": 48, "bits": 4}),
            json!({"group_size": 64, "bits": 7}),
            json!({"group_size": 64, "bits": -4}),
            json!({"group_size": 64, "bits": "4"}),
            json!({"group_size": 64, "bits": 4, "mode": "mxfp4"}),
            json!({"group_size": 64, "bits": 4, "mode": "int4"}),
            json!({"group_size": 64, "bits": 4, "model.norm": {"bits": 1}}),
            json!(4),
        ] {
            let result = parse(json!({"model_type": "x", "quantization": bad}));
            assert!(matches!(result, Err(Error::Config { .. })), "{bad}");
        }
    }
}

//! How a checkpoint's weights are quantised: what config.json says, and what shapes imply.

use std::collections::BTreeMap;

use mlx::Dtype;
use mlx::quantization::{Mode, Quantization};
use serde_json::{Map, Value, json};

use crate::config::{ModelConfig, shown};
use crate::error::Result;

/// What MLX has kernels for, in words.
pub(crate) const KNOWN: &str = "MLX has affine with 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128, mxfp4 with \
                                4 bits in 32, mxfp8 with 8 in 32, nvfp4 with 4 in 16";

/// What to do about a format that nothing here reads.
const CONVERT_FIRST: &str = "known are MLX's own, mxfp4, mxfp8, fp8 and compressed-tensors (pack-quantized, \
                             mxfp4-pack-quantized, nvfp4-pack-quantized); take the dense checkpoint instead";

/// The key, and the end of the tensors' names, of what newer releases of mlx-lm have beside nvfp4.
const GLOBAL_SCALE: &str = "global_scale";
/// What that is, and what to do about it.
const SCALES_OF_EXPERTS: &str = "a scale for each expert beside those of its groups, which no product here applies; take an \
                                 nvfp4 checkpoint without them, or `zmlx convert --mode nvfp4` the dense one";

/// The checkpoint's quantisation: one default and exceptions by module path.
#[derive(Debug, Clone)]
pub struct QuantizationConfig {
    /// The global setting.
    pub default: Quantization,
    /// Exceptions by module path; `None` leaves that module dense.
    pub overrides: BTreeMap<String, Option<Quantization>>,
}

impl QuantizationConfig {
    /// Reads `quantization`, else `quantization_config` in MLX's or Hugging Face's spelling.
    pub(crate) fn read(config: &ModelConfig) -> Result<Option<Self>> {
        if let Some(value) = config.get("quantization") {
            return Self::parse(config, "quantization", value).map(Some);
        }
        let field = "quantization_config";
        let nested = || config.get("text_config")?.get(field).filter(|value| !value.is_null());
        let Some(value) = config.get(field).or_else(nested) else { return Ok(None) };
        if value.get("quant_method").is_none() {
            return Self::parse(config, field, value).map(Some);
        }
        let default = hugging_face(value).map_err(|(key, reason)| {
            config.error(&format!("{field}.{key}"), format!("{reason}; {CONVERT_FIRST}"))
        })?;
        Ok(default.map(|default| Self { default, overrides: BTreeMap::new() }))
    }

    fn parse(config: &ModelConfig, field: &str, value: &Value) -> Result<Self> {
        let Some(map) = value.as_object() else {
            return Err(config.error(field, format!("is {}, expected an object", shown(value))));
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

/// What Hugging Face's spelling of a quantization stands for, where weights stay packed; `None` where the family's rules
/// unpack them.
///
/// # Errors
/// The key that says something unknown, and what is wrong with it.
/// # Source
/// mlx-lm `utils.py` (`load_model`).
fn hugging_face(
    value: &Value,
) -> std::result::Result<Option<Quantization>, (&'static str, String)> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let got = |key| (key, format!("is {}", shown(&value[key])));
    Ok(Some(match text("quant_method") {
        "mxfp4" => Quantization::default_of(Mode::Mxfp4),
        "mxfp8" => Quantization::default_of(Mode::Mxfp8),
        // powers of two for each 32 by 32
        "fp8" if text("scale_fmt") == "ue8m0" && value["weight_block_size"] == json!([32, 32]) => {
            Quantization::default_of(Mode::Mxfp8)
        }
        "fp8" => return Ok(None),
        "compressed-tensors" => match text("format") {
            "nvfp4-pack-quantized" => Quantization::default_of(Mode::Nvfp4),
            "mxfp4-pack-quantized" => Quantization::default_of(Mode::Mxfp4),
            "pack-quantized" => Quantization::affine(32, 4),
            _ => return Err(got("format")),
        },
        _ => return Err(got("quant_method")),
    }))
}

fn parse_setting(
    config: &ModelConfig,
    field: &str,
    map: &Map<String, Value>,
) -> Result<Quantization> {
    let mode = match map.get("mode").filter(|v| !v.is_null()) {
        None => Mode::Affine,
        Some(value) => value.as_str().and_then(Mode::from_name).ok_or_else(|| {
            let reason = format!("is {}, expected affine, mxfp4, mxfp8 or nvfp4", shown(value));
            config.error(&format!("{field}.mode"), reason)
        })?,
    };
    let number = |key: &str, default: i32| -> Result<i32> {
        match map.get(key).filter(|v| !v.is_null()) {
            None => Ok(default),
            Some(value) => value.as_i64().and_then(|n| i32::try_from(n).ok()).ok_or_else(|| {
                let reason = format!("is {}, expected a whole number", shown(value));
                config.error(&format!("{field}.{key}"), reason)
            }),
        }
    };
    if map.get(GLOBAL_SCALE).is_some_and(|v| !v.is_null() && *v != json!(false)) {
        let reason = format!("asks for {SCALES_OF_EXPERTS}");
        return Err(config.error(&format!("{field}.{GLOBAL_SCALE}"), reason));
    }
    let setting = Quantization {
        group_size: number("group_size", mode.default_group_size())?,
        bits: number("bits", mode.default_bits())?,
        mode,
    };
    if is_valid(setting) {
        return Ok(setting);
    }
    let Quantization { group_size, bits, mode } = setting;
    let reason = format!("asks for {bits} bits in groups of {group_size} ({mode}); {KNOWN}");
    Err(config.error(field, reason))
}

/// Why tensors that no layer takes make a checkpoint say something else than it would with them, where that is known.
///
/// # Source
/// mlx-lm 0.32.2, `switch_layers.py` (`QuantizedSwitchLinear`).
pub(crate) fn why_left(names: &[String]) -> Option<String> {
    let is_scale = |name: &&String| name.rsplit('.').next() == Some(GLOBAL_SCALE);
    let name = names.iter().find(is_scale)?;
    Some(format!("`{name}` is {SCALES_OF_EXPERTS}"))
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

/// The setting that a packed weight and its scales imply for `in_dims` columns, as mlx-lm infers it.
///
/// # Errors
/// In words, when it is none that MLX has.
/// # Source
/// mlx-lm `utils.py` (`infer_quant_config`).
pub(crate) fn infer(
    weight: &[i32],
    scales: &[i32],
    scales_dtype: Dtype,
    in_dims: i32,
) -> std::result::Result<Quantization, String> {
    let last = |shape: &[i32]| shape.last().copied().unwrap_or(1).max(1);
    let group_size = in_dims / last(scales);
    let bits = (i64::from(last(weight)) * 32 / i64::from(in_dims.max(1))) as i32;
    let mode = if scales_dtype != Dtype::U8 {
        Mode::Affine
    } else if (bits, group_size) == (4, 16) {
        Mode::Nvfp4
    } else if bits == 8 {
        Mode::Mxfp8
    } else {
        Mode::Mxfp4
    };
    let setting = Quantization { group_size, bits, mode };
    if is_valid(setting) {
        return Ok(setting);
    }
    Err(format!(
        "has a packed weight {weight:?} and scales {scales:?} ({scales_dtype}) for {in_dims} inputs: {bits} bits in \
         groups of {group_size} is no quantization that MLX has"
    ))
}

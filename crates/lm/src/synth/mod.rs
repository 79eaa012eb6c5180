//! Random-weight checkpoints in mlx-community layout, for measurements and tests at a model's real shapes.
//!
//! Weights are drawn directly in their packed form and written tensor by tensor, so a 17 GB checkpoint takes
//! little memory. Their scales are chosen so that the model behaves like one that was trained: activations keep
//! their size through the layers, routers choose among all experts, and greedy decoding visits many tokens.
//! Plain random initialisation does none of this, and a comparison of tokens on it would prove little.
//!
//! Which weights there are is asked of the model's own loader.

mod draft;
mod families;
mod recipe;
mod values;
mod write;

use std::path::Path;

use mlx::Dtype;
use mlx::quantization::{Mode, Quantization};
use serde_json::{Map, Value, json};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::models;
use crate::quantization::{self, is_valid};
use crate::weights::{Role, WeightRecord, Weights};

pub use draft::Draft;
use families::{FAMILIES, Family};
use recipe::{Spread, spread};
use write::Tensor;

/// Routers are kept at this precision whatever the rest has, as mlx-lm does.
const ROUTER_BITS: i32 = 8;
const ROUTER_GROUP_SIZE: i32 = 64;
/// More layers than any model has.
const MAX_LAYERS: usize = 1000;

/// What to write.
#[derive(Debug, Clone)]
pub struct SynthOptions {
    /// A name of [`names`].
    pub like: String,
    /// Decoder layers; `None` takes the model's own number.
    pub layers: Option<usize>,
    /// How weights are quantised; `None` writes bf16.
    pub quantization: Option<Quantization>,
    /// Seed of the random numbers. Same options, same bytes.
    pub seed: u64,
    /// Whether the weights are zeros that take no room on the disk: for what reads no weights.
    pub hollow: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthReport {
    /// Weight files.
    pub num_files: usize,
    /// Bytes of all weights.
    pub bytes: u64,
    /// Numbers that the weights stand for.
    pub num_parameters: u64,
    /// Decoder layers.
    pub num_layers: usize,
}

/// Names that [`SynthOptions::like`] can have.
pub fn names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.name)
}

/// Writes a checkpoint to the folder `out`, which is created and must hold nothing but an earlier, unfinished one.
///
/// - `on_bytes`: told how many bytes are written, and how many there will be
///
/// # Errors
/// `Argument`, `Io`.
pub fn synthesize(
    out: &Path,
    options: &SynthOptions,
    on_bytes: &mut dyn FnMut(u64, u64),
) -> Result<SynthReport> {
    let family = find(&options.like)?;
    if let Some(quantization) = &options.quantization {
        check_quantization(quantization)?;
    }
    let num_layers = options.layers.unwrap_or_else(|| family.num_layers());
    if !(1..=MAX_LAYERS).contains(&num_layers) {
        let reason = format!("expected 1 to {MAX_LAYERS}");
        return Err(Error::argument("layers", num_layers, reason));
    }
    let mut config = family.config(Some(num_layers));
    let mut tensors = Vec::new();
    let mut overrides = Map::new();
    let mut num_parameters = 0;
    let (records, _) = record(&Value::Object(config.clone()), Dtype::Bf16)?;
    for record in records {
        num_parameters += record.parameters;
        let format = format_of(&record, options.quantization, &mut overrides);
        tensors.extend(tensors_of(&record, spread(&record, num_layers), format));
    }
    if let Some(Quantization { group_size, bits, mode }) = options.quantization {
        let mut section = Map::new();
        section.insert("group_size".to_owned(), json!(group_size));
        section.insert("bits".to_owned(), json!(bits));
        section.insert("mode".to_owned(), json!(mode.name()));
        section.extend(overrides);
        config.insert("quantization".to_owned(), Value::Object(section.clone()));
        config.insert("quantization_config".to_owned(), Value::Object(section));
    }
    write::prepare(out)?;
    let values = (!options.hollow).then_some(options.seed);
    let bytes: u64 = tensors.iter().map(Tensor::bytes).sum();
    let num_files = write::write_weights(out, &tensors, num_parameters, values, &mut |done| {
        on_bytes(done, bytes);
    })?;
    // Last, so that a folder with a config.json is complete.
    write::write_json(&out.join("config.json"), &Value::Object(config))?;
    Ok(SynthReport { num_files, bytes, num_parameters, num_layers })
}

fn find(name: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| {
        let known: Vec<&str> = names().collect();
        Error::argument("like", format!("`{name}`"), format!("known: {}", known.join(", ")))
    })
}

/// The weights that a model of this configuration takes, and the number of its layers.
fn record(config: &Value, dtype: Dtype) -> Result<(Vec<WeightRecord>, usize)> {
    let fields = config.as_object().cloned().unwrap_or_default();
    let config = ModelConfig::from_fields("config.json", fields, None)?;
    let weights = Weights::recorder(dtype);
    let model = (models::find(&config.model_type)?.load)(&config, &weights)?;
    let num_layers = model.make_cache().layers.len();
    Ok((weights.finish()?.records, num_layers))
}

fn check_quantization(quantization: &Quantization) -> Result<()> {
    if is_valid(*quantization) {
        return Ok(());
    }
    Err(Error::argument("quantization", quantization, quantization::KNOWN))
}

/// How a weight is stored; notes it in the configuration when it differs from the rest.
fn format_of(
    weight: &WeightRecord,
    wanted: Option<Quantization>,
    overrides: &mut Map<String, Value>,
) -> Option<Quantization> {
    let wanted = wanted.filter(|_| weight.is_matrix)?;
    let columns = weight.shape.last().copied().unwrap_or(0);
    // mlx-lm leaves a matrix dense when its rows are no whole number of groups.
    if columns % wanted.group_size != 0 {
        return None;
    }
    if weight.role != Role::Router {
        return Some(wanted);
    }
    if columns % ROUTER_GROUP_SIZE != 0 {
        overrides.insert(weight.module.clone(), json!(false));
        return None;
    }
    let router = json!({ "group_size": ROUTER_GROUP_SIZE, "bits": ROUTER_BITS });
    overrides.insert(weight.module.clone(), router);
    Some(Quantization::affine(ROUTER_GROUP_SIZE, ROUTER_BITS))
}

/// The tensors that hold a weight.
fn tensors_of(
    weight: &WeightRecord,
    Spread { mean, std }: Spread,
    format: Option<Quantization>,
) -> Vec<Tensor> {
    let module = &weight.module;
    let name = format!("{module}.{}", weight.name);
    // a module's own weight and another parameter of it draw different numbers
    let stream = if weight.name == "weight" { module.clone() } else { name.clone() };
    let with_columns = |columns: i32| -> Vec<i32> {
        let rows = weight.shape.split_last().map_or(&[][..], |(_, rows)| rows);
        [rows, &[columns]].concat()
    };
    let columns = weight.shape.last().copied().unwrap_or(0);
    let Some(Quantization { group_size, bits, mode }) = format else {
        let values = values::Values::Gaussian { mean, std };
        return vec![Tensor::new(name, Dtype::Bf16, weight.shape.clone(), stream, values)];
    };
    let packed = with_columns((i64::from(columns) * i64::from(bits) / 32) as i32);
    let groups = with_columns(columns / group_size);
    let tensor = |name: String, dtype, shape, values| {
        Tensor::new(name, dtype, shape, stream.clone(), values)
    };
    let codes = values::Codes { mode, bits, std };
    let scales_dtype = if mode == Mode::Affine { Dtype::Bf16 } else { Dtype::U8 };
    let scales = values::Values::Scales(codes);
    let mut tensors = vec![
        tensor(name, Dtype::U32, packed, values::Values::Codes(codes)),
        tensor(format!("{module}.scales"), scales_dtype, groups.clone(), scales),
    ];
    if mode == Mode::Affine {
        let name = format!("{module}.biases");
        tensors.push(tensor(name, Dtype::Bf16, groups, values::Values::Biases(codes)));
    }
    tensors
}

#[cfg(test)]
mod tests;

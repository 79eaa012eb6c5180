//! Random-weight checkpoints in mlx-community layout, for measurements and tests at a model's real shapes.
//!
//! Weights are drawn directly in their packed form and written tensor by tensor, so a 17 GB checkpoint takes
//! little memory. Their scales are chosen so that the model behaves like one that was trained: activations keep
//! their size through the layers, routers choose among all experts, and greedy decoding visits many tokens.
//! Plain random initialisation does none of this, and a comparison of tokens on it would prove little.

mod families;
mod values;
mod write;

use std::path::Path;

use mlx::quantization::{Mode, Quantization};
use serde_json::{Map, Value, json};

use crate::config::is_valid;
use crate::error::{Error, Result};

use families::{FAMILIES, Family};
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
    let mut config = (family.config)();
    let num_layers = options.layers.unwrap_or(family.num_layers);
    if !(1..=MAX_LAYERS).contains(&num_layers) {
        let reason = format!("expected 1 to {MAX_LAYERS}");
        return Err(Error::argument("layers", num_layers, reason));
    }
    config.insert("num_hidden_layers".to_owned(), json!(num_layers));
    let mut tensors = Vec::new();
    let mut overrides = Map::new();
    let mut num_parameters = 0;
    for weight in (family.weights)(num_layers) {
        num_parameters += weight.shape.iter().product::<usize>() as u64;
        let format = format_of(&weight, options.quantization, &mut overrides);
        tensors.extend(weight.tensors(format));
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
    let bytes: u64 = tensors.iter().map(Tensor::bytes).sum();
    let num_files =
        write::write_weights(out, &tensors, num_parameters, options.seed, &mut |done| {
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

fn check_quantization(quantization: &Quantization) -> Result<()> {
    if is_valid(*quantization) {
        return Ok(());
    }
    let reason = "MLX has affine with 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128, mxfp4 with 4 in 32, \
                  mxfp8 with 8 in 32, nvfp4 with 4 in 16";
    Err(Error::argument("quantization", quantization, reason))
}

/// How a weight is stored; notes it in the configuration when it differs from the rest.
fn format_of(
    weight: &Weight,
    wanted: Option<Quantization>,
    overrides: &mut Map<String, Value>,
) -> Option<Quantization> {
    let wanted = wanted.filter(|_| weight.role != Role::Norm)?;
    let columns = weight.shape.last().copied().unwrap_or(0);
    // mlx-lm leaves a matrix dense when its rows are no whole number of groups.
    if columns % wanted.group_size as usize != 0 {
        return None;
    }
    if weight.role != Role::Router {
        return Some(wanted);
    }
    if columns % ROUTER_GROUP_SIZE as usize != 0 {
        overrides.insert(weight.name.clone(), json!(false));
        return None;
    }
    let router = json!({ "group_size": ROUTER_GROUP_SIZE, "bits": ROUTER_BITS });
    overrides.insert(weight.name.clone(), router);
    Some(Quantization::affine(ROUTER_GROUP_SIZE, ROUTER_BITS))
}

/// What a weight does, as far as its storage goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Matrix,
    Router,
    Norm,
}

/// A module's weight before it is packed.
#[derive(Debug, Clone)]
struct Weight {
    /// Module path, without `.weight`.
    name: String,
    shape: Vec<usize>,
    role: Role,
    mean: f32,
    std: f32,
}

impl Weight {
    fn matrix(name: impl Into<String>, shape: &[usize], std: f32) -> Self {
        let (name, shape) = (name.into(), shape.to_vec());
        Self { name, shape, role: Role::Matrix, mean: 0.0, std }
    }

    /// Standard deviation `gain / sqrt(fan_in)`: inputs of size 1 give outputs of size `gain`.
    fn linear(name: impl Into<String>, shape: &[usize], gain: f32) -> Self {
        let fan_in = shape.last().copied().unwrap_or(1) as f32;
        Self::matrix(name, shape, gain / fan_in.sqrt())
    }

    fn router(name: impl Into<String>, shape: &[usize], gain: f32) -> Self {
        Self { role: Role::Router, ..Self::linear(name, shape, gain) }
    }

    fn norm(name: impl Into<String>, size: usize, mean: f32) -> Self {
        let (name, shape) = (name.into(), vec![size]);
        Self { name, shape, role: Role::Norm, mean, std: 0.15 * mean }
    }

    /// The tensors that hold it.
    fn tensors(self, format: Option<Quantization>) -> Vec<Tensor> {
        let weight = format!("{}.weight", self.name);
        let Some(quantization) = format else {
            let values = values::Values::Gaussian { mean: self.mean, std: self.std };
            return vec![Tensor::new(weight, "BF16", self.shape, self.name, values)];
        };
        let Quantization { group_size, bits, mode } = quantization;
        let with_columns = |columns: usize| {
            let mut shape = self.shape.clone();
            if let Some(last) = shape.last_mut() {
                *last = columns;
            }
            shape
        };
        let columns = self.shape.last().copied().unwrap_or(0);
        let packed = with_columns(columns * bits as usize / 32);
        let groups = with_columns(columns / group_size as usize);
        let module = self.name.clone();
        let tensor = |name: String, dtype, shape, values| {
            Tensor::new(name, dtype, shape, module.clone(), values)
        };
        let codes = values::Codes { mode, bits, std: self.std };
        let scales_dtype = if mode == Mode::Affine { "BF16" } else { "U8" };
        let mut tensors = vec![
            tensor(weight, "U32", packed, values::Values::Codes(codes)),
            tensor(
                format!("{}.scales", self.name),
                scales_dtype,
                groups.clone(),
                values::Values::Scales(codes),
            ),
        ];
        if mode == Mode::Affine {
            let name = format!("{}.biases", self.name);
            tensors.push(tensor(name, "BF16", groups, values::Values::Biases(codes)));
        }
        tensors
    }
}

#[cfg(test)]
mod tests;

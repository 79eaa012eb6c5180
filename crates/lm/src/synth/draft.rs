//! Small checkpoints put together in memory, for tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, Dtype};
use serde_json::{Value, json};

use super::recipe::spread;
use super::values::Random;
use super::write::write_json;
use crate::error::{Error, Result};
use crate::shards::INDEX;

/// A checkpoint in the making: a configuration and random weights that fit it, to change before they are written.
///
/// Names and shapes are those that the model's own loader asks for, values those of [`synthesize`](super::synthesize);
/// but packed weights are packed from dense ones here, so that they stand for the same numbers.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What `config.json` will hold.
    pub config: Value,
    /// Tensors by name, sorted.
    pub weights: BTreeMap<String, Array>,
    /// Modules whose weights may be packed.
    pub(crate) matrices: Vec<String>,
}

impl Draft {
    /// Dense weights of `dtype` for a configuration; the same for the same seed.
    ///
    /// # Errors
    /// Those of loading a model with this configuration.
    pub fn new(config: Value, dtype: Dtype, seed: u64) -> Result<Self> {
        let (records, num_layers) = super::record(&config, dtype)?;
        let mut weights = BTreeMap::new();
        let mut matrices = Vec::new();
        for record in records {
            let name = format!("{}.{}", record.module, record.name);
            let mut random = Random::new(seed, &name);
            let spread = spread(&record, num_layers);
            let size: usize = record.shape.iter().map(|n| *n as usize).product();
            let values: Vec<f32> =
                (0..size).map(|_| spread.mean + spread.std * random.gaussian()).collect();
            let array = Array::from_slice(&values, &record.shape)?.astype(dtype)?;
            array.eval()?;
            weights.insert(name, array);
            if record.is_matrix {
                matrices.push(record.module);
            }
        }
        Ok(Self { config, weights, matrices })
    }

    /// Weights that are there already. [`quantized`](Self::quantized) packs none of them.
    pub fn of(config: Value, weights: BTreeMap<String, Array>) -> Self {
        Self { config, weights, matrices: Vec::new() }
    }

    /// Packs every matrix whose rows are a whole number of groups, and says so in the configuration.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn quantized(mut self, quantization: Quantization) -> Result<Self> {
        let Quantization { group_size, bits, mode } = quantization;
        self.config["quantization"] =
            json!({"group_size": group_size, "bits": bits, "mode": mode.name()});
        for module in self.matrices.clone() {
            // one that was taken out, or packed already, is left alone
            let dense = self.weights.get(&format!("{module}.weight"));
            if dense.is_some_and(|a| a.dtype().is_float() && a.dim(-1) % group_size == 0) {
                self.quantize(&module, quantization)?;
            }
        }
        Ok(self)
    }

    /// Packs one module's matrix.
    ///
    /// # Errors
    /// `MissingWeight`, `Mlx`.
    pub fn quantize(&mut self, module: &str, quantization: Quantization) -> Result<()> {
        let name = format!("{module}.weight");
        let Some(dense) = self.weights.remove(&name) else {
            return Err(Error::MissingWeight { name, path: Default::default() });
        };
        let packed = QuantizedWeight::quantize(&dense, quantization)?;
        self.weights.insert(name, packed.w);
        self.weights.insert(format!("{module}.scales"), packed.scales);
        if let Some(biases) = packed.biases {
            self.weights.insert(format!("{module}.biases"), biases);
        }
        Ok(())
    }

    /// Writes `config.json` and one weight file.
    ///
    /// # Errors
    /// `Io`, `Mlx`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        self.write_config(dir)?;
        self.write_file(dir, "model.safetensors", |_| true)
    }

    /// Writes `config.json`, `num_shards` weight files and their index.
    ///
    /// # Errors
    /// `Io`, `Mlx`.
    pub fn write_shards(&self, dir: &Path, num_shards: usize) -> Result<()> {
        self.write_config(dir)?;
        let names: Vec<&str> = self.weights.keys().map(String::as_str).collect();
        let mut map = serde_json::Map::new();
        for (i, part) in names.chunks(names.len().div_ceil(num_shards.max(1)).max(1)).enumerate() {
            let file = format!("model-{:05}-of-{num_shards:05}.safetensors", i + 1);
            self.write_file(dir, &file, |name| part.contains(&name))?;
            map.extend(part.iter().map(|name| ((*name).to_owned(), json!(file))));
        }
        write_json(&dir.join(INDEX), &json!({"metadata": {}, "weight_map": map}))
    }

    /// Writes `config.json` alone.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_config(&self, dir: &Path) -> Result<()> {
        let path = dir.join("config.json");
        fs::write(&path, self.config.to_string()).map_err(|error| Error::io(path, error))
    }

    /// Writes the tensors that `keep` wants to one weight file.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn write_file(&self, dir: &Path, file: &str, keep: impl Fn(&str) -> bool) -> Result<()> {
        let part = self.weights.iter().filter(|(name, _)| keep(name));
        let part = part.map(|(name, array)| (name.as_str(), array));
        Ok(mlx::io::save_safetensors(&dir.join(file), part, [("format", "mlx")])?)
    }
}

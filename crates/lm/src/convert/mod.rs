//! From a Hugging Face checkpoint to mlx-community layout, quantised by a recipe.
//!
//! Names, stacks of experts and transpositions are those of the family's own loader: it is run against the source's
//! headers, and what it would take is what is written. The result equals that of mlx-lm's `convert` bit for bit: tensors,
//! the files that they are in, `config.json` and the index. Tokenizer files are copied as they are.

mod folder;
mod json;
mod order;
mod plan;
mod recipe;
mod run;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use mlx::Dtype;
use serde_json::{Map, Value, json};

pub use recipe::{Mixed, Override, Recipe};

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::models;
use crate::shards::{INDEX, MAX_SHARD_BYTES, cut, index};
use crate::weights::Weights;

use folder::{Folder, Shards};
use plan::Plan;
use run::Reader;

const CONFIG: &str = "config.json";
/// Where further chat templates lie.
const EXTRA_TEMPLATES: &str = "additional_chat_templates";

/// What to make of a checkpoint.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// How to quantise what is dense; `None` leaves it dense.
    pub quantize: Option<Recipe>,
    /// Unpacks what is quantised.
    pub dequantize: bool,
    /// Type of what is not quantised; `None` takes the one that `config.json` names, else leaves each tensor's own.
    pub dtype: Option<Dtype>,
    /// Most bytes of a weight file; a larger tensor has one of its own.
    pub max_shard_bytes: u64,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self { quantize: None, dequantize: false, dtype: None, max_shard_bytes: MAX_SHARD_BYTES }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvertReport {
    /// Weight files.
    pub num_files: usize,
    /// Bytes of all weights.
    pub bytes: u64,
    /// Of these, bytes that an earlier run had written.
    pub resumed_bytes: u64,
    /// Numbers that the weights stand for.
    pub num_parameters: u64,
    /// Bits that a parameter takes on average.
    pub bits_per_weight: f64,
    /// What the user ought to know about the source.
    pub notes: Vec<String>,
}

/// Writes what `options` make of the checkpoint in the folder `from` to the folder `out`, which is created and must
/// hold nothing but what an earlier, killed run with the same options has left: that is continued.
///
/// At most one tensor of the source, or one expert of a stack, is in memory at a time, and a piece of what it becomes.
///
/// - `on_bytes`: told how many bytes are written, and how many there will be
///
/// # Errors
/// Those of loading a model; `Argument` for options that do not go with it or a folder that cannot be taken; `Write`.
/// # Source
/// mlx-lm `convert.py`, `utils.py` (`quantize_model`, `save`).
pub fn convert(
    from: &Path,
    out: &Path,
    options: &ConvertOptions,
    on_bytes: &mut dyn FnMut(u64, u64),
) -> Result<ConvertReport> {
    mlx::check_linked()?;
    if options.quantize.is_some() && options.dequantize {
        return Err(Error::argument("dequantize", "set", "choose either it or quantize"));
    }
    let config = ModelConfig::load(from)?;
    let family = models::find(&config.model_type)?;
    let checkpoint = Checkpoint::open(from)?;
    let weights = Weights::planner(checkpoint.clone(), config.quantization.clone());
    (family.load)(&config, &weights)?;
    let planned = weights.finish()?.planned;
    let mut fields = mlx_lm_fields(from, &config)?;
    let quantization = fields.get("quantization").and_then(Value::as_object).cloned();
    if options.dequantize && quantization.is_none() {
        return Err(Error::argument("dequantize", "set", "nothing in the checkpoint is quantised"));
    }
    let dtype = options.dtype.or_else(|| dtype_of(&fields));
    let plan = Plan::new(planned, &family.conversion, options, quantization, dtype)?;
    set_quantization(&mut fields, &plan, options);

    let shards = cut(&plan.entries, options.max_shard_bytes);
    let mut folder = Folder::take(out, job(&checkpoint, options, &fields)?)?;
    let resumed_bytes = write_weights(&checkpoint, &plan, &shards, &mut folder, on_bytes)?;
    folder.write_file(
        INDEX,
        json::python(&index(&plan.entries, &shards, plan.num_parameters)).as_bytes(),
    )?;
    copy_others(from, &folder)?;
    // Last, so that a folder with a config.json is complete.
    fields.sort_keys();
    folder.write_file(CONFIG, json::python(&Value::Object(fields)).as_bytes())?;
    folder.finish()?;

    let unused = config.unknown_fields().iter().map(|field| {
        let path = config.path().display();
        format!("{path}: field `{field}` is not used by {}", config.model_type)
    });
    Ok(ConvertReport {
        num_files: shards.len(),
        bytes: plan.bytes(),
        resumed_bytes,
        num_parameters: plan.num_parameters,
        bits_per_weight: plan::bits_per_weight(&plan),
        notes: checkpoint.warnings().iter().cloned().chain(unused).collect(),
    })
}

/// Writes all weight files; returns how many of their bytes were there already.
fn write_weights(
    checkpoint: &Checkpoint,
    plan: &Plan,
    shards: &[crate::shards::Shard],
    folder: &mut Folder,
    on_bytes: &mut dyn FnMut(u64, u64),
) -> Result<u64> {
    let mut files = Shards::new(folder, shards, &plan.entries)?;
    let resumed: u64 = plan.entries[..files.done()].iter().map(|entry| entry.bytes()).sum();
    let (mut written, total) = (resumed, plan.bytes());
    let done = files.done();
    let reader = Reader::new(checkpoint);
    for item in plan.items.iter().filter(|item| item.entries.end > done) {
        on_bytes(written, total);
        run::run(&item.work, &reader, &mut |part, bytes| {
            let entry = item.entries.start + part;
            files.write(entry, bytes)?;
            if entry >= done {
                written += bytes.len() as u64;
                on_bytes(written, total);
            }
            Ok(())
        })?;
        files.checkpoint()?;
    }
    files.close()?;
    Ok(resumed)
}

/// The configuration's fields as mlx-lm has them after loading.
fn mlx_lm_fields(from: &Path, config: &ModelConfig) -> Result<Map<String, Value>> {
    let mut fields = config.fields().clone();
    fields.retain(|name, _| !["_name_or_path", "vision_config"].contains(&name.as_str()));
    if let Some(eos) = ModelConfig::generation_eos(from)? {
        fields.insert("eos_token_id".to_owned(), eos);
    }
    let nested =
        fields.get("text_config").and_then(|text| text.get("quantization_config")).cloned();
    if let (Some(nested), None) = (nested, fields.get("quantization_config")) {
        fields.insert("quantization_config".to_owned(), nested);
    }
    let is_ours = fields.get("quantization").is_some_and(|value| !value.is_null());
    if let (Some(quantization), false) = (&config.quantization, is_ours) {
        let value = recipe::object(quantization.default);
        fields.insert("quantization".to_owned(), value);
    }
    Ok(fields)
}

/// The type that a configuration names, where it is one that mlx-lm converts to.
fn dtype_of(fields: &Map<String, Value>) -> Option<Dtype> {
    let named = |value: Option<&Value>| value.filter(|value| !value.is_null()).cloned();
    let name = named(fields.get("torch_dtype"))
        .or_else(|| named(fields.get("text_config").and_then(|text| text.get("dtype"))))?;
    [Dtype::F16, Dtype::Bf16, Dtype::F32]
        .into_iter()
        .find(|dtype| Some(dtype.name()) == name.as_str())
}

fn set_quantization(fields: &mut Map<String, Value>, plan: &Plan, options: &ConvertOptions) {
    if options.dequantize {
        fields.shift_remove("quantization");
        fields.shift_remove("quantization_config");
    }
    if let Some(quantization) = &plan.quantization {
        for name in ["quantization", "quantization_config"] {
            fields.insert(name.to_owned(), Value::Object(quantization.clone()));
        }
    }
}

/// What a conversion depends on: two with the same are the same.
fn job(
    checkpoint: &Checkpoint,
    options: &ConvertOptions,
    fields: &Map<String, Value>,
) -> Result<Value> {
    let mut files = Vec::new();
    for path in checkpoint.files() {
        let data = fs::metadata(path).map_err(|error| Error::io(path, error))?;
        let modified =
            data.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        files.push(json!([
            path.display().to_string(),
            data.len(),
            modified.map(|t| t.as_nanos().to_string()),
        ]));
    }
    Ok(json!({
        "source": files,
        "configuration": fields,
        "dtype": options.dtype.map(Dtype::name),
        "max_shard_bytes": options.max_shard_bytes,
        "version": [env!("CARGO_PKG_VERSION"), mlx::build_info().stock()],
    }))
}

/// Copies what belongs to a checkpoint besides weights and configuration: tokenizer, templates, code of its own.
fn copy_others(from: &Path, folder: &Folder) -> Result<()> {
    for name in names_in(from)? {
        if is_wanted(&name) {
            copy(&from.join(&name), folder, &name)?;
        }
    }
    let templates = from.join(EXTRA_TEMPLATES);
    if templates.is_dir() {
        folder.create_dir(EXTRA_TEMPLATES)?;
        for name in names_in(&templates)?.iter().filter(|name| name.ends_with(".jinja")) {
            copy(&templates.join(name), folder, &format!("{EXTRA_TEMPLATES}/{name}"))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, folder: &Folder, name: &str) -> Result<()> {
    let bytes = fs::read(from).map_err(|error| Error::io(from, error))?;
    folder.write_file(name, &bytes)
}

fn is_wanted(name: &str) -> bool {
    let written = [CONFIG, "hf_quant_config.json"].contains(&name) || name.ends_with(".index.json");
    let ends = [".json", ".jinja", ".model", ".py", ".tiktoken", ".txt"];
    !written && !name.starts_with('.') && ends.iter().any(|end| name.ends_with(end))
}

/// The names of the files in a folder, sorted.
fn names_in(dir: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io(dir, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path: PathBuf = entry.map_err(failed)?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && path.is_file()
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

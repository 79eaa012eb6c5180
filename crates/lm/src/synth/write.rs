//! Safetensors files, streamed: sizes are known beforehand, so the header goes first and nothing is kept.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

use super::values::{Random, Values};

pub(super) const INDEX: &str = "model.safetensors.index.json";
/// mlx-lm's limit per file.
const MAX_SHARD_BYTES: u64 = 5 << 30;
/// Bytes drawn at once.
const CHUNK_BYTES: usize = 1 << 20;

/// One entry of a file.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    /// Names the random stream. Scales and biases of a module share theirs.
    stream: String,
    values: Values,
}

impl Tensor {
    pub(super) fn new(
        name: String,
        dtype: &'static str,
        shape: Vec<usize>,
        module: String,
        values: Values,
    ) -> Self {
        let stream = match values {
            Values::Scales(_) | Values::Biases(_) => format!("{module} groups"),
            Values::Codes(_) | Values::Gaussian { .. } => module,
        };
        Self { name, dtype, shape, stream, values }
    }

    pub(super) fn bytes(&self) -> u64 {
        let size = match self.dtype {
            "U32" => 4,
            "BF16" => 2,
            _ => 1,
        };
        self.shape.iter().product::<usize>() as u64 * size
    }
}

/// Makes the folder, and refuses one that holds something else.
pub(super) fn prepare(out: &Path) -> Result<()> {
    fs::create_dir_all(out).map_err(|error| Error::io(out, error))?;
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(out).map_err(|error| Error::io(out, error))? {
        let name = entry.map_err(|error| Error::io(out, error))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if !(name.starts_with("model") && name.contains(".safetensors")) {
            let reason = format!("it holds {name}; choose a new or empty folder");
            return Err(Error::argument("out", out.display(), reason));
        }
        leftovers.push(name);
    }
    // only now: a folder that is refused keeps all it has
    for name in leftovers {
        fs::remove_file(out.join(name)).map_err(|error| Error::io(out, error))?;
    }
    Ok(())
}

/// Writes all tensors and the index; returns the number of weight files. Without a seed the weights are a hole, which
/// reads as zeros.
pub(super) fn write_weights(
    out: &Path,
    tensors: &[Tensor],
    num_parameters: u64,
    seed: Option<u64>,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<usize> {
    let shards = shards(tensors);
    let mut weight_map = Map::new();
    let mut done = 0;
    for (index, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            all => format!("model-{:05}-of-{all:05}.safetensors", index + 1),
        };
        let path = out.join(&name);
        write_shard(&path, shard, seed, &mut |bytes| {
            done += bytes;
            on_bytes(done);
        })
        .map_err(|error| Error::io(&path, error))?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), json!(name))));
    }
    weight_map.sort_keys();
    let total_size: u64 = tensors.iter().map(Tensor::bytes).sum();
    let index = json!({
        "metadata": { "total_size": total_size, "total_parameters": num_parameters },
        "weight_map": weight_map,
    });
    write_json(&out.join(INDEX), &index)?;
    Ok(shards.len())
}

fn shards(tensors: &[Tensor]) -> Vec<&[Tensor]> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, tensor) in tensors.iter().enumerate() {
        if bytes + tensor.bytes() > MAX_SHARD_BYTES && index > start {
            shards.push(&tensors[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += tensor.bytes();
    }
    shards.push(&tensors[start..]);
    shards
}

fn write_shard(
    path: &Path,
    tensors: &[Tensor],
    seed: Option<u64>,
    on_bytes: &mut dyn FnMut(u64),
) -> std::io::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "mlx" }));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let entry = json!({
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end],
        });
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::with_capacity(CHUNK_BYTES, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let Some(seed) = seed else {
        file.flush()?;
        on_bytes(offset);
        return file.get_ref().set_len(8 + header.len() as u64 + offset);
    };
    let mut buffer = vec![0; CHUNK_BYTES];
    for tensor in tensors {
        let mut random = Random::new(seed, &tensor.stream);
        let mut left = tensor.bytes();
        while left > 0 {
            let size = left.min(CHUNK_BYTES as u64) as usize;
            tensor.values.fill(&mut random, &mut buffer[..size]);
            file.write_all(&buffer[..size])?;
            left -= size as u64;
            on_bytes(size as u64);
        }
    }
    file.flush()
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = format!("{value:#}");
    text.push('\n');
    fs::write(path, text).map_err(|error| Error::io(path, error))
}

//! Safetensors files, streamed: sizes are known beforehand, so the header goes first and nothing is kept.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use mlx::Dtype;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::shards::{Entry, INDEX, MAX_SHARD_BYTES, cut, header, index};

use super::values::{Random, Values};

/// Bytes drawn at once.
const CHUNK_BYTES: usize = 1 << 20;

/// One entry of a file.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    entry: Entry,
    /// Names the random stream. Scales and biases of a module share theirs.
    stream: String,
    values: Values,
}

impl Tensor {
    pub(super) fn new(
        name: String,
        dtype: Dtype,
        shape: Vec<i32>,
        module: String,
        values: Values,
    ) -> Self {
        let stream = match values {
            Values::Scales(_) | Values::Biases(_) => format!("{module} groups"),
            Values::Codes(_) | Values::Gaussian { .. } => module,
        };
        Self { entry: Entry { name, dtype, shape }, stream, values }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entry.bytes()
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
    let entries: Vec<Entry> = tensors.iter().map(|tensor| tensor.entry.clone()).collect();
    let shards = cut(&entries, MAX_SHARD_BYTES);
    let mut done = 0;
    for shard in &shards {
        let path = out.join(&shard.name);
        let header = header(&entries[shard.entries.clone()]);
        write_shard(&path, &header, &tensors[shard.entries.clone()], seed, &mut |bytes| {
            done += bytes;
            on_bytes(done);
        })
        .map_err(|error| Error::io(&path, error))?;
    }
    write_json(&out.join(INDEX), &index(&entries, &shards, num_parameters))?;
    Ok(shards.len())
}

fn write_shard(
    path: &Path,
    header: &[u8],
    tensors: &[Tensor],
    seed: Option<u64>,
    on_bytes: &mut dyn FnMut(u64),
) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(CHUNK_BYTES, File::create(path)?);
    file.write_all(header)?;
    let Some(seed) = seed else {
        let bytes = tensors.iter().map(Tensor::bytes).sum();
        file.flush()?;
        on_bytes(bytes);
        return file.get_ref().set_len(header.len() as u64 + bytes);
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

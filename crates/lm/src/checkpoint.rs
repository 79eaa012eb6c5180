//! Weight files: headers checked here, tensors read by MLX when they are first needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use mlx::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::shards::INDEX;

/// Largest header accepted, the limit of the safetensors format's own implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;
/// What MLX reads, by the names of the format, and as what.
const MLX_DTYPES: &[(&str, Dtype)] = &[
    ("BOOL", Dtype::Bool),
    ("U8", Dtype::U8),
    ("U16", Dtype::U16),
    ("U32", Dtype::U32),
    ("U64", Dtype::U64),
    ("I8", Dtype::I8),
    ("I16", Dtype::I16),
    ("I32", Dtype::I32),
    ("I64", Dtype::I64),
    ("F16", Dtype::F16),
    ("BF16", Dtype::Bf16),
    ("F32", Dtype::F32),
    ("C64", Dtype::C64),
    // no type of MLX's: their bits
    ("F8_E4M3", Dtype::U8),
    ("F8_E8M0", Dtype::U8),
];

/// One tensor as its file's header describes it.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Type in safetensors' spelling, e.g. `BF16`.
    pub dtype: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Bytes of data.
    pub bytes: u64,
    file: usize,
}

impl TensorInfo {
    /// The type that MLX gives its array.
    pub fn mlx_dtype(&self) -> Dtype {
        // read_header() lets no other name pass
        let row = MLX_DTYPES.iter().find(|(name, _)| *name == self.dtype);
        row.map_or(Dtype::U8, |(_, dtype)| *dtype)
    }
}

/// The weight files of a checkpoint, headers read and checked, no tensor data touched.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorInfo>,
    warnings: Vec<String>,
}

impl Checkpoint {
    /// Finds and checks the weight files of a folder: the shards that `model.safetensors.index.json` names, or
    /// every `model*.safetensors`. An index that does not agree with the files gives way to them, as long as
    /// they hold every tensor that it names; mlx-lm never reads it.
    ///
    /// # Errors
    /// `Io`, `Json`, `Checkpoint`.
    pub fn open(dir: &Path) -> Result<Self> {
        let index_path = dir.join(INDEX);
        if !index_path.exists() {
            return Self::of_files(dir, find_files(dir)?);
        }
        let index = read_index(&index_path)?;
        let named: BTreeSet<String> = index.values().cloned().collect();
        if let Some(absent) = named.iter().find(|name| !dir.join(name).exists()) {
            return Self::without_index(dir, &index, format!("{absent} does not exist"));
        }
        let checkpoint = Self::of_files(dir, named)?;
        let misplaced = index.iter().find(|(tensor, file)| {
            let held = checkpoint.tensors.get(*tensor).map(|info| &checkpoint.files[info.file]);
            held != Some(&dir.join(file))
        });
        match misplaced {
            None => Ok(checkpoint),
            Some((tensor, file)) => {
                Self::without_index(dir, &index, format!("{file} does not hold `{tensor}`"))
            }
        }
    }

    /// The weight files of a folder that may hold only some of a checkpoint's: every `model*.safetensors`, whatever
    /// an index says.
    ///
    /// # Errors
    /// `Io`, `Checkpoint`.
    pub fn open_present(dir: &Path) -> Result<Self> {
        Self::of_files(dir, find_files(dir)?)
    }

    /// - `fault`: where the index is wrong
    fn without_index(dir: &Path, index: &BTreeMap<String, String>, fault: String) -> Result<Self> {
        let path = dir.join(INDEX);
        let mut checkpoint = Self::of_files(dir, find_files(dir)?)?;
        let lacking = index.keys().find(|tensor| !checkpoint.tensors.contains_key(*tensor));
        if let Some(tensor) = lacking {
            let reason = format!("{fault}, and no model*.safetensors holds `{tensor}`");
            return Err(Error::checkpoint(path, reason));
        }
        checkpoint.warnings.push(format!(
            "{} is out of date ({fault}); all its tensors are in other files",
            path.display()
        ));
        Ok(checkpoint)
    }

    fn of_files(dir: &Path, names: BTreeSet<String>) -> Result<Self> {
        let mut checkpoint = Self {
            dir: dir.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            warnings: Vec::new(),
        };
        for name in names {
            checkpoint.add_file(dir.join(name))?;
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let file = self.files.len();
        for (name, tensor) in read_header(&path)?.tensors() {
            let info = TensorInfo {
                dtype: tensor.dtype.to_string(),
                shape: tensor.shape.clone(),
                bytes: (tensor.data_offsets.1 - tensor.data_offsets.0) as u64,
                file,
            };
            if let Some(first) = self.tensors.insert(name.clone(), info) {
                let other = self.files[first.file].display();
                return Err(Error::checkpoint(path, format!("`{name}` is also in {other}")));
            }
        }
        self.files.push(path);
        Ok(())
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The weight files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// What is odd about the files without being an error, for people.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Every tensor by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The file that holds a tensor; the folder for one that no file holds.
    pub fn file_of(&self, name: &str) -> &Path {
        self.tensors.get(name).map_or(&self.dir, |info| &self.files[info.file])
    }

    /// Bytes of tensor data in all files.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|info| info.bytes).sum()
    }
}

/// The index's map from tensor to file, file names checked to stay inside the folder.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Error::Json { path: path.to_owned(), reason: e.to_string() })?;
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| Error::checkpoint(path, "`weight_map` is missing or no object"))?;
    if map.is_empty() {
        return Err(Error::checkpoint(path, "`weight_map` is empty"));
    }
    map.iter()
        .map(|(tensor, file)| match file.as_str() {
            Some(name) if is_plain_name(name) => Ok((tensor.clone(), name.to_owned())),
            _ => {
                let reason =
                    format!("`{tensor}` is placed in {file}, expected a file name in this folder");
                Err(Error::checkpoint(path, reason))
            }
        })
        .collect()
}

fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

/// The names of `model*.safetensors` in a folder, in order.
fn find_files(dir: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        if let Ok(name) = entry.file_name().into_string()
            && name.starts_with("model")
            && name.ends_with(".safetensors")
        {
            names.insert(name);
        }
    }
    if names.is_empty() {
        return Err(Error::checkpoint(dir, "holds no model*.safetensors"));
    }
    Ok(names)
}

/// Reads and checks a file's header: length, JSON, dtypes, shapes against offsets, no overlap and no hole, and
/// data that ends where the file ends.
pub(crate) fn read_header(path: &Path) -> Result<Metadata> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let file_bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if file_bytes < LENGTH_BYTES {
        let reason = format!("has {file_bytes} bytes, too few for a safetensors file");
        return Err(Error::checkpoint(path, reason));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(|e| Error::io(path, e))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        let reason =
            format!("claims a header of {header_bytes} bytes, more than {MAX_HEADER_BYTES}");
        return Err(Error::checkpoint(path, reason));
    }
    if header_bytes > file_bytes - LENGTH_BYTES {
        let reason = format!("is truncated: a header of {header_bytes} bytes in {file_bytes}");
        return Err(Error::checkpoint(path, reason));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(|e| Error::io(path, e))?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| Error::checkpoint(path, format!("has a bad header: {e}")))?;

    let data_bytes = metadata.data_len() as u64;
    let expected = LENGTH_BYTES + header_bytes + data_bytes;
    if file_bytes < expected {
        let reason = format!("is truncated: {file_bytes} bytes where its header needs {expected}");
        return Err(Error::checkpoint(path, reason));
    }
    if file_bytes > expected {
        let reason = format!("has {} bytes after its last tensor", file_bytes - expected);
        return Err(Error::checkpoint(path, reason));
    }
    for (name, tensor) in metadata.tensors() {
        let dtype = tensor.dtype.to_string();
        if !MLX_DTYPES.iter().any(|(name, _)| *name == dtype) {
            let reason = format!("`{name}` has dtype {dtype}, which MLX does not read");
            return Err(Error::checkpoint(path, reason));
        }
        if tensor.shape.iter().any(|n| i32::try_from(*n).is_err()) {
            let reason =
                format!("`{name}` has shape {:?}, beyond what MLX can index", tensor.shape);
            return Err(Error::checkpoint(path, reason));
        }
    }
    Ok(metadata)
}

//! What a capsule says of a checkpoint.

use std::path::Path;

use mlx::quantization::Quantization;
use zmlx_capsule::Model;
use zmlx_lm::{LoadedModel, PatchOptions, inspect};

use crate::{Result, hash};

/// Describes a checkpoint.
///
/// - `name`: a repo id; `None` for a local folder, of which only the last part is told
///
/// # Errors
/// Those of [`inspect`], `Io`.
pub fn describe(loaded: &LoadedModel, name: Option<&str>) -> Result<Model> {
    let folder = loaded.checkpoint.dir();
    let inspection = inspect(folder, &PatchOptions::default())?;
    Ok(Model {
        name: name.map_or_else(|| last_part(folder), str::to_owned),
        revision: revision(folder),
        model_type: inspection.model_type,
        quantization: inspection.quantization.map_or_else(|| "none".to_owned(), short),
        num_parameters: inspection.num_parameters,
        weights_bytes: inspection.memory.weights_bytes,
        decode_read_bytes: inspection.memory.decode_read_bytes,
        kv_bytes_per_token: inspection.memory.kv_bytes_per_token,
        fingerprint: hash::checkpoint(loaded)?,
    })
}

fn last_part(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The commit of a folder in the Hub's cache: `.../snapshots/<commit>`.
fn revision(folder: &Path) -> Option<String> {
    let snapshots = folder.parent()?.file_name()? == "snapshots";
    snapshots.then(|| folder.file_name().map(|name| name.to_string_lossy().into_owned()))?
}

/// A quantisation in a table.
pub fn short(q: Quantization) -> String {
    format!("{} {}b gs{}", q.mode, q.bits, q.group_size)
}

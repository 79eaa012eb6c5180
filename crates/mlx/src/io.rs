//! Reading and writing safetensors files.

use std::collections::HashMap;
use std::path::Path;

use zmlx_sys::ffi;

use crate::{Array, Error, Result};

/// The arrays of a safetensors file and its metadata.
#[derive(Debug)]
#[non_exhaustive]
pub struct Safetensors {
    /// Lazy arrays by name: the data is read from the file when first evaluated.
    pub arrays: HashMap<String, Array>,
    /// The file's `__metadata__`.
    pub metadata: HashMap<String, String>,
}

/// Opens a safetensors file; its tensors are read when they are first evaluated.
///
/// # Errors
/// [`Error::Backend`] or [`Error::InvalidArgument`] when the file cannot be opened or its header
/// cannot be parsed, or a tensor is larger than the file or the machine's memory.
pub fn load_safetensors(path: &Path) -> Result<Safetensors> {
    let named = ffi::load_safetensors(utf8(path)?)?;
    let arrays = (0..ffi::named_len(&named))
        .map(|i| Ok((ffi::named_name(&named, i)?, Array::wrap(ffi::named_array(&named, i)?))))
        .collect::<Result<_>>()?;
    let flat = ffi::named_metadata(&named);
    let metadata = flat.chunks_exact(2).map(|kv| (kv[0].clone(), kv[1].clone())).collect();
    Ok(Safetensors { arrays, metadata })
}

/// Writes `arrays` (evaluating them) and `metadata` to a safetensors file.
///
/// # Errors
/// [`Error::Backend`] when the file cannot be written.
pub fn save_safetensors<'a>(
    path: &Path,
    arrays: impl IntoIterator<Item = (&'a str, &'a Array)>,
    metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    let mut named = ffi::named_new();
    for (name, a) in arrays {
        ffi::named_push(named.pin_mut(), name, a.raw());
    }
    for (key, value) in metadata {
        ffi::named_push_metadata(named.pin_mut(), key, value);
    }
    Ok(ffi::save_safetensors(utf8(path)?, &named)?)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::InvalidArgument {
        message: format!("[safetensors] the path {} is not UTF-8", path.display()),
    })
}

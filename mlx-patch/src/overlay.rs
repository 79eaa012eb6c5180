//! The overlay: the C++ files that zmlx adds beside MLX. Its `CMakeLists.txt` says what is compiled
//! and how; that a folder is a primitive is known here as well.

use std::{fs, path::Path};

use crate::{Error, Result};

/// Names of the primitives in the overlay at `root`: the folders with an `op.cpp`, sorted.
///
/// # Errors
/// `Io`.
pub fn primitives(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(Error::io("list", root))? {
        let entry = entry.map_err(Error::io("list", root))?;
        if entry.path().join("op.cpp").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

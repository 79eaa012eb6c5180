//! Holding a folder against the pin.

use std::{fs, path::Path};

use crate::{
    Error, ObjectId, ObjectKind, Pin, Result,
    object_id::{blob_id, filtered_tree_id, is_litter, tree_id},
};

/// Checks that everything the build reads from `root` is what `pin` names.
///
/// `root` may lie anywhere: inside a repository, in one of its own, or in none.
///
/// # Errors
/// `ContentMissing` and `ContentDiffers` for the first object that is absent or another.
pub fn verify(root: &Path, pin: &Pin) -> Result<()> {
    for object in &pin.objects {
        let path = root.join(&object.path);
        if !path.exists() {
            return Err(Error::ContentMissing { path, version: pin.version.clone() });
        }
        let got = match object.kind {
            ObjectKind::Blob => blob_id(&path)?,
            ObjectKind::Tree => tree_id(&path)?,
        };
        if got != object.id {
            return Err(Error::ContentDiffers {
                path,
                version: pin.version.clone(),
                expected: object.id,
                got,
            });
        }
    }
    Ok(())
}

/// The ids that `root` really has for the pinned paths, in the pin's order.
pub fn actual_ids(root: &Path, pin: &Pin) -> Result<Vec<ObjectId>> {
    let id = |o: &crate::PinnedObject| match o.kind {
        ObjectKind::Blob => blob_id(&root.join(&o.path)),
        ObjectKind::Tree => tree_id(&root.join(&o.path)),
    };
    pin.objects.iter().map(id).collect()
}

/// Copies the pinned paths, and nothing else, from `root` into the empty folder `to`.
pub fn copy_pinned(root: &Path, to: &Path, pin: &Pin) -> Result<()> {
    for object in &pin.objects {
        copy(&root.join(&object.path), &to.join(&object.path))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_symlink() {
        return copy_link(from, to);
    }
    if !from.is_dir() {
        fs::copy(from, to).map_err(Error::io("copy", from))?;
        return Ok(());
    }
    fs::create_dir_all(to).map_err(Error::io("create", to))?;
    for entry in fs::read_dir(from).map_err(Error::io("list", from))? {
        let name = entry.map_err(Error::io("list", from))?.file_name();
        if !is_litter(&name) {
            copy(&from.join(&name), &to.join(&name))?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn copy_link(from: &Path, to: &Path) -> Result<()> {
    let target = fs::read_link(from).map_err(Error::io("read", from))?;
    std::os::unix::fs::symlink(target, to).map_err(Error::io("create", to))
}

#[cfg(not(unix))]
fn copy_link(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map_err(Error::io("copy", from))?;
    Ok(())
}

/// The id of an installed `include/mlx`, comparable with [`crate::Release::headers`].
pub fn header_id(include_mlx: &Path) -> Result<ObjectId> {
    let installed = |path: &Path| {
        // MLX does not install this one
        let excluded = path.ends_with("backend/metal/kernels.h");
        path.extension().is_some_and(|e| e == "h") && !excluded
    };
    Ok(filtered_tree_id(include_mlx, &installed)?.unwrap_or_else(|| ObjectId::of("tree", b"")))
}

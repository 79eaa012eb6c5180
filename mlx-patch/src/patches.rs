//! The patches: each opens a seam in MLX and says why in its header.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Error, Result};

/// One file of `patches/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// File name, such as `0001-open-export-table.patch`.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// The patches in `dir`, in the order in which they apply. No folder means no patches.
pub fn list(dir: &Path) -> Result<Vec<Patch>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut patches = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        if path.extension().is_some_and(|e| e == "patch") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
            patches.push(Patch { name, path, text });
        }
    }
    patches.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(patches)
}

/// The patches in `dir/backend`, which only builds with that backend need; their names begin with it.
///
/// # Errors
/// As [`list`].
pub fn of_backend(dir: &Path, backend: &str) -> Result<Vec<Patch>> {
    let named = |patch: Patch| Patch { name: format!("{backend}/{}", patch.name), ..patch };
    Ok(list(&dir.join(backend))?.into_iter().map(named).collect())
}

/// Applies `patches` to `tree`; one that is in already is left alone.
///
/// Lines must match exactly, although they may have moved.
///
/// # Errors
/// `PatchDoesNotApply` for the first patch that fits neither forwards nor backwards; `tree` then
/// holds the ones before it.
pub fn apply(git: &Path, tree: &Path, patches: &[Patch]) -> Result<()> {
    for patch in patches {
        let forward = git_apply(git, tree, patch, &["--check"])?;
        match forward {
            Ok(()) => {
                let applied = git_apply(git, tree, patch, &[])?;
                applied.map_err(|detail| rejected(patch, detail))?;
                // git passes over files that it takes to be outside of the tree
                let undoable = git_apply(git, tree, patch, &["--check", "--reverse"])?;
                undoable.map_err(|detail| rejected(patch, detail))?;
            }
            Err(detail) => git_apply(git, tree, patch, &["--check", "--reverse"])?
                .map_err(|_| rejected(patch, detail))?,
        }
    }
    Ok(())
}

fn rejected(patch: &Patch, detail: String) -> Error {
    Error::PatchDoesNotApply { patch: patch.name.clone(), detail }
}

fn git_apply(
    git: &Path,
    tree: &Path,
    patch: &Patch,
    options: &[&str],
) -> Result<std::result::Result<(), String>> {
    let mut command = isolated_git(git, tree);
    command.args(["-c", "core.autocrlf=false", "-c", "apply.ignoreWhitespace=no", "apply"]);
    command.arg("--whitespace=nowarn").args(options).arg(&patch.path);
    let output = command.output().map_err(Error::io("run", git))?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// git in `dir`, blind to the user's configuration and to any repository around the folder.
pub(crate) fn isolated_git(git: &Path, dir: &Path) -> Command {
    let mut command = Command::new(git);
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"] {
        command.env_remove(variable);
    }
    let ceiling = dir.parent().unwrap_or(dir);
    let ceiling = ceiling.canonicalize().unwrap_or_else(|_| ceiling.to_owned());
    command.env("GIT_CEILING_DIRECTORIES", ceiling);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("LC_ALL", "C").current_dir(dir);
    command
}

//! Git object ids of files and folders, computed without git.
//!
//! Reading the bytes ourselves means that neither `.gitignore` nor `core.autocrlf` nor
//! attributes nor the repository around a folder can change what is compared.

use std::{fmt, fs, path::Path, str::FromStr};

use sha1::{Digest, Sha1};

use crate::{Error, Result};

/// The SHA-1 id that git gives to a blob or a tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; 20]);

impl ObjectId {
    /// The id of a git object of `kind` ("blob" or "tree") with the given content.
    pub fn of(kind: &str, content: &[u8]) -> ObjectId {
        let mut hasher = Sha1::new();
        hasher.update(format!("{kind} {}\0", content.len()));
        hasher.update(content);
        ObjectId(hasher.finalize().into())
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({self})")
    }
}

impl FromStr for ObjectId {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let problem = || format!("`{text}` is not a git id of 40 hex digits");
        if text.len() != 40 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(problem());
        }
        let mut id = [0; 20];
        for (i, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| problem())?;
        }
        Ok(ObjectId(id))
    }
}

/// Which files of a folder count.
pub type Filter<'a> = &'a dyn Fn(&Path) -> bool;

/// Files that an operating system leaves behind; they are neither compared nor copied.
pub(crate) fn is_litter(name: &std::ffi::OsStr) -> bool {
    name == ".DS_Store"
}

/// The id of one file's content.
pub fn blob_id(path: &Path) -> Result<ObjectId> {
    let content = fs::read(path).map_err(Error::io("read", path))?;
    Ok(ObjectId::of("blob", &content))
}

/// The id of a folder with everything below it.
pub fn tree_id(path: &Path) -> Result<ObjectId> {
    Ok(filtered_tree_id(path, &|_| true)?.unwrap_or_else(|| ObjectId::of("tree", b"")))
}

/// As [`tree_id`], of the files for which `filter` says yes; `None` when there are none.
///
/// Folders without files are left out, as git leaves them out.
pub fn filtered_tree_id(path: &Path, filter: Filter<'_>) -> Result<Option<ObjectId>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let kind = entry.file_type().map_err(Error::io("read", entry.path()))?;
        let name = entry.file_name().as_encoded_bytes().to_vec();
        if is_litter(&entry.file_name()) {
            continue;
        }
        if kind.is_dir() {
            if let Some(id) = filtered_tree_id(&entry.path(), filter)? {
                // git sorts a folder as if its name ended in a slash
                let key = [name.as_slice(), b"/"].concat();
                entries.push((key, "40000", name, id));
            }
        } else if filter(&entry.path()) {
            let (mode, id) = file_entry(&entry.path(), kind)?;
            entries.push((name.clone(), mode, name, id));
        }
    }
    if entries.is_empty() {
        return Ok(None);
    }
    entries.sort();
    let mut content = Vec::new();
    for (_, mode, name, id) in entries {
        content.extend_from_slice(mode.as_bytes());
        content.push(b' ');
        content.extend_from_slice(&name);
        content.push(0);
        content.extend_from_slice(&id.0);
    }
    Ok(Some(ObjectId::of("tree", &content)))
}

fn file_entry(path: &Path, kind: fs::FileType) -> Result<(&'static str, ObjectId)> {
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(Error::io("read", path))?;
        return Ok(("120000", ObjectId::of("blob", target.as_os_str().as_encoded_bytes())));
    }
    Ok((if is_executable(path)? { "100755" } else { "100644" }, blob_id(path)?))
}

#[cfg(unix)]
fn is_executable(path: &Path) -> Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = fs::metadata(path).map_err(Error::io("read", path))?;
    Ok(metadata.permissions().mode() & 0o100 != 0)
}

#[cfg(not(unix))]
fn is_executable(_: &Path) -> Result<bool> {
    Ok(false)
}

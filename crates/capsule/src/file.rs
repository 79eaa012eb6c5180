//! Capsules as files.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{Capsule, Error, Result, SCHEMA, VERSION};

impl Capsule {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// `Io`; `NotACapsule` for other JSON and other versions; `Field` for what cannot be.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| Error::Io {
            verb: "read",
            path: path.into(),
            source,
        })?;
        Self::parse(&bytes, path)
    }

    /// The same of what has been read already.
    ///
    /// - `path`: for messages
    ///
    /// # Errors
    /// As [`Capsule::read`], without `Io`.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let no = |reason: String| Error::NotACapsule { path: path.into(), reason };
        // the version first: what else there is depends on it
        let head: Value = serde_json::from_slice(bytes).map_err(|error| no(error.to_string()))?;
        match head.get("schema").and_then(Value::as_str) {
            Some(SCHEMA) => {}
            Some(other) => return Err(no(format!("its schema is {other:?}, expected {SCHEMA:?}"))),
            None => return Err(no(format!("expected an object with the schema {SCHEMA:?}"))),
        }
        match head.get("version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                let advice = if version > u64::from(VERSION) { "; a newer zmlx does" } else { "" };
                return Err(no(format!(
                    "it is of version {version}, this zmlx reads version {VERSION}{advice}"
                )));
            }
            None => return Err(no("it has no version".to_owned())),
        }
        let capsule: Self = serde_path_to_error::deserialize(head).map_err(|error| {
            let field = error.path().to_string();
            Error::Field { path: path.into(), field, reason: error.into_inner().to_string() }
        })?;
        capsule.check().map_err(|problem| Error::Field {
            path: path.into(),
            field: problem.field,
            reason: problem.reason,
        })?;
        Ok(capsule)
    }

    /// Checks and writes a file, in one move: whoever reads it sees the old one or the new one.
    ///
    /// # Errors
    /// `Io`; `Field` for what cannot be.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.check().map_err(|problem| Error::Field {
            path: path.into(),
            field: problem.field,
            reason: problem.reason,
        })?;
        let error = |source| Error::Io { verb: "write", path: path.into(), source };
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| error(e.into()))?;
        bytes.push(b'\n');
        let mut draft = path.as_os_str().to_owned();
        draft.push(".partial");
        fs::write(&draft, bytes).and_then(|()| fs::rename(&draft, path)).map_err(error)
    }
}

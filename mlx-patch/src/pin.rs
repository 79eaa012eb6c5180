use std::sync::LazyLock;

use crate::{Error, ObjectId, Result};

/// What a git id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// A file.
    Blob,
    /// A folder.
    Tree,
}

/// A file or folder of the pinned release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedObject {
    /// File or folder.
    pub kind: ObjectKind,
    /// Path from the root of MLX.
    pub path: String,
    /// Its git id.
    pub id: ObjectId,
}

/// A package on crates.io that carries a pristine copy of MLX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageCopy {
    /// Name of the package.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// Where in it MLX lies.
    pub folder: String,
}

/// A release that may be linked as somebody else has compiled it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Version without a leading `v`.
    pub version: String,
    /// Id of `mlx/` cut down to the headers that MLX installs.
    pub headers: ObjectId,
    /// Version of mlx-lm that is the reference on this MLX.
    pub mlx_lm: String,
}

/// The MLX release that zmlx is built on, as `MLX_PIN` states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Version without a leading `v`.
    pub version: String,
    /// Commit of the release.
    pub commit: String,
    /// Where git fetches it from.
    pub repository: String,
    /// The copy on crates.io.
    pub package: PackageCopy,
    /// Everything the build reads, with its id.
    pub objects: Vec<PinnedObject>,
    /// What prebuilt mode accepts; the pinned release is among them.
    pub prebuilt: Vec<Release>,
}

static PIN: LazyLock<Pin> = LazyLock::new(|| match Pin::parse(include_str!("../MLX_PIN")) {
    Ok(pin) => pin,
    Err(error) => unreachable!("MLX_PIN is checked by a test: {error}"),
});

impl Release {
    /// The version as the macro `MLX_VERSION_NUMERIC` has it; `None` unless it is three numbers.
    pub fn numeric(&self) -> Option<u32> {
        let parts: Vec<u32> = self.version.split('.').map_while(|n| n.parse().ok()).collect();
        match parts[..] {
            [major, minor, patch] => Some(100_000 * major + 1000 * minor + patch),
            _ => None,
        }
    }
}

impl Pin {
    /// The pin of this version of zmlx.
    pub fn current() -> &'static Pin {
        &PIN
    }

    /// Reads a pin file: a key and its values on each line, `#` starts a comment.
    ///
    /// # Errors
    /// `Syntax` for a line with an unknown key or the wrong number of values, and for a key that
    /// does not occur.
    pub fn parse(text: &str) -> Result<Pin> {
        let (mut version, mut commit, mut repository) = (None, None, None);
        let (mut package, mut objects, mut prebuilt) = (None, Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let id = |text: &str| text.parse::<ObjectId>().map_err(|e| syntax(index + 1, e));
            match words[..] {
                [] => {}
                ["version", v] => version = Some(v.to_owned()),
                ["commit", v] => commit = Some(id(v)?.to_string()),
                ["repository", v] => repository = Some(v.to_owned()),
                ["package", name, version, folder] => {
                    package = Some(PackageCopy {
                        name: name.to_owned(),
                        version: version.to_owned(),
                        folder: folder.to_owned(),
                    });
                }
                [kind @ ("tree" | "blob"), path, v] => objects.push(PinnedObject {
                    kind: if kind == "tree" { ObjectKind::Tree } else { ObjectKind::Blob },
                    path: path.to_owned(),
                    id: id(v)?,
                }),
                ["prebuilt", version, headers, "mlx-lm", mlx_lm] => prebuilt.push(Release {
                    version: version.to_owned(),
                    headers: id(headers)?,
                    mlx_lm: mlx_lm.to_owned(),
                }),
                _ => return Err(syntax(index + 1, format!("cannot read `{}`", line.trim()))),
            }
        }
        let end = text.lines().count();
        let need = |key: &str| syntax(end, format!("`{key}` is missing"));
        if objects.is_empty() {
            return Err(need("tree"));
        }
        let version = version.ok_or_else(|| need("version"))?;
        if !prebuilt.iter().any(|release| release.version == version) {
            return Err(need(&format!("prebuilt {version}")));
        }
        Ok(Pin {
            version,
            commit: commit.ok_or_else(|| need("commit"))?,
            repository: repository.ok_or_else(|| need("repository"))?,
            package: package.ok_or_else(|| need("package"))?,
            objects,
            prebuilt,
        })
    }

    /// What prebuilt mode knows of `version`; `None` when it does not accept it.
    pub fn release(&self, version: &str) -> Option<&Release> {
        self.prebuilt.iter().find(|release| release.version == version)
    }
}

fn syntax(line: usize, problem: String) -> Error {
    Error::Syntax { file: "MLX_PIN".to_owned(), line, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "e73b436e608255cbd44a8375e103fc67bc1b9eb7";

    #[test]
    fn pin_file_is_readable() {
        let pin = Pin::parse(include_str!("../MLX_PIN")).expect("MLX_PIN");
        assert_eq!(pin.version, "0.32.2");
        assert!(pin.objects.iter().any(|o| o.path == "mlx" && o.id.to_string() == ID));
    }

    #[test]
    fn pin_with_bad_id_names_line_and_value() {
        let error = Pin::parse("version 1.0.0\ntree mlx e73b\n").expect_err("short id");
        assert_eq!(error.to_string(), "MLX_PIN line 2: `e73b` is not a git id of 40 hex digits");
    }

    #[test]
    fn pin_with_unknown_key_names_it() {
        let error = Pin::parse("branch main").expect_err("unknown key");
        assert_eq!(error.to_string(), "MLX_PIN line 1: cannot read `branch main`");
    }

    #[test]
    fn pin_without_its_own_headers_says_so() {
        let text = format!(
            "version 1\ncommit {ID}\nrepository u\npackage p 1 f\ntree mlx {ID}\n\
             prebuilt 2 {ID} mlx-lm 3\n"
        );
        let error = Pin::parse(&text).expect_err("no headers");
        assert_eq!(error.to_string(), "MLX_PIN line 6: `prebuilt 1` is missing");
    }

    #[test]
    fn mlx_version_header_knows_the_releases_of_the_pin_and_no_others() {
        let text = include_str!("../overlay/zmlx/mlx_version.h");
        let known = text.lines().find(|l| l.starts_with("#if ")).expect("the list of versions");
        let mut wanted = Vec::new();
        for release in &Pin::current().prebuilt {
            wanted.push(format!("MLX_VERSION_NUMERIC != {}", release.numeric().expect("version")));
        }
        assert_eq!(known, format!("#if {}", wanted.join(" && ")));
    }
}

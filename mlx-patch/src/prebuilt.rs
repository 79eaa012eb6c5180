//! Accepting an MLX that somebody else has compiled: an official wheel, a Homebrew prefix.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, Pin, Release, Result, verify::header_id};

/// An installed MLX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prebuilt {
    /// Which release it is.
    pub release: Release,
    /// Folder with `mlx/mlx.h`.
    pub include: PathBuf,
    /// Folder with the shared library.
    pub lib: PathBuf,
    /// Backends whose parts are there: `cpu`, `cuda`, `metal`.
    pub backends: Vec<String>,
}

/// Checks that `root` holds one of the releases that the pin accepts prebuilt, with its headers.
///
/// The library itself cannot be held against an id, for there are as many as there are builds of a
/// release; its version and its C++ standard library can, and are.
///
/// # Errors
/// `Prebuilt`, which says what was found and what to do.
pub fn accept(root: &Path, pin: &Pin, os: &str, allow_unverified: bool) -> Result<Prebuilt> {
    let refuse = |problem: String| Error::Prebuilt { path: root.to_owned(), problem };
    let include = root.join("include");
    let header = include.join("mlx/version.h");
    let text = fs::read_to_string(&header).map_err(|_| {
        refuse(
            "there is no include/mlx/version.h; name the folder that has include/ and lib/, for a \
             wheel <site-packages>/mlx, for Homebrew the output of `brew --prefix mlx`"
                .to_owned(),
        )
    })?;
    let version = version_in(&text)
        .ok_or_else(|| refuse(format!("cannot read a version in {}", header.display())))?;
    let Some(release) = pin.release(&version) else {
        let known: Vec<&str> = pin.prebuilt.iter().map(|r| r.version.as_str()).collect();
        return Err(refuse(format!(
            "it holds MLX {version}, zmlx knows {}; install one of them, for instance with `pip \
             install mlx=={}`",
            known.join(" and "),
            pin.version
        )));
    };
    let got = header_id(&include.join("mlx"))?;
    if got != release.headers && !allow_unverified {
        return Err(refuse(format!(
            "its headers differ from MLX {version}: git id {got}, pinned {}; reinstall it, or set \
             ZMLX_ALLOW_UNVERIFIED_MLX=1 to use it all the same",
            release.headers
        )));
    }

    let lib = root.join("lib");
    let name = if os == "macos" { "libmlx.dylib" } else { "libmlx.so" };
    let library = lib.join(name);
    let content = fs::read(&library).map_err(|_| refuse(format!("there is no lib/{name}")))?;
    if os == "linux" && !contains(&content, b"St7__cxx1112basic_string") {
        return Err(refuse(format!(
            "lib/{name} was compiled against the old C++ ABI of libstdc++; use the official wheel \
             of MLX {version}"
        )));
    }
    if !contains(&content, version.as_bytes()) {
        return Err(refuse(format!(
            "lib/{name} is not of MLX {version}, of which its headers are; reinstall it, for \
             instance with `pip install --force-reinstall mlx=={version}`"
        )));
    }
    let mut backends = vec!["cpu".to_owned()];
    if contains(&content, b"cublasLtMatmul") {
        backends.push("cuda".to_owned());
    }
    if lib.join("mlx.metallib").exists() {
        backends.push("metal".to_owned());
    }
    Ok(Prebuilt { release: release.clone(), include, lib, backends })
}

fn version_in(header: &str) -> Option<String> {
    let number = |part: &str| {
        let name = format!("#define MLX_VERSION_{part} ");
        let line = header.lines().find_map(|l| l.strip_prefix(&name))?;
        line.trim().parse::<u32>().ok()
    };
    Some(format!("{}.{}.{}", number("MAJOR")?, number("MINOR")?, number("PATCH")?))
}

fn contains(content: &[u8], part: &[u8]) -> bool {
    content.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(root: &Path, version: [u32; 3], library: &str) -> Pin {
        let mlx = root.join("include/mlx");
        fs::create_dir_all(&mlx).expect("include");
        fs::create_dir_all(root.join("lib")).expect("lib");
        let [major, minor, patch] = version;
        let text = format!(
            "#define MLX_VERSION_MAJOR {major}\n#define MLX_VERSION_MINOR {minor}\n\
             #define MLX_VERSION_PATCH {patch}\n"
        );
        fs::write(mlx.join("version.h"), text).expect("header");
        fs::write(root.join("lib/libmlx.so"), library).expect("library");
        let mut pin = Pin::current().clone();
        let release = Release {
            version: format!("{major}.{minor}.{patch}"),
            headers: header_id(&mlx).expect("id"),
            mlx_lm: String::new(),
        };
        match pin.prebuilt.iter_mut().find(|r| r.version == release.version) {
            Some(known) => *known = release,
            None => pin.prebuilt.clear(),
        }
        pin
    }

    fn refusal(root: &Path, pin: &Pin) -> String {
        accept(root, pin, "linux", false).expect_err("refused").to_string()
    }

    #[test]
    fn prebuilt_of_each_release_is_accepted() {
        for patch in [2, 4] {
            let dir = tempfile::tempdir().expect("tempdir");
            let library = format!("_ZNSt7__cxx1112basic_string cublasLtMatmul 0.32.{patch}");
            let pin = install(dir.path(), [0, 32, patch], &library);
            let prebuilt = accept(dir.path(), &pin, "linux", false).expect("accepted");
            assert_eq!(prebuilt.backends, ["cpu", "cuda"]);
            assert_eq!(prebuilt.release.version, format!("0.32.{patch}"));
        }
    }

    #[test]
    fn prebuilt_of_another_version_names_the_known_ones() {
        let dir = tempfile::tempdir().expect("tempdir");
        install(dir.path(), [0, 32, 3], "");
        let message = refusal(dir.path(), Pin::current());
        assert!(message.contains("MLX 0.32.3, zmlx knows 0.32.2 and 0.32.4"), "{message}");
    }

    #[test]
    fn library_of_another_version_than_its_headers_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pin = install(dir.path(), [0, 32, 4], "_ZNSt7__cxx1112basic_string 0.32.2");
        let message = refusal(dir.path(), &pin);
        assert!(message.contains("libmlx.so is not of MLX 0.32.4"), "{message}");
    }

    #[test]
    fn prebuilt_with_edited_header_names_both_ids() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pin = install(dir.path(), [0, 32, 2], "St7__cxx1112basic_string 0.32.2");
        fs::write(dir.path().join("include/mlx/array.h"), "// mine").expect("edit");
        let got = header_id(&dir.path().join("include/mlx")).expect("id").to_string();
        let message = refusal(dir.path(), &pin);
        assert!(
            message.contains(&got) && message.contains(&pin.prebuilt[0].headers.to_string()),
            "{message}"
        );
        assert!(accept(dir.path(), &pin, "linux", true).is_ok());
    }

    #[test]
    fn prebuilt_with_old_abi_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pin = install(dir.path(), [0, 32, 2], "_ZNSs4swapERSs");
        assert!(refusal(dir.path(), &pin).contains("old C++ ABI"));
    }

    #[test]
    fn folder_without_mlx_says_which_folder_is_meant() {
        let dir = tempfile::tempdir().expect("tempdir");
        let message = refusal(dir.path(), Pin::current());
        assert!(message.contains("<site-packages>/mlx"), "{message}");
    }

    #[test]
    fn folder_without_library_says_so() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pin = install(dir.path(), [0, 32, 2], "");
        fs::remove_file(dir.path().join("lib/libmlx.so")).expect("remove");
        assert!(refusal(dir.path(), &pin).contains("there is no lib/libmlx.so"));
    }
}

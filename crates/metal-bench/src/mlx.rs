//! Where MLX's kernels are.

use std::path::{Path, PathBuf};

use zmlx_patch::{
    Pin, Warn,
    locate::{ANSWER_WITHIN, Places, locate},
};

use crate::{Error, Result};

/// The include folder of the MLX that this workspace links, with its kernels' headers.
pub fn include() -> PathBuf {
    env!("METAL_BENCH_MLX_INCLUDE").into()
}

/// The release of that MLX.
pub fn version() -> &'static str {
    env!("METAL_BENCH_MLX_VERSION")
}

/// The folder of our primitives, with their kernels.
pub fn overlay() -> PathBuf {
    Path::new(zmlx_patch::ROOT).join("overlay")
}

/// The source of the pinned release, which has the `.metal` files that an installed MLX lacks; copied
/// into `folder` on the first call. `None` if another release is linked.
///
/// # Errors
/// `Mlx`, with the places that were tried.
pub fn source(folder: &Path) -> Result<Option<PathBuf>> {
    let pin = Pin::current();
    if version() != pin.version {
        return Ok(None);
    }
    let root = folder.join(format!("mlx-{}", pin.commit));
    if root.exists() {
        return Ok(Some(root));
    }
    let new = folder.join("mlx.new");
    let mut places = Places {
        offline: true,
        answer_within: ANSWER_WITHIN,
        cargo: std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
        manifest: Path::new(zmlx_patch::ROOT).join("Cargo.toml"),
        ..Places::default()
    };
    let git = Path::new("git");
    let mut silent = |_: &str| {};
    let warn: Warn<'_> = &mut silent;
    // what cargo has on this machine, before a host is asked
    if locate(&places, git, pin, &new, warn).is_err() {
        places.offline = std::env::var("CARGO_NET_OFFLINE").is_ok_and(|v| v == "true");
        locate(&places, git, pin, &new, warn)?;
    }
    std::fs::rename(&new, &root).map_err(Error::io("rename", &new))?;
    Ok(Some(root))
}

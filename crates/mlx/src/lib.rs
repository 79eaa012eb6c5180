//! Safe wrappers over [MLX](https://github.com/ml-explore/mlx) and the zmlx primitives.
//!
//! - [`Array`]: a lazy n-dimensional array. Ops build a graph; [`eval`] runs it.
//! - [`ops`], [`fast`], [`quantization`], [`random`]: MLX's functions by family. Each runs on the
//!   current thread's default stream of the default device ([`Device`], [`Stream`]).
//! - [`primitives`]: the fused launches that zmlx adds to MLX.
//! - [`launches`]: how many kernels a graph launches; [`profile`]: what its time goes to on the CPU.
//! - [`recording`]: steps of decode that are started again and again, on CUDA.
//! - [`io`], [`memory`], [`transforms`].
//!
//! # Threads
//!
//! MLX keeps its streams per thread, so an unevaluated array belongs to the thread that made it:
//! [`Array`] is neither `Send` nor `Sync`. [`Array::freeze`] evaluates an array, cuts it from its
//! graph and gives a [`Frozen`] that can move to another thread.
//!
//! # Errors
//!
//! C++ exceptions become [`Error`]s. Shapes and dtypes are checked when an op is called; what can
//! only fail while running (memory, files, kernels) is reported by [`eval`] and by the functions
//! that read values.
#![deny(missing_docs)]

mod array;
mod bounds;
mod device;
mod dtype;
mod error;
pub mod fast;
pub mod io;
pub mod launches;
pub mod memory;
pub mod ops;
pub mod primitives;
pub mod profile;
pub mod quantization;
pub mod random;
pub mod recording;
pub mod transforms;

pub use array::{Array, Frozen, async_eval, eval, live_arrays};
pub use device::{
    Device, Stream, default_device, exit, set_default_device, synchronize, with_default_stream,
};
pub use dtype::{Dtype, Element, bf16, f16};
pub use error::{Error, Result};
pub use primitives::{cpu_isa, num_threads, set_cpu_isa, set_num_threads};

/// What this build of MLX contains; fixed at compile time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildInfo {
    /// Version of MLX that is linked, as it says itself.
    pub mlx_version: String,
    /// Version of MLX whose headers zmlx was compiled with; [`check_linked`] compares the two.
    pub compiled_version: &'static str,
    /// Version of mlx-lm that is the reference on that MLX.
    pub mlx_lm_version: &'static str,
    /// Version of MLX that zmlx is pinned to.
    pub pinned_version: &'static str,
    /// Commit of MLX that zmlx is pinned to.
    pub pin: &'static str,
    /// `source` or `prebuilt`.
    pub mode: &'static str,
    /// Where MLX came from, in words.
    pub source: &'static str,
    /// Backends compiled in: `cpu`, `metal`, `cuda`.
    pub backends: Vec<&'static str>,
    /// Patches applied to MLX.
    pub patches: Vec<&'static str>,
    /// zmlx primitives compiled in.
    pub primitives: Vec<String>,
}

impl BuildInfo {
    /// What "stock" means in this process, for reports: `MLX 0.32.4 (prebuilt)`.
    pub fn stock(&self) -> String {
        format!("MLX {} ({})", self.mlx_version, self.mode)
    }

    /// What is known to be wrong with the linked MLX, in words for people; `None` when nothing is.
    pub fn known_defect(&self) -> Option<String> {
        let races = self.backends.contains(&"cuda") && self.mlx_version == "0.32.2";
        let mended = self.patches.iter().any(|name| name.starts_with("cuda/0001-"));
        (races && !mended).then(|| {
            "quantised products of 8 rows and more have a race in this MLX on CUDA: the same model may give other tokens \
             every time, patched or not. MLX 0.32.4, and 0.32.2 when zmlx builds it from source, do not have it"
                .to_owned()
        })
    }
}

/// Checks that the MLX that the program has found is of the version that it was compiled for.
///
/// A prebuilt MLX is found when the program starts, and may have been replaced since. Kernels that
/// return the bits of one version do not return those of another.
///
/// # Errors
/// `Version` when it is another.
pub fn check_linked() -> Result<()> {
    check_version(&zmlx_sys::ffi::mlx_version(), zmlx_sys::build::MLX_VERSION)
}

fn check_version(linked: &str, compiled: &str) -> Result<()> {
    // a build between releases adds to the number: 0.32.4.dev20260901+abcdef
    if linked == compiled || linked.starts_with(&format!("{compiled}.")) {
        return Ok(());
    }
    Err(Error::Version { linked: linked.to_owned(), compiled: compiled.to_owned() })
}

/// What this build of MLX contains.
pub fn build_info() -> BuildInfo {
    use zmlx_sys::build;
    let list = |s: &'static str| s.split(',').filter(|s| !s.is_empty()).collect();
    BuildInfo {
        mlx_version: zmlx_sys::ffi::mlx_version(),
        compiled_version: build::MLX_VERSION,
        mlx_lm_version: build::MLX_LM_VERSION,
        pinned_version: build::PINNED_VERSION,
        pin: build::MLX_PIN,
        mode: build::MODE,
        source: build::SOURCE,
        backends: list(build::BACKENDS),
        patches: list(build::PATCHES),
        primitives: zmlx_sys::ffi::fused_primitives(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_than_compiled_for_says_what_to_do() {
        let message = check_version("0.32.2", "0.32.4").expect_err("refused").to_string();
        assert_eq!(
            message,
            "the program has found MLX 0.32.2 and was compiled for 0.32.4; build it again with \
             MLX_PREBUILT_DIR, or take the other MLX out of LD_LIBRARY_PATH"
        );
        assert!(check_version("0.32.40", "0.32.4").is_err());
    }

    #[test]
    fn race_on_cuda_is_known_unless_it_is_mended() {
        let cpu = build_info();
        assert_eq!(cpu.known_defect(), None);
        let patched = BuildInfo {
            mlx_version: "0.32.2".to_owned(),
            backends: vec!["cpu", "cuda"],
            patches: vec!["0001-open-export-table", "cuda/0001-wait-before-epilogue-of-qmm-sm80"],
            ..cpu
        };
        assert_eq!(patched.known_defect(), None);
        let wheel = BuildInfo { patches: vec![], ..patched };
        assert!(wheel.known_defect().expect("has it").contains("race"));
        let newer = BuildInfo { mlx_version: "0.32.4".to_owned(), ..wheel };
        assert_eq!(newer.known_defect(), None);
    }

    #[test]
    fn linked_version_is_the_compiled_one() {
        check_linked().expect("the same");
        let info = build_info();
        assert_eq!(info.stock(), format!("MLX {} ({})", info.compiled_version, info.mode));
    }
}

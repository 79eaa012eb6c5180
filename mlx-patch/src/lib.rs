//! The fork of MLX that zmlx builds: which release, how it is checked, and what is added to it.
//!
//! The fork only adds. [`Pin`] names the release by git object ids, [`verify`] holds a folder
//! against it, [`patches`] opens the few seams that our files need, and [`overlay`] names what they
//! add. The rest is the way from there to an installed library: [`locate`] finds the source,
//! [`prerequisites`] finds what is missing on the machine, [`native`] compiles into a shared
//! [`cache`], and [`prebuilt`] accepts an MLX that somebody else has compiled.
//!
//! Nothing here prints or reads environment variables; the build script of `zmlx-sys` does both.

#![deny(missing_docs)]

pub mod cache;
pub mod cmake;
mod error;
pub mod locate;
pub mod native;
pub mod object_id;
pub mod overlay;
pub mod patches;
mod pin;
pub mod prebuilt;
pub mod prerequisites;
pub mod verify;

pub use error::{Error, Result};
pub use object_id::ObjectId;
pub use pin::{ObjectKind, PackageCopy, Pin, PinnedObject, Release};
pub use verify::verify;

/// The folder of this package, with `overlay/` and `patches/`, on the machine that compiled it.
pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Receives what the user should read although the build goes on.
pub type Warn<'a> = &'a mut dyn FnMut(&str);

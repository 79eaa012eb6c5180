//! The harness: variants of the same work in turns, in one process or one each, with nothing thrown away.
//!
//! - [`variant`], [`case`]: what is compared, and on which work
//! - [`runner`]: the protocol; it fills a [`Capsule`](zmlx_capsule::Capsule)
//! - [`engine`]: what runs a variant: this process, a process of its own, mlx-lm, llama.cpp
//! - [`call`]: the same protocol for single calls, such as primitives
//! - [`smart`]: patching that keeps what was measured to help
//!
//! Machines are noisy, so what counts are ratios of runs that stood side by side. Tokens are compared in every run.
#![deny(missing_docs)]

pub mod call;
pub mod case;
pub mod engine;
mod error;
pub mod hash;
pub mod machine;
mod measure;
pub mod memory;
pub mod model;
pub mod prompts;
pub mod runner;
pub mod smart;
pub mod variant;

pub use case::Work;
pub use engine::{Engine, Outcome};
pub use error::{Error, Result};
pub use runner::{Watch, run};
pub use smart::{SmartOptions, smart_patch};
pub use variant::VariantSpec;

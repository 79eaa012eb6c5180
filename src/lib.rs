//! Mixture-of-experts models on MLX with fused decode launches, and proof that the tokens stay the same.
//!
//! - [`mlx`]: arrays, ops and the fused primitives
//! - [`lm`]: checkpoints, models, the patch layer, generation
//! - [`bench`]: measuring models, and patching by measurement; [`capsule`]: what was measured, judged and shown
//!
//! ```no_run
#![doc = include_str!("../examples/generate.rs")]
//! ```
#![deny(missing_docs)]

pub use mlx;
pub use zmlx_bench as bench;
pub use zmlx_capsule as capsule;
pub use zmlx_lm as lm;

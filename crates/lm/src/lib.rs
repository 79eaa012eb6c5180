//! Language models on MLX: configs, checkpoints, layers, models, fused patterns, generation.
//!
//! One model is one file in [`models`], named after `model_type` in `config.json`. Layers run the ops
//! that mlx-lm runs, in its order, so greedy tokens agree with it; [`patch`] moves modules onto fused
//! primitives that give the same bits.
#![deny(missing_docs)]

mod error;

pub use error::{Error, Result};

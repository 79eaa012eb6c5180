//! Language models on MLX: configs, checkpoints, layers, models, fused patterns, generation.
//!
//! One model is one file in [`models`], named after `model_type` in `config.json`. Layers run the ops
//! that mlx-lm runs, in its order, so greedy tokens agree with it; [`patch()`] moves modules onto fused
//! primitives that give the same bits.
#![deny(missing_docs)]

pub mod cache;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod decoder;
pub mod detokenizer;
pub mod engine;
mod error;
pub mod generate;
pub mod hub;
pub mod inspect;
pub mod launches;
pub mod layers;
pub mod logits;
pub mod models;
pub mod patch;
pub mod patterns;
pub mod placement;
pub mod processors;
pub mod quantization;
mod recorded;
pub mod rewrite;
pub mod routing;
pub mod sampler;
mod sequence;
mod shards;
pub mod step;
pub mod stop;
pub mod synth;
#[cfg(test)]
mod tests;
pub mod tokenizer;
pub mod validate;
pub mod weights;

pub use cache::{CacheOptions, KvQuantization};
pub use chat::{ChatOptions, ChatTemplate};
pub use decoder::{Decoder, Progress, PromptCache};
pub use detokenizer::Detokenizer;
pub use engine::{Engine, EngineOptions, Request};
pub use error::{Error, Result};
pub use generate::{FinishReason, GenerateOptions, Generation, Token, generate};
pub use inspect::{Inspection, inspect};
pub use logits::{LogitDistance, Side, logit_distance};
pub use models::{LoadedModel, Model, load, load_placed, load_with};
pub use patch::{Fused, PatchOptions, PatchReport, Patterns, patch, unpatch};
pub use placement::Placement;
pub use processors::{Penalty, Processing};
pub use routing::{RoutingHistogram, routing_histogram};
pub use sampler::Sampling;
pub use step::{Logits, Step};
pub use stop::{StopStrings, TextStream};
pub use tokenizer::Tokenizer;
pub use validate::{ValidateOptions, Validation, validate};

//! Tests that need a checkpoint: tiny ones, random and seeded, written to a temporary folder.

mod cache;
mod checkpoint;
mod decoder;
mod distances;
mod engine;
mod families;
mod fixture;
mod fused_attention;
mod generate;
mod gpt_oss;
mod hybrid;
mod latent;
mod launches;
mod layers;
mod model;
mod names;
mod patch;
mod placement;
mod prompt_cache;
mod recorded;
mod stop;
mod table;

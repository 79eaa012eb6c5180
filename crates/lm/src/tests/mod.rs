//! Tests that need a checkpoint: tiny ones, random and seeded, written to a temporary folder.

mod cache;
mod checkpoint;
mod decoder;
mod engine;
mod fixture;
mod generate;
mod layers;
mod model;
mod patch;
mod placement;
mod prompt_cache;
mod stop;

//! Tests that need a checkpoint: tiny ones, random and seeded, written to a temporary folder.

mod cache;
mod checkpoint;
mod decoder;
mod engine;
mod families;
mod fixture;
mod generate;
mod gpt_oss;
mod latent;
mod launches;
mod layers;
mod model;
mod names;
mod patch;
mod placement;
mod stop;
mod table;

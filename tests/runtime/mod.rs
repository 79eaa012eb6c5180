//! The wrappers around MLX: errors, leaks, threads, instruction sets, transforms.

mod errors;
mod leaks;
mod threads;
mod transforms;

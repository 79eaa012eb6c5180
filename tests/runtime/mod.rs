//! The wrappers around MLX: errors, hostile arguments, indices, leaks, threads, instruction sets,
//! transforms.

mod errors;
mod hostile;
mod indices;
mod leaks;
mod step;
mod threads;
mod transforms;

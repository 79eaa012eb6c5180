//! The wrappers around MLX: errors, hostile arguments, dense stacks, indices, leaks, threads, instruction sets,
//! transforms.

mod errors;
mod gather_mm;
mod hostile;
mod indices;
mod leaks;
mod step;
mod threads;
mod transforms;

//! The one integration binary: each further one would link MLX again.
//!
//! - `primitives`: every fused primitive against the stock ops it replaces, bit for bit
//! - `runtime`: the wrappers: errors, leaks, threads, instruction sets, transforms
//! - `checkpoints`: models on disk, good and hostile, through the binary
//! - `cli`: the command line contract
//!
//! `ZMLX_TEST_DEVICES=cpu,gpu` means that these must run: an absent device fails. Without it, the
//! devices present are used and others are counted as skipped.

#![allow(clippy::unwrap_used, reason = "a failing test should panic where it fails")]
#![allow(clippy::print_stdout, reason = "a skipped test says so")]
#![allow(clippy::cloned_ref_to_slice_refs, reason = "macros take inputs by value")]

mod checkpoints;
mod cli;
mod primitives;
mod runtime;
mod support;

//! Metal kernels on the CPU, for tests.
//!
//! The actual kernel sources, MLX's and ours, are translated to C++ ([`Translation`]), compiled by the
//! machine's own compiler ([`Compiler`]) against a standard library of ours (`metal/stdlib`), and run
//! by a machine (`metal/runtime`) that executes a grid thread by thread: the 32 lanes of a simdgroup
//! meet in `simd_sum` and its like, the threads of a threadgroup at barriers. The machine checks every
//! access: that it stays in its buffer, that what it reads was written, that no other thread's access
//! meets it without a barrier between them. Lanes that do not arrive at the same meeting are an error,
//! as is a barrier that a thread never reaches.
//!
//! What cannot be known of a GPU is not guessed. Reductions run in several orders ([`Order`]), with
//! products and sums contracted and not ([`Contract`]); precise, fast and half variants of a
//! transcendental function differ in their last bits. Kernels that are equal here use the same
//! functions in the same order on the same values.

#![deny(missing_docs)]

mod compiler;
mod error;
mod launch;
pub mod mlx;
mod program;
mod translate;

pub use compiler::{Compiler, Contract};
pub use error::{Error, Fault, Result};
pub use launch::{Access, Bytes, Launch, Order, Outcome, Output};
pub use program::{Machine, Program};
pub use translate::Translation;

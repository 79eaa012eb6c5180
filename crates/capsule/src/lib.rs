//! Capsules: one JSON file for each measurement, with all that is needed to repeat it, judge it and show it.
//!
//! - [`Capsule`]: the schema, checked when it is read ([`Capsule::read`])
//! - [`stats`]: medians, intervals and tests for machines that are noisy
//! - [`compare`]: whether one capsule is slower than another
//! - [`report`]: tables for a terminal and Markdown, a page with plots
//!
//! Nothing here measures, and nothing here needs MLX.
#![deny(missing_docs)]

mod check;
pub mod compare;
mod error;
mod file;
pub mod matrix;
mod metric;
pub mod report;
mod schema;
pub mod stats;
pub mod summary;
#[cfg(test)]
mod tests;

pub use error::{Error, Result};
pub use metric::{Metric, rounded};
pub use schema::*;

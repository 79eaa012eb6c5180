//! How many kernels one decode token launches on Metal, stock and patched, counted on any machine.

use std::path::Path;

use mlx::launches::{self, Launches};
use mlx::{Array, Dtype, ops};

use crate::error::Result;
use crate::models::{self, LoadedModel, Model};
use crate::patch::{PatchOptions, PatchReport, Target, patch_for, unpatch};
use crate::placement::Placement;
use crate::step::Step;

/// Tokens before the one whose launches are counted. The cache has room for it, as for 255 of 256; chips with two kernels
/// of attention for long contexts take the one for short ones.
pub const CONTEXT: i32 = 500;

/// The launches of one decode token.
#[derive(Debug, Clone)]
pub struct LaunchReport {
    /// Tokens before it.
    pub context: i32,
    /// On stock operations.
    pub stock: Launches,
    /// On the patterns that are on by default on a Mac, or on those that were asked for.
    pub patched: Launches,
    /// What was patched, and why not the rest.
    pub patch: PatchReport,
}

impl LaunchReport {
    /// What mlx-lm launches: stock, with the elementwise operations of the functions that it compiles taken together.
    pub fn mlx_lm(&self) -> usize {
        self.stock.total_compiled()
    }
}

/// Counts the launches of a checkpoint's decode step. Weights are opened, not read, and nothing is computed.
///
/// # Errors
/// Those of [`models::load`]; `UnknownPattern`.
pub fn count(dir: &Path, options: &PatchOptions) -> Result<LaunchReport> {
    let (mut loaded, _) = models::open(dir, Placement::default())?;
    unpatch(&mut loaded);
    let stock = step(&loaded)?;
    let patch = patch_for(&mut loaded, options, Target::Metal)?;
    let patched = step(&loaded)?;
    Ok(LaunchReport { context: CONTEXT, stock, patched, patch })
}

/// One greedy step behind a prompt, as [`Decoder`](crate::Decoder) takes it.
fn step(loaded: &LoadedModel) -> Result<Launches> {
    let model = loaded.model.as_ref();
    let (built, plan) = launches::plan(|| build(model));
    let Built { step, before } = built?;
    Ok(plan.count(&step, &before)?)
}

/// The graphs of two steps.
struct Built {
    /// The token that the second one chooses, and the caches after it.
    step: Vec<Array>,
    /// What the first one computed.
    before: Vec<Array>,
}

fn build(model: &dyn Model) -> Result<Built> {
    let mut cache = model.make_cache();
    let prompt = ops::zeros(&[1, CONTEXT], Dtype::U32)?;
    let logits = model.forward(&Step::new(&prompt), &mut [&mut cache])?;
    let token = model.head().greedy(&logits.reshape(&[1, logits.dim(-1)])?)?;
    let before = cache.arrays().cloned().chain([token.clone()]).collect();
    let logits = model.forward(&Step::new(&token.reshape(&[1, 1])?), &mut [&mut cache])?;
    let token = model.head().greedy(&logits.reshape(&[1, logits.dim(-1)])?)?;
    Ok(Built { step: cache.arrays().cloned().chain([token]).collect(), before })
}

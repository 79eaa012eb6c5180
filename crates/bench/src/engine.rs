//! What runs a variant.

mod here;
mod llama;
mod worker;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zmlx_capsule::{EngineKind, Metric, Variant};

use crate::Result;
use crate::case::Work;
use crate::measure::Cancelled;
use crate::variant::VariantSpec;

pub use here::Here;
pub use llama::LlamaBench;
pub use worker::{Request, Worker, serve};

/// What one run gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// What was measured.
    pub metrics: BTreeMap<Metric, f64>,
    /// Tokens of each row; `None` of a program that does not say.
    pub rows: Option<Vec<Vec<u32>>>,
}

/// A runner of variants.
pub trait Engine {
    /// Says what a capsule tells of a variant beside its settings: patterns in force, versions.
    ///
    /// # Errors
    /// Whatever keeps it from running at all.
    fn describe(&mut self, spec: &VariantSpec, variant: &mut Variant) -> Result<()>;

    /// Why a case is not for this variant, in words for people.
    fn refusal(&self, spec: &VariantSpec, work: &Work) -> Option<String>;

    /// Runs a case once; `None` when it was cancelled.
    ///
    /// # Errors
    /// Whatever went wrong.
    fn run(
        &mut self,
        spec: &VariantSpec,
        work: &Work,
        cancelled: Cancelled<'_>,
    ) -> Result<Option<Outcome>>;
}

/// An engine for each kind of variant.
pub struct Engines<'a> {
    /// For those of this program.
    pub own: Box<dyn Engine + 'a>,
    /// For those of other programs.
    pub others: Vec<(EngineKind, Box<dyn Engine + 'a>)>,
}

impl<'a> Engines<'a> {
    fn of(&mut self, kind: EngineKind) -> &mut (dyn Engine + 'a) {
        match self.others.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, engine)) => engine.as_mut(),
            None => self.own.as_mut(),
        }
    }
}

impl Engine for Engines<'_> {
    fn describe(&mut self, spec: &VariantSpec, variant: &mut Variant) -> Result<()> {
        self.of(spec.engine).describe(spec, variant)
    }

    fn refusal(&self, spec: &VariantSpec, work: &Work) -> Option<String> {
        let other = self.others.iter().find(|(known, _)| *known == spec.engine);
        other.map_or(&self.own, |(_, engine)| engine).refusal(spec, work)
    }

    fn run(
        &mut self,
        spec: &VariantSpec,
        work: &Work,
        cancelled: Cancelled<'_>,
    ) -> Result<Option<Outcome>> {
        self.of(spec.engine).run(spec, work, cancelled)
    }
}

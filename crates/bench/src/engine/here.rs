//! This process: variants are patched into one model in memory, one after the other.

use zmlx_capsule::{EngineKind, Variant};
use zmlx_lm::{LoadedModel, patch};

use super::{Engine, Outcome};
use crate::case::Work;
use crate::measure::{self, Cancelled};
use crate::variant::VariantSpec;
use crate::{Error, Result};

/// A model in memory.
pub struct Here<'a> {
    loaded: &'a mut LoadedModel,
    /// Threads of variants that name none.
    threads: i32,
}

impl<'a> Here<'a> {
    /// Runs variants on a model.
    pub fn new(loaded: &'a mut LoadedModel) -> Self {
        Self { loaded, threads: mlx::num_threads() }
    }

    fn set(&mut self, spec: &VariantSpec) -> Result<zmlx_lm::PatchReport> {
        if spec.smart {
            let reason = "its patterns are yet to be chosen: bench::smart::settle";
            return Err(Error::argument("variant", &spec.name, reason));
        }
        let threads = spec.threads.unwrap_or(self.threads);
        if threads != mlx::num_threads() {
            mlx::set_num_threads(threads)?;
        }
        Ok(patch(self.loaded, &spec.patch_options())?)
    }
}

impl Engine for Here<'_> {
    fn describe(&mut self, spec: &VariantSpec, variant: &mut Variant) -> Result<()> {
        if spec.engine != EngineKind::Zmlx {
            let reason = "its program was not given";
            return Err(Error::argument("variant", &spec.name, reason));
        }
        let report = self.set(spec)?;
        variant.patterns = report.patterns.iter().map(|name| (*name).to_owned()).collect();
        let row = |(row, reason): (&zmlx_lm::patch::ModuleReport, &str)| {
            format!("{} {}: {reason}", row.module, row.pattern)
        };
        variant.fallbacks = report.fallbacks().map(row).collect();
        Ok(())
    }

    fn refusal(&self, _spec: &VariantSpec, _work: &Work) -> Option<String> {
        None
    }

    fn run(
        &mut self,
        spec: &VariantSpec,
        work: &Work,
        cancelled: Cancelled<'_>,
    ) -> Result<Option<Outcome>> {
        self.set(spec)?;
        let outcome = measure::run(self.loaded.model.as_ref(), spec, work, cancelled);
        if spec.threads.is_some() {
            mlx::set_num_threads(self.threads)?;
        }
        outcome
    }
}

//! What a capsule's samples come to.

use std::collections::BTreeMap;

use crate::stats::{self, Change, Spread};
use crate::{Capsule, Metric, Sample};

impl Capsule {
    /// The samples of a variant and case.
    pub fn samples_of(&self, variant: usize, case: usize) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |s| s.variant == variant && s.case == case)
    }

    /// What was measured of a metric, in order.
    pub fn values(&self, variant: usize, case: usize, metric: Metric) -> Vec<f64> {
        let value = |s: &Sample| s.metrics.get(&metric).copied();
        self.samples_of(variant, case).filter_map(value).collect()
    }

    /// The same by the number of the run.
    pub fn by_run(&self, variant: usize, case: usize, metric: Metric) -> BTreeMap<usize, f64> {
        let value = |s: &Sample| Some((s.run, *s.metrics.get(&metric)?));
        self.samples_of(variant, case).filter_map(value).filter(|(_, v)| *v > 0.0).collect()
    }

    /// Median and spread of a variant in a case; `None` where it was not measured.
    pub fn spread(&self, variant: usize, case: usize, metric: Metric) -> Option<Spread> {
        Spread::of(&self.values(variant, case, metric))
    }

    /// The metrics that any sample has, in order.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut all: Vec<Metric> =
            self.samples.iter().flat_map(|s| s.metrics.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// How often a variant was as fast as another, side by side in each case and run: more than 1 is faster.
    ///
    /// - `cases`: those to look at
    pub fn ratios(
        &self,
        variant: usize,
        reference: usize,
        metric: Metric,
        cases: impl IntoIterator<Item = usize>,
    ) -> Vec<Vec<f64>> {
        let ratios = |case| {
            let old = self.by_run(reference, case, metric);
            let new = self.by_run(variant, case, metric);
            let ratio = |(run, new): (usize, f64)| {
                let ratio = new / old.get(&run)?;
                Some(if metric.more_is_better() { ratio } else { 1.0 / ratio })
            };
            new.into_iter().filter_map(ratio).collect()
        };
        cases.into_iter().map(ratios).collect()
    }

    /// How much faster a variant is than the first one, over all cases.
    pub fn speedup(&self, variant: usize, metric: Metric) -> Option<Change> {
        stats::paired(&self.ratios(variant, 0, metric, 0..self.cases.len()))
    }

    /// Whether every variant that is not expected to differ says what the reference says.
    pub fn is_faithful(&self) -> bool {
        self.fidelity.iter().all(|f| f.first_divergence.is_none() || self.variants[f.variant].lossy)
    }

    /// Median bytes per second that memory gave when it was copied, and when it was read.
    pub fn bandwidth_median(&self) -> Option<crate::Bandwidth> {
        let of = |value: fn(&crate::Bandwidth) -> f64| {
            stats::median(&self.bandwidth.iter().map(value).collect::<Vec<_>>())
        };
        Some(crate::Bandwidth {
            copy_bytes_per_s: of(|b| b.copy_bytes_per_s)?,
            read_bytes_per_s: of(|b| b.read_bytes_per_s)?,
        })
    }
}

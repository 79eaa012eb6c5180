//! The protocol for single calls: ways to do the same work in turns, in one process.

use std::time::{Duration, Instant};

use zmlx_capsule::{
    Capsule, Case, CaseKind, EngineKind, Metric, Protocol, SCHEMA, Sample, Software, VERSION,
    Variant, rounded,
};

use crate::machine;

/// One way to do the work of a case.
pub struct Call<'a, E> {
    /// Number of the variant.
    pub variant: usize,
    /// How many times [`Call::run`] does the work; what is recorded is the time of one.
    pub calls: usize,
    /// Does the work, to completion.
    pub run: Box<dyn FnMut() -> Result<(), E> + 'a>,
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Most rounds per variant.
    pub rounds: usize,
    /// Time after which a variant stops early, once it has run [`Budget::min_rounds`].
    pub per_variant: Duration,
    /// Fewest rounds per variant.
    pub min_rounds: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { rounds: 31, per_variant: Duration::from_secs(3), min_rounds: 3 }
    }
}

/// Runs all calls in turns until the budget is used. The caller has run each of them once, to compare
/// their outputs: that is the warm-up. One so slow that one round takes several budgets runs once.
///
/// # Errors
/// What a call returns.
pub fn interleave<E>(
    calls: &mut [Call<'_, E>],
    case: usize,
    budget: Budget,
) -> Result<Vec<Sample>, E> {
    let mut samples = Vec::new();
    let mut spent = vec![Duration::ZERO; calls.len()];
    for round in 0..budget.rounds {
        for turn in 0..calls.len() {
            // Rotate who goes first, so that nobody always follows the same neighbour.
            let i = (turn + round) % calls.len();
            let enough = if round >= budget.min_rounds { 1 } else { 4 };
            if round > 0 && spent[i] > enough * budget.per_variant {
                continue;
            }
            let start = Instant::now();
            (calls[i].run)()?;
            let took = start.elapsed();
            spent[i] += took;
            let seconds = took.as_secs_f64() / calls[i].calls as f64;
            samples.push(sample(calls[i].variant, case, round, Metric::Seconds, seconds));
        }
    }
    Ok(samples)
}

/// A sample of one figure.
pub fn sample(variant: usize, case: usize, run: usize, metric: Metric, value: f64) -> Sample {
    let metrics = [(metric, rounded(value))].into();
    Sample { variant, case, run, metrics, tokens: 0, tokens_sha256: None }
}

/// A case of one call.
///
/// - `bytes`: that it reads at least
/// - `flops`: multiplications and additions
pub fn case(name: String, bytes: Option<f64>, flops: Option<f64>) -> Case {
    Case {
        name,
        kind: CaseKind::Call,
        prompt: None,
        prompt_tokens: 0,
        generate_tokens: 0,
        depth: 0,
        batch: 1,
        prompt_sha256: None,
        bytes,
        flops,
    }
}

/// An empty capsule of a program that measures calls.
///
/// - `variants`: names; the first is the reference
pub fn capsule(program: &str, zmlx: Software, variants: &[&str], runs: usize) -> Capsule {
    let variant = |name: &&str| Variant {
        name: (*name).to_owned(),
        engine: EngineKind::Call,
        engine_version: None,
        settings: (*name).to_owned(),
        lossy: name.starts_with("fast"),
        patterns: Vec::new(),
        fallbacks: Vec::new(),
    };
    Capsule {
        schema: SCHEMA.to_owned(),
        version: VERSION,
        created: machine::now(),
        program: program.to_owned(),
        zmlx,
        mlx: machine::mlx_build(),
        machine: machine::machine(),
        model: None,
        protocol: Protocol {
            runs,
            warmup: 1,
            cooldown_ms: 0,
            order: "rotating".to_owned(),
            isolate: false,
        },
        variants: variants.iter().map(variant).collect(),
        cases: Vec::new(),
        samples: Vec::new(),
        outputs: Vec::new(),
        fidelity: Vec::new(),
        logits: Vec::new(),
        routing: Vec::new(),
        bandwidth: Vec::new(),
        interrupted: false,
        notes: Vec::new(),
    }
}

//! What the types of the schema cannot say.

use std::collections::BTreeSet;

use crate::{Capsule, SCHEMA, VERSION};

/// A field that says something impossible.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) field: String,
    pub(crate) reason: String,
}

type Checked = Result<(), Problem>;

fn ensure(good: bool, field: impl Into<String>, reason: impl Into<String>) -> Checked {
    if good { Ok(()) } else { Err(Problem { field: field.into(), reason: reason.into() }) }
}

impl Capsule {
    /// Whether it says what a capsule can say.
    pub(crate) fn check(&self) -> Checked {
        ensure(self.schema == SCHEMA, "schema", format!("{:?}; expected {SCHEMA:?}", self.schema))?;
        ensure(
            self.version == VERSION,
            "version",
            format!("{}; expected {VERSION}", self.version),
        )?;
        ensure(is_time(&self.created), "created", "expected a time like 2026-11-20T12:00:00Z")?;
        ensure(!self.variants.is_empty(), "variants", "expected at least one")?;
        ensure(!self.cases.is_empty(), "cases", "expected at least one")?;
        names(self.variants.iter().map(|v| v.name.as_str()), "variants")?;
        names(self.cases.iter().map(|c| c.name.as_str()), "cases")?;
        for (i, case) in self.cases.iter().enumerate() {
            ensure(case.batch > 0, format!("cases[{i}].batch"), "0; expected at least 1")?;
            sha256(case.prompt_sha256.as_deref(), format!("cases[{i}].prompt_sha256"))?;
        }
        self.check_samples()?;
        self.check_findings()
    }

    fn check_samples(&self) -> Checked {
        let mut seen = BTreeSet::new();
        for (i, sample) in self.samples.iter().enumerate() {
            let at = |field: &str| format!("samples[{i}].{field}");
            self.known(sample.variant, sample.case, &format!("samples[{i}]"))?;
            ensure(
                seen.insert((sample.variant, sample.case, sample.run)),
                format!("samples[{i}]"),
                "a second sample of the same variant, case and run",
            )?;
            ensure(!sample.metrics.is_empty(), at("metrics"), "expected at least one")?;
            for (metric, value) in &sample.metrics {
                ensure(
                    value.is_finite() && *value >= 0.0,
                    at(&format!("metrics.{metric:?}")),
                    format!("{value}; expected a number that is not negative"),
                )?;
            }
            sha256(sample.tokens_sha256.as_deref(), at("tokens_sha256"))?;
        }
        Ok(())
    }

    fn check_findings(&self) -> Checked {
        for (i, output) in self.outputs.iter().enumerate() {
            self.known(output.variant, output.case, &format!("outputs[{i}]"))?;
        }
        for (i, fidelity) in self.fidelity.iter().enumerate() {
            self.known(fidelity.variant, fidelity.case, &format!("fidelity[{i}]"))?;
            let parted = fidelity.first_divergence.as_ref().is_none_or(|d| d.expected != d.got);
            let field = format!("fidelity[{i}].first_divergence");
            ensure(parted, field, "expected two tokens that differ")?;
        }
        for (i, logits) in self.logits.iter().enumerate() {
            self.known(logits.variant, logits.case, &format!("logits[{i}]"))?;
            for (name, share) in
                [("top_k", logits.top_k_agreement), ("top_1", logits.top_1_agreement)]
            {
                let field = format!("logits[{i}].{name}_agreement");
                ensure((0.0..=1.0).contains(&share), field, "expected a share from 0 to 1")?;
            }
        }
        for (i, routing) in self.routing.iter().enumerate() {
            self.known(0, routing.case, &format!("routing[{i}]"))?;
            let alike = routing.counts.len() == routing.weights.len() && !routing.counts.is_empty();
            let field = format!("routing[{i}].weights");
            ensure(alike, field, "expected one for each of `counts`")?;
        }
        for (i, bandwidth) in self.bandwidth.iter().enumerate() {
            let good = |x: f64| x.is_finite() && x > 0.0;
            let both = good(bandwidth.copy_bytes_per_s) && good(bandwidth.read_bytes_per_s);
            ensure(both, format!("bandwidth[{i}]"), "expected numbers above 0")?;
        }
        Ok(())
    }

    fn known(&self, variant: usize, case: usize, at: &str) -> Checked {
        let (variants, cases) = (self.variants.len(), self.cases.len());
        ensure(variant < variants, format!("{at}.variant"), format!("{variant} of {variants}"))?;
        ensure(case < cases, format!("{at}.case"), format!("{case} of {cases}"))
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>, list: &str) -> Checked {
    let mut seen = BTreeSet::new();
    for (i, name) in names.enumerate() {
        let field = format!("{list}[{i}].name");
        ensure(!name.trim().is_empty(), &field, "expected a name")?;
        ensure(seen.insert(name), field, format!("a second {name:?}"))?;
    }
    Ok(())
}

fn sha256(hash: Option<&str>, field: String) -> Checked {
    let good = |h: &str| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit());
    ensure(hash.is_none_or(good), field, "expected 64 hexadecimal digits")
}

/// `2026-11-20T12:00:00Z`, with or without fractions.
fn is_time(text: &str) -> bool {
    let digits = |range: std::ops::Range<usize>| {
        text.get(range).is_some_and(|part| part.bytes().all(|b| b.is_ascii_digit()))
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let numbers = [0..4, 5..7, 8..10, 11..13, 14..16, 17..19];
    marks.iter().all(|(at, mark)| text.as_bytes().get(*at) == Some(mark))
        && numbers.into_iter().all(digits)
        && text.ends_with('Z')
}

//! What a comparison says.

use super::Document;
use crate::Metric;
use crate::compare::Comparison;
use crate::stats::Verdict;

/// The report of a comparison.
///
/// - `old`, `new`: names of two capsules, or of the reference and of the capsule that both are in
pub fn comparison(found: &Comparison, old: &str, new: &str) -> Document {
    let mut document = Document { title: format!("{new} against {old}"), ..Document::default() };
    for note in &found.notes {
        document.text(format!("Note: {note}."));
    }
    let rows = found.rows.iter().map(|row| {
        let name = match row.metric {
            Metric::DecodeTokPerS => "decode",
            Metric::PromptTokPerS => "prefill",
            Metric::PeakMemoryBytes => "memory",
            _ => "speed",
        };
        let verdict = match row.verdict {
            Verdict::Faster if row.metric == Metric::PeakMemoryBytes => "less",
            Verdict::Slower if row.metric == Metric::PeakMemoryBytes => "MORE",
            Verdict::Faster => "faster",
            Verdict::Slower => "SLOWER",
            Verdict::Same => "the same",
            Verdict::Unclear => "too few runs",
        };
        let worst = row.cases.iter().min_by(|a, b| a.1.ratio.total_cmp(&b.1.ratio));
        vec![
            format!("{} {name}", row.variant),
            row.change.text(),
            row.change.count.to_string(),
            format!("{:.4}", row.change.p_slower),
            verdict.to_owned(),
            worst.map_or("-".to_owned(), |(case, c)| format!("{case} {:.2}x", c.ratio)),
        ]
    });
    document.table(
        &[
            "variant",
            if found.paired { "by it" } else { "new by old" },
            "samples",
            "p slower",
            "verdict",
            "worst case",
        ],
        rows.collect(),
    );
    for (variant, case) in &found.other_tokens {
        document.text(format!("TOKENS: {variant} says something else in {case}"));
    }
    document.text(format!(
        "Above 1 is better. Worse is what is off by {:.1} % or more and what noise comes to less than once in a hundred \
         ({}).",
        100.0 * found.threshold,
        if found.paired { "signed ranks of runs side by side" } else { "rank sums" }
    ));
    document.text(if found.is_good() { "regression: no" } else { "regression: yes" });
    document
}

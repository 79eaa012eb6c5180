use super::*;
use crate::compare::{self, Control, compare};
use crate::tests::sample_capsule;

#[test]
fn a_report_says_the_same_as_text_markdown_and_page() {
    let capsule = sample_capsule();
    let document = report(&capsule);
    let (text, marks, page) = (terminal(&document), markdown(&document), page(&document));
    for wanted in ["demo", "english", "stock", "zmlx", "not identical", "token 3: 9 instead of 8"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
        assert!(marks.contains(wanted), "{wanted}: {marks}");
        assert!(page.contains(wanted), "{wanted}");
    }
    assert!(text.contains("faster"), "{text}");
    assert!(marks.lines().any(|line| line.starts_with("| --- | ---:")), "{marks}");
}

#[test]
fn a_page_needs_nothing_else_and_has_every_plot() {
    let page = page(&report(&sample_capsule()));
    for banned in ["http://", "https://", "src=", "<script", "@import", "url("] {
        assert!(!page.contains(banned), "{banned}");
    }
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("width=device-width"));
    for title in [
        "decode tok/s by length",
        "decode tok/s by prompt",
        "Spread of decode tok/s",
        "decode tok/s against stock",
        "Roofline of decode",
        "How often experts are chosen",
    ] {
        assert!(page.contains(&format!("<h3>{title}</h3>")), "{title}");
    }
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(!page.contains("NaN") && !page.contains("inf"), "a place that is none");
}

#[test]
fn what_a_capsule_says_is_text_wherever_it_is_shown() {
    let mut capsule = sample_capsule();
    capsule.variants[1].name = "<script>x</script>|y".to_owned();
    let document = report(&capsule);
    assert!(!page(&document).contains("<script"));
    assert!(!markdown(&document).contains("<script"));
    assert!(markdown(&document).contains("\\|y"));
}

#[test]
fn a_regression_is_found_and_no_change_is_not() {
    let (old, mut new) = (sample_capsule(), sample_capsule());
    let alone = compare::Options { control: Control::None, ..Default::default() };
    for options in [&compare::Options::default(), &alone] {
        let same = compare(&old, &new, options).unwrap();
        assert!(same.is_good(), "{same:?}");
    }
    for sample in new.samples.iter_mut().filter(|s| s.variant == 1) {
        for value in sample.metrics.values_mut() {
            *value *= 0.8;
        }
    }
    let found = compare(&old, &new, &compare::Options::default()).unwrap();
    assert!(!found.is_good());
    let text = terminal(&comparison(&found, "old", "new"));
    assert!(text.contains("SLOWER") && text.ends_with("regression: yes\n"), "{text}");
    let control =
        compare::Options { control: Control::Variant("stock".to_owned()), ..Default::default() };
    assert!(!compare(&old, &new, &control).unwrap().is_good());
    // all of it slower by the same: the machine's doing
    for sample in new.samples.iter_mut().filter(|s| s.variant == 0) {
        for value in sample.metrics.values_mut() {
            *value *= 0.8;
        }
    }
    assert!(compare(&old, &new, &control).unwrap().is_good());
    let found = compare(&old, &new, &compare::Options::default()).unwrap();
    assert!(found.is_good(), "stock is the control where both have it");
    assert!(found.notes.iter().any(|n| n.starts_with("by stock")), "{:?}", found.notes);
    assert!(!compare(&old, &new, &alone).unwrap().is_good());
    new.mlx.version = "0.32.4".to_owned();
    assert!(!compare(&old, &new, &compare::Options::default()).unwrap().is_good(), "another stock");
}

#[test]
fn variants_of_one_capsule_are_compared_side_by_side() {
    let mut capsule = sample_capsule();
    capsule.fidelity.iter_mut().for_each(|f| f.first_divergence = None);
    let default = compare::Options::default();
    let found = compare::within(&capsule, &default).unwrap();
    assert!(found.is_good() && found.paired, "{found:?}");
    assert_eq!(found.rows.len(), 2, "decode and prefill of the other variant");
    // and the other way around
    let control =
        compare::Options { control: Control::Variant("zmlx".to_owned()), ..Default::default() };
    let found = compare::within(&capsule, &control).unwrap();
    let text = terminal(&comparison(&found, "zmlx", "x.json"));
    assert!(text.contains("x.json against zmlx") && text.contains("signed ranks"), "{text}");
    assert!(text.contains("stock decode") && text.ends_with("regression: yes\n"), "{text}");

    let found = compare::within(&sample_capsule(), &default).unwrap();
    assert_eq!(found.other_tokens, [("zmlx".to_owned(), "code 64".to_owned())]);
    assert!(!found.is_good());
    let nobody =
        compare::Options { control: Control::Variant("nobody".to_owned()), ..Default::default() };
    assert!(compare::within(&capsule, &nobody).unwrap_err().to_string().contains("nobody"));
    capsule.variants.truncate(1);
    capsule.samples.retain(|s| s.variant == 0);
    assert!(compare::within(&capsule, &default).unwrap_err().to_string().contains("no two"));
}

#[test]
fn other_tokens_are_a_regression() {
    let (old, mut new) = (sample_capsule(), sample_capsule());
    new.samples.iter_mut().for_each(|s| s.tokens_sha256 = Some("ab".repeat(32)));
    let found = compare(&old, &new, &compare::Options::default()).unwrap();
    assert_eq!(found.other_tokens.len(), 4, "two variants, two cases");
    assert!(!found.is_good());
}

#[test]
fn capsules_without_anything_in_common_are_refused() {
    let (old, mut new) = (sample_capsule(), sample_capsule());
    new.variants.iter_mut().for_each(|v| v.name.push('2'));
    let error = compare(&old, &new, &compare::Options::default()).unwrap_err();
    assert!(error.to_string().contains("same name"), "{error}");
    let control =
        compare::Options { control: Control::Variant("nobody".to_owned()), ..Default::default() };
    assert!(compare(&old, &old, &control).unwrap_err().to_string().contains("nobody"));
}

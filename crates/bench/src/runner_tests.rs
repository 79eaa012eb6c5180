use std::cell::Cell;
use std::collections::BTreeMap;

use zmlx_capsule::stats::{Random, Verdict};
use zmlx_capsule::{Metric, Software, Variant};

use super::*;
use crate::{Error, call};

/// Speeds of a noisy machine, and tokens that one variant may get wrong.
struct Fake {
    random: Random,
    drift: f64,
    /// Speed of each variant by its name.
    speeds: Vec<(&'static str, f64)>,
    /// The variant that says another token, where and in which run of it.
    wrong: Option<(&'static str, usize)>,
    order: Vec<(String, String)>,
    fail_at: Option<usize>,
}

impl Fake {
    fn new(speeds: &[(&'static str, f64)], seed: u64) -> Self {
        let random = Random::new(seed);
        Self {
            random,
            drift: 0.0,
            speeds: speeds.to_vec(),
            wrong: None,
            order: vec![],
            fail_at: None,
        }
    }
}

impl Engine for Fake {
    fn describe(&mut self, _: &VariantSpec, _: &mut Variant) -> Result<()> {
        Ok(())
    }

    fn refusal(&self, spec: &VariantSpec, work: &Work) -> Option<String> {
        let refused = spec.name == "alone" && work.case.batch > 1;
        refused.then(|| "it is measured alone".to_owned())
    }

    fn run(
        &mut self,
        spec: &VariantSpec,
        work: &Work,
        _: &dyn Fn() -> bool,
    ) -> Result<Option<Outcome>> {
        if self.fail_at == Some(self.order.len()) {
            return Err(Error::program("fake", "it broke"));
        }
        self.order.push((spec.name.clone(), work.case.name.clone()));
        self.drift = 0.9 * self.drift + 0.03 * (self.random.unit() - 0.5);
        let speed = self.speeds.iter().find(|(name, _)| *name == spec.name).map_or(1.0, |s| s.1);
        let speed = speed * (self.drift + 0.03 * (self.random.unit() - 0.5)).exp();
        let count = spec.capped(work.case.generate_tokens);
        let mut row: Vec<u32> = (0..count as u32).collect();
        if let Some((name, at)) = self.wrong
            && name == spec.name
            && at < count
        {
            row[at] = 99;
        }
        let rows = vec![row; work.case.batch];
        Ok(Some(Outcome {
            metrics: BTreeMap::from([(Metric::DecodeTokPerS, speed)]),
            rows: Some(rows),
        }))
    }
}

/// Ends after some runs, where it is told to.
#[derive(Default)]
struct Watcher {
    ran: usize,
    end_after: Option<usize>,
    saved: Cell<usize>,
}

impl Watch for Watcher {
    fn next(&mut self, done: usize, total: usize, _: &str) {
        assert!(done < total);
    }
    fn ran(&mut self, _: &Capsule, _: &Sample) {
        self.ran += 1;
    }
    fn save(&mut self, _: &Capsule) -> Result<()> {
        self.saved.set(self.saved.get() + 1);
        Ok(())
    }
    fn cancelled(&self) -> bool {
        self.end_after.is_some_and(|n| self.ran >= n)
    }
}

fn specs(texts: &[&str]) -> Vec<VariantSpec> {
    texts.iter().map(|text| VariantSpec::parse(text).unwrap()).collect()
}

fn work() -> Vec<Work> {
    vec![Work::generate("code", vec![1, 2, 3], 8), Work::decode(6, 0, 2, 50)]
}

fn capsule(variants: &[VariantSpec], work: &[Work], runs: usize) -> Capsule {
    let software = Software { version: "0".to_owned(), commit: "c".to_owned() };
    let mut capsule = call::capsule("bench", software, &["x"], runs);
    capsule.protocol.order = "abba".to_owned();
    capsule.variants = variants.iter().map(VariantSpec::describe).collect();
    capsule.cases = work.iter().map(|w| w.case.clone()).collect();
    capsule
}

fn measured(fake: &mut Fake, variants: &[VariantSpec], runs: usize) -> Capsule {
    let work = work();
    let mut capsule = capsule(variants, &work, runs);
    let mut plan = Plan { variants, work: &work, memory: None };
    run(&mut plan, fake, &mut capsule, &mut Watcher::default()).unwrap();
    capsule
}

#[test]
fn variants_take_turns_and_turn_around() {
    let variants = specs(&["a=off", "b=auto"]);
    let mut fake = Fake::new(&[], 1);
    let capsule = measured(&mut fake, &variants, 2);
    let names: Vec<&str> = fake.order.iter().map(|(name, _)| name.as_str()).collect();
    // warm-up; then case by case, first AB, in the second run BA
    assert_eq!(names.join(""), "ab".to_owned() + "abab" + "baba");
    assert_eq!(capsule.samples.len(), 8);
    assert!(!capsule.interrupted);
    let when: Vec<&str> = capsule.machine.hints.iter().map(|h| h.when.as_str()).collect();
    assert_eq!(when, ["start", "end"]);
}

#[test]
fn a_slowed_variant_is_flagged_and_the_same_one_is_not_in_20_trials_each() {
    let variants = specs(&["a=auto", "same=auto", "slow=auto,delay-us=1"]);
    for seed in 0..20 {
        let mut fake = Fake::new(&[("a", 100.0), ("same", 100.0), ("slow", 92.0)], seed);
        let capsule = measured(&mut fake, &variants, 10);
        let verdict = |variant| {
            let change = capsule.speedup(variant, Metric::DecodeTokPerS).unwrap();
            (change.verdict(0.02), change)
        };
        assert_eq!(verdict(1).0, Verdict::Same, "{seed}: {:?}", verdict(1));
        assert_eq!(verdict(2).0, Verdict::Slower, "{seed}: {:?}", verdict(2));
    }
}

#[test]
fn another_token_is_found_with_its_place() {
    let variants = specs(&["a=off", "b=auto", "l=auto,fast,lossy"]);
    let mut fake = Fake::new(&[], 1);
    fake.wrong = Some(("b", 5));
    let capsule = measured(&mut fake, &variants, 2);
    let found: Vec<_> = capsule.fidelity.iter().filter(|f| f.first_divergence.is_some()).collect();
    assert_eq!(found.len(), 2, "in both cases");
    let first = Divergence { run: 0, row: 0, index: 5, expected: Some(5), got: Some(99) };
    assert_eq!((found[0].variant, &found[0].first_divergence), (1, &Some(first)));
    assert!(!capsule.is_faithful());
    let of_b = capsule.outputs.iter().filter(|o| o.variant == 1).count();
    assert_eq!(of_b, 2, "what it said instead is kept, once for each case");
    fake.wrong = Some(("l", 0));
    let capsule = measured(&mut fake, &variants, 2);
    assert!(capsule.fidelity.iter().any(|f| f.first_divergence.is_some()), "reported all the same");
    assert!(capsule.is_faithful(), "it was expected");
}

#[test]
fn a_reference_that_says_other_things_each_time_is_found() {
    let variants = specs(&["a=off"]);
    let work = work();
    let mut all = capsule(&variants, &work, 1);
    let mut plan = Plan { variants: &variants, work: &work, memory: None };
    let mut fake = Fake::new(&[], 1);
    run(&mut plan, &mut fake, &mut all, &mut Watcher::default()).unwrap();
    assert!(all.fidelity.is_empty(), "there is nothing to hold the first run to");
    all.protocol.runs = 2;
    fake.wrong = Some(("a", 2));
    run(&mut plan, &mut fake, &mut all, &mut Watcher::default()).unwrap();
    assert!(!all.is_faithful());
}

#[test]
fn a_capped_variant_is_held_to_what_it_says() {
    let variants = specs(&["stock=off,cap=4", "b=auto"]);
    let mut fake = Fake::new(&[], 1);
    fake.wrong = Some(("b", 6));
    let capsule = measured(&mut fake, &variants, 2);
    assert!(capsule.is_faithful(), "nobody knows what stock says there");
    fake.wrong = Some(("b", 3));
    assert!(!measured(&mut fake, &variants, 2).is_faithful());
}

#[test]
fn a_capped_variant_is_not_held_to_an_answer_to_more_of_the_prompt() {
    // it reads 2 tokens of the first case's 3; the second case has no prompt to cut
    let variants = specs(&["stock=off,cap=2", "b=auto"]);
    let mut fake = Fake::new(&[], 1);
    fake.wrong = Some(("b", 0));
    let capsule = measured(&mut fake, &variants, 1);
    let compared: Vec<usize> = capsule.fidelity.iter().map(|f| f.case).collect();
    assert_eq!(compared, [1], "{:?}", capsule.fidelity);
    assert!(!capsule.is_faithful());
}

#[test]
fn what_was_stopped_is_gone_on_with() {
    let (variants, work) = (specs(&["a=off", "b=auto"]), work());
    let mut all = capsule(&variants, &work, 3);
    let mut plan = Plan { variants: &variants, work: &work, memory: None };
    let mut fake = Fake::new(&[], 1);
    let mut watch = Watcher { end_after: Some(5), ..Watcher::default() };
    run(&mut plan, &mut fake, &mut all, &mut watch).unwrap();
    assert_eq!((all.samples.len(), all.interrupted), (5, true));
    assert!(watch.saved.get() >= 1);
    fake.fail_at = Some(fake.order.len() + 4);
    let mut watch = Watcher::default();
    assert!(run(&mut plan, &mut fake, &mut all, &mut watch).is_err());
    assert_eq!((all.samples.len(), all.interrupted, watch.saved.get()), (7, true, 1), "kept");
    fake.fail_at = None;
    run(&mut plan, &mut fake, &mut all, &mut Watcher::default()).unwrap();
    assert_eq!((all.samples.len(), all.interrupted), (12, false));
    let mut seen: Vec<_> = all.samples.iter().map(|s| (s.variant, s.case, s.run)).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 12, "each once");
    let order = fake.order.len();
    run(&mut plan, &mut fake, &mut all, &mut Watcher::default()).unwrap();
    assert_eq!(fake.order.len(), order, "nothing is left");
}

#[test]
fn cases_that_are_not_for_a_variant_are_left_out_and_said() {
    let variants = specs(&["a=off", "alone=auto"]);
    let capsule = measured(&mut Fake::new(&[], 1), &variants, 1);
    assert_eq!(capsule.samples.len(), 3);
    assert_eq!(capsule.notes, ["alone has no part in tg6 x2: it is measured alone"]);
}

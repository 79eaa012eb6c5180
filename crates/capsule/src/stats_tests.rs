use super::*;

/// Speeds of a machine whose noise drifts: slow for some runs, fast for some, with outliers.
struct Machine {
    random: Random,
    drift: f64,
}

impl Machine {
    fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), drift: 0.0 }
    }

    /// Roughly normal.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.random.unit()).sum::<f64>() - 6.0
    }

    /// 3 % of slow drift, 1 % of noise, and one run of 20 that something else got into the way of.
    fn speed(&mut self, of: f64) -> f64 {
        self.drift = 0.9 * self.drift + 0.013 * self.normal();
        let hit = if self.random.unit() < 0.05 { 0.7 } else { 1.0 };
        of * (self.drift + 0.01 * self.normal()).exp() * hit
    }

    /// Five runs of six cases in AB/BA turns; the second variant is `factor` as fast.
    fn pairs(&mut self, factor: f64) -> Vec<Vec<f64>> {
        let mut run = |base: f64, turn: usize| {
            if turn.is_multiple_of(2) {
                let a = self.speed(base);
                self.speed(base * factor) / a
            } else {
                let b = self.speed(base * factor);
                b / self.speed(base)
            }
        };
        (0..6)
            .map(|case| (0..5).map(|turn| run(20.0 + 30.0 * case as f64, turn)).collect())
            .collect()
    }

    /// The same measured on two days, of which the second is 5 % slower for everything. By a control that ran in turns,
    /// or as it is.
    fn days(&mut self, factor: f64, controlled: bool) -> Vec<Stratum> {
        let mut day = |factor: f64, weather: f64| -> Vec<Vec<f64>> {
            let mut run = |base: f64| {
                let control = self.speed(base * weather);
                let speed = self.speed(base * weather * factor);
                if controlled { speed / control } else { speed }
            };
            (0..6)
                .map(|case| (0..5).map(|_| run(20.0 + 30.0 * f64::from(case))).collect())
                .collect()
        };
        let (old, new) = (day(1.0, 1.0), day(factor, 0.95));
        old.into_iter().zip(new).map(|(old, new)| Stratum { old, new }).collect()
    }
}

#[test]
fn a_slowed_variant_is_flagged_and_the_same_one_is_not_in_20_trials_each() {
    for seed in 0..20 {
        let mut machine = Machine::new(seed);
        let slowed = paired(&machine.pairs(0.9)).unwrap();
        assert_eq!(slowed.verdict(0.02), Verdict::Slower, "{seed}: {slowed:?}");
        let same = paired(&machine.pairs(1.0)).unwrap();
        assert_eq!(same.verdict(0.02), Verdict::Same, "{seed}: {same:?}");
        let faster = paired(&machine.pairs(1.1)).unwrap();
        assert_eq!(faster.verdict(0.02), Verdict::Faster, "{seed}: {faster:?}");
    }
}

#[test]
fn two_days_are_told_from_a_change_by_a_control_in_20_trials_each() {
    for seed in 100..120 {
        let mut machine = Machine::new(seed);
        let slowed = unpaired(&machine.days(0.9, true)).unwrap();
        assert_eq!(slowed.verdict(0.03), Verdict::Slower, "{seed}: {slowed:?}");
        let same = unpaired(&machine.days(1.0, true)).unwrap();
        assert_eq!(same.verdict(0.03), Verdict::Same, "{seed}: {same:?}");
        // without one, what is slower is the day and the change
        let slowed = unpaired(&machine.days(0.85, false)).unwrap();
        assert_eq!(slowed.verdict(0.03), Verdict::Slower, "{seed}: {slowed:?}");
    }
}

/// Two measurements of which each round has a weather of its own, the same for all its cases.
fn weathered(seed: u64, factor: f64) -> Vec<Rounds> {
    let mut machine = Machine::new(seed);
    let mut side = |factor: f64| -> Vec<Vec<f64>> {
        let round = |_| {
            let weather = (0.05 * machine.normal()).exp();
            (0..6)
                .map(|case| machine.speed((20.0 + 30.0 * f64::from(case)) * factor * weather))
                .collect()
        };
        (0..5).map(round).collect()
    };
    let (old, new) = (side(1.0), side(factor));
    let of =
        |rounds: &[Vec<f64>], case: usize| rounds.iter().map(|r| r[case]).enumerate().collect();
    (0..6).map(|case| Rounds { old: of(&old, case), new: of(&new, case) }).collect()
}

#[test]
fn what_a_whole_round_suffers_is_no_change() {
    let strata = |cases: &[Rounds]| {
        let of = |c: &Rounds| {
            let values = |side: &BTreeMap<usize, f64>| side.values().copied().collect();
            Stratum { old: values(&c.old), new: values(&c.new) }
        };
        cases.iter().map(of).collect::<Vec<_>>()
    };
    let (mut alone, mut by_round) = (0, 0);
    for seed in 0..100 {
        let same = weathered(seed, 1.0);
        let changed = |change: Change| change.verdict(0.02) != Verdict::Same;
        alone += u32::from(changed(unpaired(&strata(&same)).unwrap()));
        by_round += u32::from(changed(by_rounds(&same).unwrap()));
    }
    assert!(alone > 20 && by_round <= 3, "{alone} and {by_round} of 100");
    for seed in 0..20 {
        let slowed = by_rounds(&weathered(seed, 0.75)).unwrap();
        assert_eq!(slowed.verdict(0.03), Verdict::Slower, "{seed}: {slowed:?}");
        assert!(slowed.low < 0.75 * 1.05 && slowed.high > 0.75 / 1.05, "{slowed:?}");
    }
}

#[test]
fn rounds_are_counted_exactly() {
    let rounds = |old: &[f64], new: &[f64]| {
        let of = |values: &[f64]| values.iter().copied().enumerate().collect();
        [Rounds { old: of(old), new: of(new) }]
    };
    // all of 5 above all of 5: one of 252 ways to deal the labels
    let change =
        by_rounds(&rounds(&[1.0, 1.1, 1.2, 1.3, 1.4], &[2.0, 2.1, 2.2, 2.3, 2.4])).unwrap();
    assert!((change.p_faster - 1.0 / 252.0).abs() < 1e-12 && change.p_slower == 1.0, "{change:?}");
    assert_eq!(change.verdict(0.02), Verdict::Faster);
    let few = by_rounds(&rounds(&[1.0, 1.1, 1.2], &[2.0, 2.1, 2.2])).unwrap();
    assert_eq!(few.verdict(0.02), Verdict::Unclear, "one of 20 is no proof");
    assert_eq!(by_rounds(&rounds(&[1.0], &[])), None);
}

#[test]
fn tests_are_exact_where_there_are_few() {
    // all of n pairs agree: one of 2^n ways to throw the signs
    let change = paired(&[vec![1.1, 1.2, 1.3]]).unwrap();
    assert_eq!((change.p_faster, change.p_slower), (0.125, 1.0));
    assert_eq!(change.verdict(0.02), Verdict::Unclear, "3 pairs cannot tell");
    let change = paired(&[vec![1.1; 8]]).unwrap();
    assert_eq!(change.p_faster, 1.0 / 256.0);
    assert_eq!(change.verdict(0.02), Verdict::Faster);
    assert_eq!(change.verdict(0.2), Verdict::Same, "below the threshold");
    // the published table (n = 8, one-sided 0.027): a rank sum of 4 against
    let values = [-0.04, 0.1, 0.2, 0.3, 0.05, 0.06, 0.07, 0.08].map(f64::exp);
    let p = paired(&[values.to_vec()]).unwrap().p_faster;
    assert!((p - 2.0 / 256.0).abs() < 1e-12, "{p}");
}

#[test]
fn nothing_is_compared_to_nothing() {
    assert_eq!(paired(&[]), None);
    assert_eq!(paired(&[Vec::new()]), None);
    assert_eq!(unpaired(&[Stratum { old: vec![1.0], new: Vec::new() }]), None);
    assert_eq!(median(&[]), None);
}

#[test]
fn medians_and_quartiles_lie_between_neighbours() {
    assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    let spread = Spread::of(&[5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
    assert_eq!((spread.low_quartile, spread.high_quartile), (2.0, 4.0));
    assert_eq!((spread.min, spread.max, spread.count), (1.0, 5.0, 5));
}

#[test]
fn equal_values_share_their_ranks() {
    assert_eq!(ranks(&[2.0, 1.0, 2.0, 3.0]), [2.5, 1.0, 2.5, 4.0]);
}

#[test]
fn correlation_needs_something_that_varies() {
    let line: Vec<(f64, f64)> = (0..5).map(|i| (f64::from(i), 3.0 - 2.0 * f64::from(i))).collect();
    assert!((correlation(&line).unwrap() + 1.0).abs() < 1e-12);
    assert_eq!(correlation(&[(1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]), None);
    assert_eq!(correlation(&line[..2]), None);
}

#[test]
fn intervals_hold_what_was_put_in() {
    let mut held = 0;
    for seed in 0..40 {
        let mut machine = Machine::new(1000 + seed);
        let change = paired(&machine.pairs(0.9)).unwrap();
        held += u32::from(change.low <= 0.9 && 0.9 <= change.high);
    }
    assert!(held >= 34, "{held} of 40 intervals of 95 %");
}

//! Figures from noisy machines: medians, their bootstrap intervals, and rank tests that need no shape of the noise.
//!
//! Speeds are compared by the logarithm of their ratio, within strata: one for each case, so that cases of different
//! speed do not pass for noise. What was measured side by side is paired (Wilcoxon 1945, signed ranks); two measurements
//! apart are not (Wilcoxon's rank sums, stratified as by van Elteren 1960). Both tests permute labels, exactly where there
//! are few. Percentile intervals come from resampling within strata (Efron 1979). Where only whole rounds are independent
//! of each other, labels and draws are those of rounds.

use std::collections::{BTreeMap, BTreeSet};

/// Probability of calling noise a change, for each of the two directions.
pub const ALPHA: f64 = 0.01;
/// Resamples of an interval, and permutations where there are too many to try all.
const RESAMPLES: usize = 4000;
/// Permutations up to which all are tried.
const EXACT: u64 = 20_000;

/// The middle value, or the mean of the two in the middle; `None` of none.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value below which a share of the values lies, between neighbours in proportion; `None` of none.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_of_sorted(&sorted, share)
}

fn quantile_of_sorted(sorted: &[f64], share: f64) -> Option<f64> {
    let at = share.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    let part = at - at.floor();
    Some(sorted[low] + part * (sorted[high] - sorted[low]))
}

/// The middle of some values and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// How many there are.
    pub count: usize,
    /// The median.
    pub median: f64,
    /// A quarter of them lies below.
    pub low_quartile: f64,
    /// A quarter of them lies above.
    pub high_quartile: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile_of_sorted(&sorted, share);
        Some(Self {
            count: sorted.len(),
            median: at(0.5)?,
            low_quartile: at(0.25)?,
            high_quartile: at(0.75)?,
            min: at(0.0)?,
            max: at(1.0)?,
        })
    }
}

/// What a comparison comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Faster, beyond noise and beyond the threshold.
    Faster,
    /// Slower, beyond noise and beyond the threshold.
    Slower,
    /// Nothing that noise or the threshold would not cover.
    Same,
    /// Too few samples to tell noise from a change.
    Unclear,
}

/// A ratio of two speeds, over all strata.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Geometric mean over the strata of their median ratios; above 1 is faster.
    pub ratio: f64,
    /// 95 % interval of it.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// How likely noise alone is to look that much faster.
    pub p_faster: f64,
    /// How likely noise alone is to look that much slower.
    pub p_slower: f64,
    /// Pairs, or the smaller number of samples, over all strata.
    pub count: usize,
    /// The smallest probability that so few samples can come to.
    pub p_least: f64,
}

impl Change {
    /// - `threshold`: the smallest change that counts, such as 0.02
    pub fn verdict(&self, threshold: f64) -> Verdict {
        let far = self.ratio.ln().abs() >= (1.0 + threshold).ln();
        match self.ratio < 1.0 {
            _ if !far => Verdict::Same,
            _ if self.p_least > ALPHA => Verdict::Unclear,
            true if self.p_slower <= ALPHA => Verdict::Slower,
            false if self.p_faster <= ALPHA => Verdict::Faster,
            _ => Verdict::Same,
        }
    }

    /// `1.42x (1.38..1.47)`
    pub fn text(&self) -> String {
        format!("{:.2}x ({:.2}..{:.2})", self.ratio, self.low, self.high)
    }
}

/// Of pairs measured side by side: new by old, both the higher the faster, in strata. `None` without a pair.
pub fn paired(strata: &[Vec<f64>]) -> Option<Change> {
    let logs: Vec<Vec<f64>> = strata
        .iter()
        .filter(|stratum| !stratum.is_empty())
        .map(|stratum| stratum.iter().map(|ratio| ratio.ln()).collect())
        .collect();
    let estimate = mean_of(logs.iter().map(|stratum| median(stratum)))?;
    let mut random = Random::new(1);
    let resampled = (0..RESAMPLES).map(|_| {
        let draw = |stratum: &Vec<f64>| median(&random.resample(stratum));
        mean_of(logs.iter().map(draw)).unwrap_or(estimate)
    });
    let (low, high) = interval(resampled.collect());
    let pairs: Vec<f64> = logs.concat();
    let (p_faster, p_slower) = signed_ranks(&pairs, &mut random);
    Some(Change {
        ratio: estimate.exp(),
        low: low.exp(),
        high: high.exp(),
        p_faster,
        p_slower,
        count: pairs.len(),
        p_least: 0.5f64.powi(pairs.len().min(1000) as i32),
    })
}

/// Samples of one case, old and new.
#[derive(Debug, Clone, Default)]
pub struct Stratum {
    /// Old ones, the higher the faster.
    pub old: Vec<f64>,
    /// New ones.
    pub new: Vec<f64>,
}

/// Of samples measured apart. `None` without a stratum that has both.
pub fn unpaired(strata: &[Stratum]) -> Option<Change> {
    let logs = |values: &[f64]| values.iter().map(|v| v.ln()).collect::<Vec<f64>>();
    let strata: Vec<Stratum> = strata
        .iter()
        .filter(|s| !s.old.is_empty() && !s.new.is_empty())
        .map(|s| Stratum { old: logs(&s.old), new: logs(&s.new) })
        .collect();
    let difference = |old: &[f64], new: &[f64]| Some(median(new)? - median(old)?);
    let estimate = mean_of(strata.iter().map(|s| difference(&s.old, &s.new)))?;
    let mut random = Random::new(2);
    let resampled = (0..RESAMPLES).map(|_| {
        let draw = |s: &Stratum| {
            let (old, new) = (random.resample(&s.old), random.resample(&s.new));
            difference(&old, &new)
        };
        mean_of(strata.iter().map(draw)).unwrap_or(estimate)
    });
    let (low, high) = interval(resampled.collect());
    let (p_faster, p_slower) = rank_sums(&strata, &mut random);
    let arrangements = strata.iter().map(|s| binomial(s.old.len() + s.new.len(), s.new.len()));
    Some(Change {
        ratio: estimate.exp(),
        low: low.exp(),
        high: high.exp(),
        p_faster,
        p_slower,
        count: strata.iter().map(|s| s.old.len().min(s.new.len())).sum(),
        p_least: 1.0 / arrangements.product::<f64>(),
    })
}

/// Speeds of one case in the rounds of two measurements, by the number of the round.
#[derive(Debug, Clone, Default)]
pub struct Rounds {
    /// Old ones, the higher the faster.
    pub old: BTreeMap<usize, f64>,
    /// New ones.
    pub new: BTreeMap<usize, f64>,
}

/// Of samples measured apart, in rounds that went once around all cases. What a machine does to a round, it does to all
/// cases of it: a round is one witness, not as many as it has cases. So labels are dealt to whole rounds, and whole rounds
/// are resampled. `None` without a case that has both.
pub fn by_rounds(cases: &[Rounds]) -> Option<Change> {
    let cases: Vec<[BTreeMap<usize, f64>; 2]> = cases
        .iter()
        .filter(|c| !c.old.is_empty() && !c.new.is_empty())
        .map(|c| [&c.old, &c.new].map(|side| side.iter().map(|(r, v)| (*r, v.ln())).collect()))
        .collect();
    let rounds: [Vec<usize>; 2] = [0, 1].map(|side| {
        let all: BTreeSet<usize> = cases.iter().flat_map(|c| c[side].keys().copied()).collect();
        all.into_iter().collect()
    });
    let difference = |drawn: [&[usize]; 2]| {
        let of = |case: &[BTreeMap<usize, f64>; 2]| {
            let side = |i: usize| {
                let values = drawn[i].iter().filter_map(|round| case[i].get(round).copied());
                median(&values.collect::<Vec<_>>())
            };
            Some(side(1)? - side(0)?)
        };
        // a case that has none of the rounds drawn says nothing
        mean_of(cases.iter().filter_map(|case| of(case).map(Some)))
    };
    let estimate = difference([&rounds[0], &rounds[1]])?;
    let mut random = Random::new(3);
    let resampled = (0..RESAMPLES).map(|_| {
        let drawn = [0, 1].map(|side| random.choose(&rounds[side]));
        difference([&drawn[0], &drawn[1]]).unwrap_or(estimate)
    });
    let (low, high) = interval(resampled.collect());
    let mut scores: Vec<f64> = Vec::new();
    for side in [1, 0] {
        scores.extend(rounds[side].iter().map(|round| round_score(&cases, side, *round)));
    }
    let (p_faster, p_slower) = score_sums(&scores, rounds[1].len(), &mut random);
    Some(Change {
        ratio: estimate.exp(),
        low: low.exp(),
        high: high.exp(),
        p_faster,
        p_slower,
        count: cases.iter().map(|c| c[0].len().min(c[1].len())).sum(),
        p_least: 1.0 / binomial(scores.len(), rounds[1].len()),
    })
}

/// How high a round's samples stand in their cases: the sum of their ranks there, from -1/2 to 1/2.
fn round_score(cases: &[[BTreeMap<usize, f64>; 2]], side: usize, round: usize) -> f64 {
    let score = |case: &[BTreeMap<usize, f64>; 2]| {
        let value = case[side].get(&round)?;
        let all = || case.iter().flat_map(|side| side.values());
        let below = all().filter(|v| *v < value).count() as f64;
        let equal = all().filter(|v| *v == value).count() as f64;
        Some((below + (equal + 1.0) / 2.0) / (all().count() as f64 + 1.0) - 0.5)
    };
    cases.iter().filter_map(score).sum()
}

/// How likely so large, and so small, a sum is of so many scores drawn from all; the first ones are the new ones.
fn score_sums(scores: &[f64], new: usize, random: &mut Random) -> (f64, f64) {
    let observed: f64 = scores[..new].iter().sum();
    // more labels than this have too many ways to be dealt, or too many to look for them
    const MOST: usize = 20;
    if scores.len() > MOST || binomial(scores.len(), new) > EXACT as f64 {
        let mut dealt = scores.to_vec();
        return tail(observed, None, |_| {
            random.shuffle(&mut dealt);
            dealt[..new].iter().sum()
        });
    }
    let is_draw = |mask: &u64| mask.count_ones() as usize == new;
    let draws: Vec<u64> = (0..1u64 << scores.len()).filter(is_draw).collect();
    tail(observed, Some(draws.len() as u64), |i| {
        let chosen = |at: &usize| draws[i as usize] >> at & 1 == 1;
        (0..scores.len()).filter(chosen).map(|at| scores[at]).sum()
    })
}

fn mean_of(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn interval(mut resampled: Vec<f64>) -> (f64, f64) {
    resampled.sort_by(f64::total_cmp);
    let at = |share| quantile_of_sorted(&resampled, share).unwrap_or(f64::NAN);
    (at(0.025), at(0.975))
}

/// Ranks from 1, equals sharing the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let same = |i: &&usize| values[**i] == values[order[start]];
        let count = order[start..].iter().take_while(same).count();
        let rank = start as f64 + (count as f64 + 1.0) / 2.0;
        for i in &order[start..start + count] {
            ranks[*i] = rank;
        }
        start += count;
    }
    ranks
}

/// How likely signs thrown by chance are to give so large, and so small, a sum of signed ranks.
fn signed_ranks(values: &[f64], random: &mut Random) -> (f64, f64) {
    let sizes: Vec<f64> = values.iter().map(|v| v.abs()).collect();
    let ranks = ranks(&sizes);
    let signed = |rank: f64, value: f64| if value == 0.0 { 0.0 } else { rank.copysign(value) };
    let observed: f64 = ranks.iter().zip(values).map(|(r, v)| signed(*r, *v)).sum();
    let all = 2u64.checked_pow(values.len() as u32).filter(|n| *n <= EXACT);
    tail(observed, all, |arrangement| {
        let mut bits = arrangement;
        ranks
            .iter()
            .zip(values)
            .map(|(rank, value)| {
                let positive = match all {
                    Some(_) => {
                        let bit = bits & 1 == 1;
                        bits >>= 1;
                        bit
                    }
                    None => random.next() & 1 == 1,
                };
                let zero = *value == 0.0;
                if zero { 0.0 } else { rank.copysign(if positive { 1.0 } else { -1.0 }) }
            })
            .sum()
    })
}

/// The same of labels dealt anew within each stratum, and the sum of the new ones' ranks.
fn rank_sums(strata: &[Stratum], random: &mut Random) -> (f64, f64) {
    // a stratum's ranks by its size, so that large ones do not drown small ones
    let mut dealt: Vec<(Vec<f64>, usize)> = strata
        .iter()
        .map(|s| {
            let all = [&s.new[..], &s.old[..]].concat();
            let size = all.len() as f64 + 1.0;
            (ranks(&all).iter().map(|rank| rank / size).collect(), s.new.len())
        })
        .collect();
    let sum = |dealt: &[(Vec<f64>, usize)]| -> f64 {
        dealt.iter().map(|(ranks, n)| ranks[..*n].iter().sum::<f64>()).sum()
    };
    let observed = sum(&dealt);
    tail(observed, None, |_| {
        for (ranks, _) in &mut dealt {
            random.shuffle(ranks);
        }
        sum(&dealt)
    })
}

/// Shares of the arrangements at or above what was observed, and at or below it.
fn tail(observed: f64, all: Option<u64>, mut arranged: impl FnMut(u64) -> f64) -> (f64, f64) {
    const SLACK: f64 = 1e-9;
    // what was observed is one of the arrangements, which those drawn by chance need not hold
    let (count, own) = all.map_or((EXACT, 1.0), |count| (count, 0.0));
    let (mut above, mut below) = (own, own);
    for arrangement in 0..count {
        let value = arranged(arrangement);
        above += f64::from(u8::from(value >= observed - SLACK));
        below += f64::from(u8::from(value <= observed + SLACK));
    }
    let total = count as f64 + own;
    (above / total, below / total)
}

fn binomial(n: usize, k: usize) -> f64 {
    (1..=k).map(|i| (n - k + i) as f64 / i as f64).product()
}

/// Pearson's correlation; `None` where either side does not vary or there are fewer than 3 pairs.
pub fn correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let (mx, my) = (mean(|p| p.0), mean(|p| p.1));
    let sum =
        |of: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|p| of(p.0 - mx, p.1 - my)).sum::<f64>();
    let (xy, xx, yy) = (sum(&|x, y| x * y), sum(&|x, _| x * x), sum(&|_, y| y * y));
    let varies = xx > f64::EPSILON * mx * mx && yy > f64::EPSILON * my * my;
    (pairs.len() >= 3 && varies).then(|| xy / (xx * yy).sqrt())
}

/// SplitMix64: the same numbers every time, so that a verdict is one.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// - `seed`: same seed, same numbers
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to less than 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    fn resample(&mut self, values: &[f64]) -> Vec<f64> {
        (0..values.len()).map(|_| values[self.below(values.len())]).collect()
    }

    fn choose(&mut self, values: &[usize]) -> Vec<usize> {
        (0..values.len()).map(|_| values[self.below(values.len())]).collect()
    }

    fn shuffle(&mut self, values: &mut [f64]) {
        for i in (1..values.len()).rev() {
            values.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;

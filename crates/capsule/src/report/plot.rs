//! Axes: from values to places, with ticks that people read.

use super::svg::{Anchor, Svg};
use crate::metric::number;

/// Values along one side of a plot.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    /// From 0, or from the least value below it, to a little above the largest.
    pub(super) fn linear(values: &[f64], from: f64, to: f64) -> Self {
        let high = values.iter().copied().fold(0.0, f64::max);
        let low = values.iter().copied().fold(0.0, f64::min);
        let high = if high > low { high } else { low + 1.0 };
        Self { low, high: high + 0.05 * (high - low), from, to, log: false }
    }

    /// Around the values, by factors.
    pub(super) fn log(values: &[f64], from: f64, to: f64) -> Self {
        let good = || values.iter().copied().filter(|v| v.is_finite() && *v > 0.0);
        let low = good().fold(f64::INFINITY, f64::min);
        let high = good().fold(0.0, f64::max);
        if high <= 0.0 {
            return Self { low: 0.1, high: 10.0, from, to, log: true };
        }
        // a single value gets some room around it
        let room = (high / low).powf(0.08).max(1.15);
        Self { low: low / room, high: high * room, from, to, log: true }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        let part = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part * (self.to - self.from)
    }

    pub(super) fn ticks(&self) -> Vec<f64> {
        let inside = |v: &f64| (self.low..=self.high).contains(v);
        if self.log {
            for steps in
                [&[1.0][..], &[1.0, 3.0], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0]]
            {
                let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
                let all = decades.flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
                let ticks: Vec<f64> = all.filter(inside).collect();
                if ticks.len() >= 3 {
                    return ticks;
                }
            }
            // less than a factor of 2 from end to end
            let linear = Self { log: false, ..self.clone() };
            return linear.ticks();
        }
        let rough = (self.high - self.low) / 4.0;
        let decade = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|s| s * decade).into_iter().find(|s| *s >= rough);
        let step = step.unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        (first..).map(|i| i as f64 * step).take_while(|v| *v <= self.high).collect()
    }
}

/// The inside of a plot.
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

impl Frame {
    /// Lines across, with their values at the left.
    pub(super) fn y_axis(&self, svg: &mut Svg, y: &Scale, title: &str) {
        for tick in y.ticks() {
            let at = y.at(tick);
            svg.line("grid", (self.left, at), (self.right, at));
            svg.text("tick", (self.left - 5.0, at + 4.0), Anchor::End, &tick_text(tick));
        }
        svg.text("tick", (2.0, self.top - 8.0), Anchor::Start, title);
    }

    /// Values along the bottom.
    pub(super) fn x_axis(&self, svg: &mut Svg, x: &Scale, title: &str) {
        for tick in x.ticks() {
            let at = x.at(tick);
            svg.line("grid", (at, self.top), (at, self.bottom));
            svg.text("tick", (at, self.bottom + 15.0), Anchor::Middle, &tick_text(tick));
        }
        let middle = (self.left + self.right) / 2.0;
        svg.text("tick", (middle, self.bottom + 31.0), Anchor::Middle, title);
    }
}

fn tick_text(value: f64) -> String {
    match value.abs() {
        v if v >= 1e9 => format!("{}G", trimmed(value / 1e9)),
        v if v >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        v if v >= 1e4 => format!("{}k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = number(value);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

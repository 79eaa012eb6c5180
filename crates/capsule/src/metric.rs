use serde::{Deserialize, Serialize};

/// What a sample may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// (generated - 1) / (time of last token - time of first token), of all rows together.
    DecodeTokPerS,
    /// Prompt tokens that were read by the time until the first token.
    PromptTokPerS,
    /// Milliseconds until the first token.
    TtftMs,
    /// Most bytes that MLX held at once.
    PeakMemoryBytes,
    /// Seconds that one call took.
    Seconds,
    /// Norm of the error by the norm of what is right.
    RelativeError,
}

impl Metric {
    /// Those that say how fast something is.
    pub const SPEEDS: [Self; 3] = [Self::DecodeTokPerS, Self::PromptTokPerS, Self::Seconds];

    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::DecodeTokPerS | Self::PromptTokPerS)
    }

    /// As tables call it, with its unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::DecodeTokPerS => "decode tok/s",
            Self::PromptTokPerS => "prefill tok/s",
            Self::TtftMs => "first token ms",
            Self::PeakMemoryBytes => "peak MB",
            Self::Seconds => "ms",
            Self::RelativeError => "relative error",
        }
    }

    /// A value in the unit of [`Metric::title`].
    pub fn shown(self, value: f64) -> f64 {
        match self {
            Self::PeakMemoryBytes => value / 1e6,
            Self::Seconds => value * 1e3,
            _ => value,
        }
    }

    /// A value as tables print it: three digits and more.
    pub fn text(self, value: f64) -> String {
        match self {
            Self::RelativeError => format!("{value:.1e}"),
            _ => number(self.shown(value)),
        }
    }
}

/// A number with at least three digits.
pub(crate) fn number(value: f64) -> String {
    let magnitude = value.abs();
    match magnitude {
        _ if !value.is_finite() => "-".to_owned(),
        _ if magnitude >= 100.0 => format!("{value:.0}"),
        _ if magnitude >= 10.0 => format!("{value:.1}"),
        _ if magnitude >= 1.0 || magnitude == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A measured value with seven digits: more than any clock gives, and few enough for every reader of JSON.
pub fn rounded(value: f64) -> f64 {
    format!("{value:.6e}").parse().unwrap_or(value)
}

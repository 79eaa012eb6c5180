//! How tokens are chosen, and when to stop.

use clap::builder::NonEmptyStringValueParser;
use zmlx::lm::processors::CONTEXT_SIZE;
use zmlx::lm::{Penalty, Processing, Sampling};

/// Tokens of an answer when the user sets no limit: enough for a look.
const MAX_TOKENS: usize = 256;

/// How tokens are chosen.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingOptions {
    /// Randomness; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temp: f32,
    /// Keep the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Keep tokens at least this probable relative to the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Seed of the random numbers; same seed, same text
    #[arg(short, long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Make tokens that were there less likely; above 1 [default: 1, off]
    #[arg(long, value_name = "R")]
    repetition_penalty: Option<f32>,
    /// How many of the last tokens --repetition-penalty looks back on; 0 takes all
    #[arg(long, value_name = "N", default_value_t = CONTEXT_SIZE)]
    repetition_context_size: usize,
    /// Subtract from the logit of a token that was there [default: 0, off]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// How many of the last tokens --presence-penalty looks back on; 0 takes all
    #[arg(long, value_name = "N", default_value_t = CONTEXT_SIZE)]
    presence_context_size: usize,
    /// Subtract from the logit of a token for each time it was there [default: 0, off]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// How many of the last tokens --frequency-penalty looks back on; 0 takes all
    #[arg(long, value_name = "N", default_value_t = CONTEXT_SIZE)]
    frequency_context_size: usize,
}

/// When to stop.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Stopping")]
pub(super) struct StoppingOptions {
    /// Most tokens to generate
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = MAX_TOKENS,
        value_parser = parse_count
    )]
    pub(super) max_tokens: usize,
    /// Stop before this text, which is not shown; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub(super) stop: Vec<String>,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    pub(super) ignore_eos: bool,
}

/// A number of tokens or of anything else that there is at least one of.
pub(super) fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..) => Ok(count),
        _ => Err("expected a whole number, at least 1".to_owned()),
    }
}

impl SamplingOptions {
    pub(super) fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temp,
            top_p: self.top_p,
            min_p: self.min_p,
            top_k: self.top_k,
            seed: self.seed,
        }
    }

    pub(super) fn processing(&self) -> Processing {
        let penalty = |penalty: Option<f32>, context_size| {
            penalty.map(|penalty| Penalty { penalty, context_size })
        };
        Processing {
            repetition: penalty(self.repetition_penalty, self.repetition_context_size),
            presence: penalty(self.presence_penalty, self.presence_context_size),
            frequency: penalty(self.frequency_penalty, self.frequency_context_size),
            ..Processing::default()
        }
    }
}

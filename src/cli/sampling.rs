//! How tokens are chosen, and when to stop.

use zmlx::lm::Sampling;

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
        value_parser = parse_max_tokens
    )]
    pub(super) max_tokens: usize,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    pub(super) ignore_eos: bool,
}

/// A number of tokens to generate.
pub(super) fn parse_max_tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1 token".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("expected a whole number".to_owned()),
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
}

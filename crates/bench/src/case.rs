//! Cases: the work that every variant does.

use serde::{Deserialize, Serialize};
use zmlx_capsule::{Case, CaseKind};

use crate::hash;

/// A case with its tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// As a capsule has it.
    pub case: Case,
    /// What each sequence begins with, what `depth` counts included.
    pub rows: Vec<Vec<u32>>,
}

impl Work {
    /// A prompt that is read and answered.
    pub fn generate(prompt: &str, tokens: Vec<u32>, generate_tokens: usize) -> Self {
        let case = Case {
            prompt: Some(prompt.to_owned()),
            ..case(CaseKind::Generate, format!("{prompt} {generate_tokens}"))
        };
        Self::with(Case { prompt_tokens: tokens.len(), generate_tokens, ..case }, vec![tokens])
    }

    /// `prompt_tokens` that are read behind `depth` others.
    pub fn prefill(prompt_tokens: usize, depth: usize, vocab_size: u32) -> Self {
        let case = case(CaseKind::Prefill, format!("pp{prompt_tokens}{}", behind(depth)));
        let rows = vec![synthetic(0, depth + prompt_tokens, vocab_size)];
        Self::with(Case { prompt_tokens, depth, ..case }, rows)
    }

    /// `generate_tokens` that are decoded by each of `batch` sequences behind `depth` tokens.
    pub fn decode(generate_tokens: usize, depth: usize, batch: usize, vocab_size: u32) -> Self {
        let rows = if batch == 1 { String::new() } else { format!(" x{batch}") };
        let case = case(CaseKind::Decode, format!("tg{generate_tokens}{}{rows}", behind(depth)));
        // the token that is given out before the clock starts stands behind them
        let rows = (0..batch).map(|row| synthetic(row, depth.max(1), vocab_size)).collect();
        Self::with(Case { generate_tokens, depth, batch, ..case }, rows)
    }

    fn with(case: Case, rows: Vec<Vec<u32>>) -> Self {
        Self { case: Case { prompt_sha256: Some(hash::tokens(&rows)), ..case }, rows }
    }

    /// What a progress display counts: tokens read and generated.
    pub fn size(&self) -> usize {
        let case = &self.case;
        case.prompt_tokens + case.batch * (case.depth + case.generate_tokens)
    }
}

fn case(kind: CaseKind, name: String) -> Case {
    Case {
        name,
        kind,
        prompt: None,
        prompt_tokens: 0,
        generate_tokens: 0,
        depth: 0,
        batch: 1,
        prompt_sha256: None,
        bytes: None,
        flops: None,
    }
}

fn behind(depth: usize) -> String {
    if depth == 0 { String::new() } else { format!(" @ {depth}") }
}

/// Tokens that are spread over the vocabulary, others for each row.
pub fn synthetic(row: usize, count: usize, vocab_size: u32) -> Vec<u32> {
    (0..count as u64)
        .map(|i| ((i * 7919 + 13 + 101 * row as u64) % u64::from(vocab_size.max(1))) as u32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_is_done_and_rows_differ() {
        assert_eq!(Work::prefill(128, 0, 100).case.name, "pp128");
        assert_eq!(Work::prefill(128, 64, 100).rows[0].len(), 192);
        let batch = Work::decode(32, 16, 4, 100);
        assert_eq!(batch.case.name, "tg32 @ 16 x4");
        assert_eq!(batch.rows.len(), 4);
        assert_ne!(batch.rows[0], batch.rows[1]);
        assert!(batch.rows.concat().iter().all(|id| *id < 100));
        assert_eq!(Work::generate("code", vec![1, 2], 64).case.name, "code 64");
    }
}

//! Tokenizers that come as a tiktoken rank file and a Python program instead of `tokenizer.json`: Kimi's.
//!
//! A rank file lists tokens as bytes; two neighbours merge when their bytes together are a token, that of the
//! lowest rank first. Byte-level BPE does the same when every way to split a token is one of its merges.
//!
//! Source: transformers `convert_slow_tokenizer.py` (`TikTokenConverter`); Kimi's `tokenization_kimi.py`.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// The file's name in Kimi's repos.
pub(super) const FILE: &str = "tiktoken.model";
/// `tokenizer_class` of Kimi's program, the one that is known here.
const CLASS: &str = "TikTokenTokenizer";
/// Ids after the ranks that stand for special tokens, named or not.
const NUM_SPECIAL: u32 = 256;
/// Longer tokens are hostile: each split of a token is a merge.
const MAX_TOKEN_BYTES: usize = 1024;

/// How Kimi cuts text before it merges.
const KIMI: [&str; 8] = [
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
];

/// A tokenizer of the ranks.
///
/// - `config`: `tokenizer_config.json`, which names the program and the special tokens
pub(super) fn tokenizer(
    ranks: &str,
    config: &Map<String, Value>,
) -> Result<tokenizers::Tokenizer, String> {
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("none");
    if class != CLASS {
        return Err(format!(
            "how text is cut is part of the program `{class}`, which is not known here; \
             known: {CLASS}; put a tokenizer.json beside it"
        ));
    }
    let tokens = parse(ranks)?;
    let bpe = bpe(&tokens)?;
    let refuse = |error: tokenizers::Error| error.to_string();
    let split =
        Split::new(SplitPattern::Regex(KIMI.join("|")), SplitDelimiterBehavior::Isolated, false)
            .map_err(refuse)?;
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
        split.into(),
        bytes.into(),
    ]))));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
    let first = u32::try_from(tokens.len()).map_err(|error| error.to_string())?;
    let names = special_names(config);
    let special: Vec<AddedToken> = (first..first + NUM_SPECIAL)
        .map(|id| names.get(&id).cloned().unwrap_or_else(|| format!("<|reserved_token_{id}|>")))
        .map(|name| AddedToken::from(name, true).normalized(false))
        .collect();
    let last = special.last().map(|token| token.content.clone()).unwrap_or_default();
    tokenizer.add_special_tokens(special).map_err(refuse)?;
    // Ids are given in order; a name that occurs twice would shift those after it.
    if tokenizer.token_to_id(&last) != Some(first + NUM_SPECIAL - 1) {
        return Err("added_tokens_decoder names a special token twice".to_owned());
    }
    Ok(tokenizer)
}

/// `added_tokens_decoder`: special tokens by id.
fn special_names(config: &Map<String, Value>) -> BTreeMap<u32, String> {
    let fields = config.get("added_tokens_decoder").and_then(Value::as_object);
    fields
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, token["content"].as_str()?.to_owned())))
        .collect()
}

/// The tokens in the order of their ranks, from lines of base64 and rank.
fn parse(ranks: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut tokens = Vec::new();
    for (index, line) in ranks.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = index + 1;
        let (token, rank) = line.trim().split_once(' ').ok_or_else(|| {
            format!("line {number} is `{line:.40}`, expected a token in base64 and its rank")
        })?;
        let token = STANDARD
            .decode(token)
            .map_err(|error| format!("line {number}: the token is no base64: {error}"))?;
        if rank.trim().parse() != Ok(tokens.len()) {
            return Err(format!("line {number}: rank {rank:.20}, expected {}", tokens.len()));
        }
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            let reason =
                format!("a token of {} bytes, expected 1 to {MAX_TOKEN_BYTES}", token.len());
            return Err(format!("line {number}: {reason}"));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// Byte-level BPE that merges as the ranks do.
fn bpe(tokens: &[Vec<u8>]) -> Result<BPE, String> {
    let ids: HashMap<&[u8], u32> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
    if ids.len() != tokens.len() {
        return Err("a token has two ranks".to_owned());
    }
    let letters = letters();
    if let Some(byte) = (0..=u8::MAX).find(|byte| !ids.contains_key([*byte].as_slice())) {
        return Err(format!("byte {byte} is no token, so some texts could not be written"));
    }
    let spell = |bytes: &[u8]| bytes.iter().map(|byte| letters[usize::from(*byte)]).collect();
    let mut merges: Vec<(String, String)> = Vec::new();
    for token in tokens {
        let mut splits: Vec<(u32, &[u8], &[u8])> = (1..token.len())
            .filter_map(|at| {
                let (left, right) = token.split_at(at);
                ids.contains_key(right).then_some((*ids.get(left)?, left, right))
            })
            .collect();
        splits.sort_unstable_by_key(|(rank, ..)| *rank);
        merges.extend(splits.into_iter().map(|(_, left, right)| (spell(left), spell(right))));
    }
    let vocab: Vec<(String, u32)> = tokens.iter().map(|token| spell(token)).zip(0..).collect();
    BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<HashMap<_, _, _>>(), merges)
        .ignore_merges(true)
        .build()
        .map_err(|error| error.to_string())
}

/// GPT-2's letter for each byte: printable Latin-1 stands for itself, the other 68 follow from U+0100.
fn letters() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte as u8),
        _ => others.next().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;

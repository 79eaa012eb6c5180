//! Decoding while tokens arrive. What comes out is always whole characters, and all pieces together equal
//! [`Tokenizer::decode`] of the whole sequence.
//!
//! Two decoders are followed exactly, in constant time per token: byte-level BPE, where tokens are raw bytes
//! under an alphabet, and SentencePiece with byte fallback, where only `<0xNN>` tokens are bytes. Others go
//! through a sliding window of full decodes.

use serde_json::Value;

use crate::error::Result;
use crate::tokenizer::Tokenizer;

impl Tokenizer {
    /// Decodes a sequence piece by piece.
    pub fn detokenizer(&self) -> Detokenizer<'_> {
        Detokenizer { tokenizer: self, method: Method::of(&self.decoder_json()) }
    }
}

/// Streaming decoder of one sequence, from [`Tokenizer::detokenizer`].
#[derive(Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    method: Method,
}

impl Detokenizer<'_> {
    /// Adds one token; returns the text that became certain.
    ///
    /// # Errors
    /// `Tokenizer`, from decoders that can fail.
    pub fn push(&mut self, id: u32) -> Result<String> {
        match &mut self.method {
            Method::Bytes { pending } => {
                if let Some(token) = self.tokenizer.id_to_token(id) {
                    append_bytes(&token, pending);
                }
                Ok(take_whole(pending))
            }
            Method::Spm { run, strip } => {
                let mut text = String::new();
                if let Some(token) = self.tokenizer.id_to_token(id) {
                    // The replacement comes first in the decoder, so it also sees byte tokens.
                    let token = token.replace(SPACE_MARK, " ");
                    match byte_token(&token) {
                        Some(byte) => run.push(byte),
                        None => {
                            text = take_run(run);
                            text.push_str(&token);
                        }
                    }
                }
                Ok(strip_start(text, strip))
            }
            Method::Window(window) => {
                window.ids.push(id);
                window.advance(self.tokenizer, false)
            }
        }
    }

    /// Ends the sequence; returns the rest, incomplete characters as U+FFFD.
    ///
    /// # Errors
    /// `Tokenizer`, from decoders that can fail.
    pub fn finish(mut self) -> Result<String> {
        match &mut self.method {
            Method::Bytes { pending } => Ok(String::from_utf8_lossy(pending).into_owned()),
            Method::Spm { run, strip } => Ok(strip_start(take_run(run), strip)),
            Method::Window(window) => window.advance(self.tokenizer, true),
        }
    }
}

#[derive(Debug)]
enum Method {
    /// `pending`: the start of a character whose other bytes have not come yet.
    Bytes {
        pending: Vec<u8>,
    },
    /// `run`: byte tokens in a row, which the decoder judges as one; `strip`: leading spaces still to remove.
    Spm {
        run: Vec<u8>,
        strip: usize,
    },
    Window(Window),
}

const SPACE_MARK: char = '\u{2581}';

impl Method {
    fn of(decoder: &Value) -> Self {
        if decoder["type"] == "ByteLevel" {
            return Self::Bytes { pending: Vec::new() };
        }
        if let Some(strip) = spm_strip(decoder) {
            return Self::Spm { run: Vec::new(), strip };
        }
        Self::Window(Window::default())
    }
}

/// For `Replace ▁, ByteFallback, Fuse[, Strip]`: how many leading spaces it strips.
fn spm_strip(decoder: &Value) -> Option<usize> {
    let steps = decoder["decoders"].as_array()?;
    let [replace, fallback, fuse, rest @ ..] = steps.as_slice() else { return None };
    let matches = replace["type"] == "Replace"
        && replace["pattern"]["String"] == SPACE_MARK.to_string()
        && replace["content"] == " "
        && fallback["type"] == "ByteFallback"
        && fuse["type"] == "Fuse";
    match rest {
        [] if matches => Some(0),
        [strip] if matches && strip["type"] == "Strip" && strip["content"] == " " => {
            let stop = strip["stop"].as_u64()?;
            (stop == 0).then_some(usize::try_from(strip["start"].as_u64()?).ok()?)
        }
        _ => None,
    }
}

/// Appends the bytes that a byte-level token stands for; a token outside the alphabet stands for its own text.
fn append_bytes(token: &str, into: &mut Vec<u8>) {
    let start = into.len();
    for letter in token.chars() {
        match byte_of(letter) {
            Some(byte) => into.push(byte),
            None => {
                into.truncate(start);
                into.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The byte behind a letter of GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes follow
/// from U+0100 in order.
fn byte_of(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// Takes all whole characters off the front, bytes that can never become one as U+FFFD, as
/// `String::from_utf8_lossy` would over the whole sequence.
fn take_whole(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_end = taken + invalid.len() == pending.len();
        if invalid.is_empty() || (at_end && is_incomplete(invalid)) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    pending.drain(..taken);
    text
}

/// Whether more bytes could still make a character of these.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// The byte of `<0xNN>`.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// A run of byte tokens is text when all of it is valid, else one U+FFFD per byte.
fn take_run(run: &mut Vec<u8>) -> String {
    let bytes = std::mem::take(run);
    let count = bytes.len();
    String::from_utf8(bytes)
        .unwrap_or_else(|_| char::REPLACEMENT_CHARACTER.to_string().repeat(count))
}

/// Removes leading spaces of the sequence, at most `left` of them.
fn strip_start(mut text: String, left: &mut usize) -> String {
    while *left > 0 && !text.is_empty() {
        if text.starts_with(' ') {
            text.remove(0);
            *left -= 1;
        } else {
            *left = 0;
        }
    }
    text
}

/// Decodes the last few tokens again and again, and emits what the newest ones added.
#[derive(Debug, Default)]
struct Window {
    ids: Vec<u32>,
    /// Tokens before this one only give the decoder its left context.
    fresh: usize,
}

impl Window {
    fn advance(&mut self, tokenizer: &Tokenizer, last: bool) -> Result<String> {
        let before = tokenizer.decode(&self.ids[..self.fresh])?;
        let after = tokenizer.decode(&self.ids)?;
        if !last && after.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let text = match after.strip_prefix(before.as_str()) {
            Some(text) => text.to_owned(),
            // A decoder that rewrites its past: wait for it to settle, at the end take what differs.
            None if !last => return Ok(String::new()),
            None => {
                let common = before.chars().zip(after.chars()).take_while(|(b, a)| b == a).count();
                after.chars().skip(common).collect()
            }
        };
        if !text.is_empty() {
            self.ids.drain(..self.fresh);
            self.fresh = self.ids.len();
        }
        Ok(text)
    }
}

#[cfg(test)]
#[path = "detokenizer_tests.rs"]
mod tests;

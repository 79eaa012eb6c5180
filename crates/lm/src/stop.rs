//! Text as it is generated, up to a stop string.

use crate::detokenizer::Detokenizer;
use crate::error::{Error, Result};
use crate::generate::Token;
use crate::tokenizer::Tokenizer;

/// Lets text through up to the first of some strings to be complete. What may be the start of one is held back until it is known
/// whether it is.
///
/// ```
/// # fn main() -> zmlx_lm::Result<()> {
/// let mut stop = zmlx_lm::stop::StopStrings::new(&["END".to_owned()])?;
/// assert_eq!(stop.push("one E"), "one ");
/// assert_eq!(stop.push("N"), "");
/// assert_eq!(stop.push("Dtwo"), "");
/// assert_eq!(stop.found(), Some("END"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
    found: Option<usize>,
}

impl StopStrings {
    /// Any of `strings` ends the text; none: nothing does.
    ///
    /// # Errors
    /// `Argument` for an empty one.
    pub fn new(strings: &[String]) -> Result<Self> {
        if strings.iter().any(String::is_empty) {
            return Err(Error::argument("stop string", "empty", "expected at least one character"));
        }
        Ok(Self { strings: strings.to_vec(), held: String::new(), found: None })
    }

    /// Adds text; returns what is certain to come before a stop string.
    pub fn push(&mut self, text: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        // The first to be complete, so that it makes no difference how the text was cut into pieces.
        let complete = self.strings.iter().enumerate().filter_map(|(i, string)| {
            let start = self.held.find(string.as_str())?;
            Some((start + string.len(), start, i))
        });
        if let Some((_, start, string)) = complete.min() {
            self.found = Some(string);
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.possible_start();
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// Ends the text; returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that ended the text.
    pub fn found(&self) -> Option<&str> {
        self.found.map(|i| self.strings[i].as_str())
    }

    /// Bytes at the end of what is held that begin a stop string.
    fn possible_start(&self) -> usize {
        let starts = self.held.char_indices().map(|(i, _)| &self.held[i..]);
        starts
            .filter(|end| self.strings.iter().any(|s| s.starts_with(end)))
            .map(str::len)
            .max()
            .unwrap_or(0)
    }
}

/// Turns the tokens of one sequence into text as they come, up to a stop string.
#[derive(Debug)]
pub struct TextStream<'a> {
    detokenizer: Detokenizer<'a>,
    stop: StopStrings,
}

impl<'a> TextStream<'a> {
    /// The text of `tokenizer`'s tokens, up to the first of `stop`.
    ///
    /// # Errors
    /// `Argument` for an empty stop string.
    pub fn new(tokenizer: &'a Tokenizer, stop: &[String]) -> Result<Self> {
        Ok(Self { detokenizer: tokenizer.detokenizer(), stop: StopStrings::new(stop)? })
    }

    /// Adds a token; returns the text that became certain. A token that ends generation has none.
    ///
    /// # Errors
    /// `Tokenizer`, from decoders that can fail.
    pub fn push(&mut self, token: Token) -> Result<String> {
        if token.is_eos || self.stopped().is_some() {
            return Ok(String::new());
        }
        let text = self.detokenizer.push(token.id)?;
        Ok(self.stop.push(&text))
    }

    /// The stop string that was found: what comes after it is no text any more.
    pub fn stopped(&self) -> Option<&str> {
        self.stop.found()
    }

    /// Ends the sequence; returns the rest of the text.
    ///
    /// # Errors
    /// `Tokenizer`, from decoders that can fail.
    pub fn finish(self) -> Result<String> {
        let Self { detokenizer, mut stop } = self;
        if stop.found().is_some() {
            return Ok(String::new());
        }
        let mut text = stop.push(&detokenizer.finish()?);
        text.push_str(&stop.finish());
        Ok(text)
    }
}

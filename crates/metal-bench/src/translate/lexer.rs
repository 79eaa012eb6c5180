//! Tokens of preprocessed Metal.

use std::ops::Range;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Number,
    Text,
    /// One character, except for `::`, `->`, `[[` and `]]`.
    Mark,
    /// A whole line that begins with `#`.
    Directive,
}

#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) span: Range<usize>,
}

/// Splits `text`, of which the preprocessor has taken the comments. Spaces are between tokens.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let mut all: Vec<Token> = Vec::new();
    // open square brackets; true for those of attributes
    let mut brackets: Vec<bool> = Vec::new();
    let mut at = 0;
    let mut line_begins = true;
    while at < bytes.len() {
        let begin = at;
        let byte = bytes[at];
        let two = bytes.get(at..at + 2).unwrap_or_default();
        let kind = if byte.is_ascii_whitespace() {
            line_begins |= byte == b'\n';
            at += 1;
            continue;
        } else if byte == b'#' && line_begins {
            at += bytes[at..].iter().take_while(|b| **b != b'\n').count();
            Kind::Directive
        } else if byte.is_ascii_alphabetic() || byte == b'_' {
            at += word_length(&bytes[at..]);
            Kind::Word
        } else if byte.is_ascii_digit() || (byte == b'.' && two[1..].iter().all(u8::is_ascii_digit))
        {
            at += number_length(&bytes[at..]);
            Kind::Number
        } else if byte == b'"' || byte == b'\'' {
            at += text_length(&bytes[at..], byte);
            Kind::Text
        } else {
            let pair = match two {
                b"::" | b"->" => true,
                b"[[" => {
                    brackets.push(true);
                    true
                }
                b"]]" if brackets.last() == Some(&true) => {
                    brackets.pop();
                    true
                }
                _ => {
                    match byte {
                        b'[' => brackets.push(false),
                        b']' => drop(brackets.pop()),
                        _ => {}
                    }
                    false
                }
            };
            at += if pair { 2 } else { 1 };
            Kind::Mark
        };
        line_begins = kind == Kind::Directive;
        all.push(Token { kind, span: begin..at });
    }
    all
}

fn word_length(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count()
}

fn number_length(bytes: &[u8]) -> usize {
    let exponent =
        if bytes.get(..2).is_some_and(|b| b.eq_ignore_ascii_case(b"0x")) { b'p' } else { b'e' };
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let sign = matches!(byte, b'+' | b'-') && bytes[at - 1].eq_ignore_ascii_case(&exponent);
        if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'\'') || sign) {
            break;
        }
        at += 1;
    }
    at
}

fn text_length(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        tokens(text).into_iter().map(|t| &text[t.span]).collect()
    }

    #[test]
    fn subscripts_are_told_from_attributes() {
        assert_eq!(split("a[b[i]] x [[id(1)]]").join(" "), "a [ b [ i ] ] x [[ id ( 1 ) ]]");
    }

    #[test]
    fn numbers_keep_their_exponents_and_suffixes() {
        assert_eq!(
            split("1e-3f+0x1p-2 0xe+1 .5 1.h"),
            ["1e-3f", "+", "0x1p-2", "0xe", "+", "1", ".5", "1.h"]
        );
    }

    #[test]
    fn directives_are_whole_lines() {
        assert_eq!(split("a\n# 1 \"f.h\" 1\nb"), ["a", "# 1 \"f.h\" 1", "b"]);
    }
}

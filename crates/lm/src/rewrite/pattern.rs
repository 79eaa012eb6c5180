//! Patterns over weight names, such as `model.layers.{l#}.mlp.experts.{e#}.{p:up_proj|down_proj}.weight`.

use regex::Regex;

use crate::error::{Error, Result};

/// A pattern over whole names. Outside braces every character stands for itself; inside:
///
/// - `{name}`: one component, anything without a dot
/// - `{name#}`: a number
/// - `{name*}`: anything, dots included, even nothing
/// - `{name:a|b}`: one of these
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: Regex,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// `Argument` when braces do not pair up or a name is used twice.
    pub fn new(text: &str) -> Result<Self> {
        let bad = |reason: &str| Error::argument("pattern", format!("`{text}`"), reason);
        let mut regex = String::from("^");
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            regex.push_str(&regex::escape(&rest[..open]));
            let close = rest.find('}').filter(|at| *at > open);
            let close = close.ok_or_else(|| bad("a brace is not closed"))?;
            let inside = &rest[open + 1..close];
            let (name, class) = match inside.split_once(':') {
                Some((name, choices)) => {
                    let choices: Vec<_> = choices.split('|').map(regex::escape).collect();
                    (name, choices.join("|"))
                }
                None if inside.ends_with('#') => (&inside[..inside.len() - 1], "[0-9]+".to_owned()),
                None if inside.ends_with('*') => (&inside[..inside.len() - 1], ".*".to_owned()),
                None => (inside, "[^.]+".to_owned()),
            };
            regex.push_str(&format!("(?P<{name}>{class})"));
            rest = &rest[close + 1..];
        }
        regex.push_str(&regex::escape(rest));
        regex.push('$');
        let regex = Regex::new(&regex).map_err(|error| bad(&error.to_string()))?;
        Ok(Self { regex })
    }

    /// What the braces hold in a name that matches.
    pub fn captures(&self, name: &str) -> Option<Captures> {
        let found = self.regex.captures(name)?;
        let names = self.regex.capture_names().flatten();
        let held = names.map(|key| (key.to_owned(), found[key].to_owned())).collect();
        Some(Captures { held })
    }
}

/// The parts of a name that a pattern's braces stand for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Captures {
    held: Vec<(String, String)>,
}

impl Captures {
    /// One part; empty for a name that the pattern does not have.
    pub fn get(&self, name: &str) -> &str {
        self.held.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// A part as a number; `u64::MAX` for one that is none or too large.
    pub fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap_or(u64::MAX)
    }

    /// All parts but one.
    pub(super) fn without(&self, name: &str) -> Self {
        let held = self.held.iter().filter(|(key, _)| key != name).cloned().collect();
        Self { held }
    }

    /// These and one more.
    pub(super) fn with(&self, name: &str, value: impl std::fmt::Display) -> Self {
        let mut all = self.without(name);
        all.held.push((name.to_owned(), value.to_string()));
        all
    }

    /// The name that a template such as `model.layers.{l}.weight` makes of these parts; the templates may be
    /// written as patterns are.
    ///
    /// # Errors
    /// `Argument` when the template names a part that there is not.
    pub fn fill(&self, template: &str) -> Result<String> {
        let bad = |reason: String| Error::argument("template", format!("`{template}`"), reason);
        let mut name = String::new();
        let mut rest = template;
        while let Some(open) = rest.find('{') {
            name.push_str(&rest[..open]);
            let close = rest.find('}').filter(|at| *at > open);
            let close = close.ok_or_else(|| bad("a brace is not closed".to_owned()))?;
            let key = rest[open + 1..close].split(['#', '*', ':']).next().unwrap_or_default();
            let (_, value) = (self.held.iter().find(|(name, _)| name == key))
                .ok_or_else(|| bad(format!("the pattern has no {{{key}}}")))?;
            name.push_str(value);
            rest = &rest[close + 1..];
        }
        name.push_str(rest);
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_matches_whole_names_and_captures_parts() {
        let pattern = Pattern::new("model.layers.{l#}.{p:up|down}.{rest*}").unwrap();
        let found = pattern.captures("model.layers.12.up.a.b").unwrap();
        assert_eq!((found.number("l"), found.get("p"), found.get("rest")), (12, "up", "a.b"));
        assert_eq!(found.fill("x.{p}.{l}.{rest}").unwrap(), "x.up.12.a.b");
        for name in ["model.layers.x.up.a", "model.layers.1.left.a", "amodel.layers.1.up.a", ""] {
            assert!(pattern.captures(name).is_none(), "{name}");
        }
        // a dot is a dot, one component has none
        assert!(Pattern::new("a.b").unwrap().captures("axb").is_none());
        assert!(Pattern::new("a.{x}").unwrap().captures("a.b.c").is_none());
    }

    #[test]
    fn number_too_large_for_anything_is_the_largest() {
        let found = Pattern::new("{n#}").unwrap().captures(&"9".repeat(40)).unwrap();
        assert_eq!(found.number("n"), u64::MAX);
    }

    #[test]
    fn pattern_malformed_is_refused() {
        for text in ["a.{l", "{l}.{l}", "{}", "{a b}"] {
            assert!(matches!(Pattern::new(text), Err(Error::Argument { .. })), "{text}");
        }
        let found = Pattern::new("{l#}").unwrap().captures("1").unwrap();
        assert!(found.fill("{x}").unwrap_err().to_string().contains("has no {x}"));
    }
}

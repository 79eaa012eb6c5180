//! Filtered loops as Jinja2 runs them.
//!
//! Jinja2 asks the condition of `{% for m in messages if not ns.found %}` when the loop gets to a message, after the bodies
//! of those before it; minijinja asks it of all messages first. It makes a difference where a body sets what the condition
//! asks. Such a loop is written anew, as a loop with the condition inside it, which is the same as long as nobody counts
//! the rounds; one whose body asks `loop`, or that has an `else`, is refused.

use std::ops::Range;

/// A tag's place in the source.
struct Tag {
    range: Range<usize>,
    /// What stands inside of the delimiters and their signs.
    inner: Range<usize>,
    is_block: bool,
}

/// A word outside of texts.
struct Word<'a> {
    at: usize,
    text: &'a str,
    /// Brackets around it.
    depth: usize,
    is_attribute: bool,
}

/// A loop that has begun.
struct Loop<'a> {
    header: Tag,
    /// Where the condition's `if` stands, and the names that the condition asks.
    condition: Option<(usize, Vec<&'a str>)>,
    is_recursive: bool,
    has_else: bool,
    asks_loop: bool,
    /// Variables of which attributes are set in the body.
    sets: Vec<&'a str>,
}

enum Open<'a> {
    Loop(Loop<'a>),
    Condition,
}

/// The source with such loops written anew.
///
/// # Errors
/// What is refused, with its line.
pub(super) fn lazy(source: &str) -> Result<String, String> {
    let tags = tags(source);
    let in_macros = set_in_macros(source, &tags);
    let mut open: Vec<Open<'_>> = Vec::new();
    // places and what comes there in place of how many bytes
    let mut edits: Vec<(Range<usize>, &str)> = Vec::new();
    for tag in tags {
        let words = words(&source[tag.inner.clone()]);
        let first = words.first().filter(|_| tag.is_block).map_or("", |word| word.text);
        if words.iter().any(|word| word.text == "loop" && !word.is_attribute)
            && let Some(innermost) = innermost(&mut open)
        {
            innermost.asks_loop = true;
        }
        match first {
            "for" => open.push(Open::Loop(header(tag, &words))),
            "if" => open.push(Open::Condition),
            "endif" => {
                open.pop();
            }
            "else" => {
                if let Some(Open::Loop(begun)) = open.last_mut() {
                    begun.has_else = true;
                }
            }
            "set" => {
                for begun in open.iter_mut() {
                    if let (Open::Loop(begun), Some(name)) = (begun, attribute_set(&words)) {
                        begun.sets.push(name);
                    }
                }
            }
            "endfor" => {
                let Some(Open::Loop(ended)) = open.pop() else { continue };
                let Some((at, asked)) = &ended.condition else { continue };
                let is_set = |name: &&str| ended.sets.contains(name) || in_macros.contains(name);
                if !asked.iter().any(is_set) {
                    continue;
                }
                if ended.asks_loop || ended.has_else || ended.is_recursive {
                    let line = source[..ended.header.range.start].matches('\n').count() + 1;
                    return Err(format!(
                        "a loop whose body sets what its condition asks, and that uses loop or else, is not supported (line {line})"
                    ));
                }
                edits.push((*at..*at, "%}{% "));
                let end = tag.inner.start..tag.inner.start;
                edits.push((end, " endif %}{% "));
            }
            _ => {}
        }
    }
    edits.sort_by_key(|(range, _)| range.start);
    let mut out = String::with_capacity(source.len());
    let mut done = 0;
    for (range, text) in edits {
        out.push_str(&source[done..range.start]);
        out.push_str(text);
        done = range.end;
    }
    out.push_str(&source[done..]);
    Ok(out)
}

fn innermost<'a, 'b>(open: &'b mut [Open<'a>]) -> Option<&'b mut Loop<'a>> {
    open.iter_mut().rev().find_map(|begun| match begun {
        Open::Loop(begun) => Some(begun),
        Open::Condition => None,
    })
}

/// What `{% for target in list if condition recursive %}` says.
fn header<'a>(tag: Tag, words: &[Word<'a>]) -> Loop<'a> {
    let outside = |word: &&Word<'_>| word.depth == 0 && !word.is_attribute;
    let list = words.iter().filter(outside).find(|word| word.text == "in").map_or(0, |w| w.at);
    let found =
        words.iter().filter(outside).find(|word| word.text == "if" && word.at > list).map(|w| w.at);
    let condition = found.map(|at| {
        let asked = words.iter().filter(|word| word.at > at && !word.is_attribute);
        (tag.inner.start + at, asked.map(|word| word.text).collect())
    });
    let is_recursive = words.last().is_some_and(|word| word.text == "recursive");
    Loop {
        header: tag,
        condition,
        is_recursive,
        has_else: false,
        asks_loop: false,
        sets: Vec::new(),
    }
}

/// `ns` of `set ns.found = true`.
fn attribute_set<'a>(words: &[Word<'a>]) -> Option<&'a str> {
    let [_, name, attribute, ..] = words else { return None };
    (attribute.is_attribute && !name.is_attribute).then_some(name.text)
}

/// Variables of which macros set attributes: whoever calls one may set them.
fn set_in_macros<'a>(source: &'a str, tags: &[Tag]) -> Vec<&'a str> {
    let (mut depth, mut found) = (0, Vec::new());
    for tag in tags.iter().filter(|tag| tag.is_block) {
        let words = words(&source[tag.inner.clone()]);
        match words.first().map_or("", |word| word.text) {
            "macro" => depth += 1,
            "endmacro" => depth -= 1,
            "set" if depth > 0 => found.extend(attribute_set(&words)),
            _ => {}
        }
    }
    found
}

/// The tags of a template, those inside of `{% raw %}` left out.
fn tags(source: &str) -> Vec<Tag> {
    let mut found: Vec<Tag> = Vec::new();
    let mut at = 0;
    let mut is_raw = false;
    while let Some(start) = source[at..].find('{').map(|i| at + i) {
        let end = match source.as_bytes().get(start + 1) {
            Some(b'#') => source[start..].find("#}").map(|i| start + i + 2),
            Some(b'%') => tag_end(source, start + 2, "%}"),
            Some(b'{') => tag_end(source, start + 2, "}}"),
            _ => {
                at = start + 1;
                continue;
            }
        };
        // what does not end is the engine's to tell
        let Some(end) = end else { break };
        let kind = source.as_bytes()[start + 1];
        if kind != b'#' {
            let inner = source[start + 2..end - 2].trim_start_matches(['-', '+']);
            let begin = end - 2 - inner.len();
            let inner = inner.trim_end_matches(['-', '+']);
            let name = inner.trim();
            let is_block = kind == b'%';
            if is_block && matches!(name, "raw" | "endraw") {
                is_raw = name == "raw";
            } else if !is_raw {
                found.push(Tag { range: start..end, inner: begin..begin + inner.len(), is_block });
            }
        }
        at = end;
    }
    found
}

/// Behind a tag's end, which is none where it stands in a text.
fn tag_end(source: &str, from: usize, end: &str) -> Option<usize> {
    let mut quote = None;
    let mut chars = source[from..].char_indices();
    let mut depth = 0usize;
    while let Some((i, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            // the braces of a map
            (None, _) if depth == 0 && source[from + i..].starts_with(end) => {
                return Some(from + i + end.len());
            }
            (None, '\'' | '"') => quote = Some(c),
            (None, '{') => depth += 1,
            (None, '}') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
    }
    None
}

fn words(inner: &str) -> Vec<Word<'_>> {
    let mut found = Vec::new();
    let (mut depth, mut last) = (0usize, ' ');
    let mut rest = inner.char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        match c {
            '\'' | '"' => {
                while let Some((_, inside)) = rest.next() {
                    match inside {
                        '\\' => {
                            rest.next();
                        }
                        _ if inside == c => break,
                        _ => {}
                    }
                }
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            c if c.is_alphanumeric() || c == '_' => {
                let mut end = at + c.len_utf8();
                while let Some((i, c)) = rest.next_if(|(_, c)| c.is_alphanumeric() || *c == '_') {
                    end = i + c.len_utf8();
                }
                found.push(Word { at, text: &inner[at..end], depth, is_attribute: last == '.' });
            }
            _ => {}
        }
        if !c.is_whitespace() {
            last = c;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::lazy;

    #[test]
    fn a_loop_whose_body_sets_what_its_condition_asks_is_written_anew() {
        let source =
            "{%- for m in (a if b else c) if not ns.x -%}\n{% set ns.x = true %}{%- endfor +%}";
        let expected = "{%- for m in (a if b else c) %}{% if not ns.x -%}\n{% set ns.x = true %}{%- endif %}{% endfor +%}";
        assert_eq!(lazy(source).unwrap().replace("  ", " "), expected);
        let by_macro = "{% macro f() %}{% set ns.x = 1 %}{% endmacro %}{% for m in a if ns.x %}{{ f() }}{% endfor %}";
        assert!(lazy(by_macro).unwrap().contains("{% if ns.x %}"));
    }

    #[test]
    fn other_loops_and_what_only_looks_like_them_stay() {
        for source in [
            "{% for m in a if m.x %}{{ loop.index }}{% else %}none{% endfor %}",
            "{% for m in a if ns.x %}{% set y = 1 %}{{ loop.last }}{% endfor %}",
            "{% for m in a %}{% if ns.x %}{% set ns.x = 1 %}{% endif %}{% endfor %}",
            "{% raw %}{% for m in a if ns.x %}{% set ns.x = 1 %}{% endfor %}{% endraw %}",
            "{# {% for m in a if ns.x %}{% set ns.x = 1 %}{% endfor %} #}",
            "{{ '{% for m in a if ns.x %}{% set ns.x = 1 %}{% endfor %}' }}",
            "{% for m in a if ns.x %}{{ {'a': {'b': 1}} }}{% endfor %} { {{ '}}' }}",
            "{% for m in a if 'ns' %}{% set ns.x = 1 %}{% endfor %}",
            "{% endfor %}{% endif %}{% else %}{% for m in a if ns.x",
        ] {
            assert_eq!(lazy(source).unwrap(), source);
        }
    }

    #[test]
    fn what_counts_the_rounds_is_refused_with_its_line() {
        for (body, after) in [("{{ loop.index }}", ""), ("", "{% else %}none")] {
            let source = format!(
                "\n{{% for m in a if ns.x %}}{body}{{% set ns.x = 1 %}}{after}{{% endfor %}}"
            );
            let error = lazy(&source).unwrap_err();
            assert!(error.contains("loop or else") && error.ends_with("(line 2)"), "{error}");
        }
        // an inner loop's own count is none of the outer one's
        let inner = "{% for m in a if ns.x %}{% set ns.x = 1 %}{% for n in m %}{{ loop.index }}{% endfor %}{% endfor %}";
        assert!(lazy(inner).is_ok());
    }
}

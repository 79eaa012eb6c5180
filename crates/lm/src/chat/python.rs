//! What Python has and minijinja does not: filters, tests and methods of text.

use minijinja::value::from_args;
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Adds them.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("wordcount", word_count);
    environment.add_test("callable", is_callable);
}

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), name) {
        (Some(text), "rsplit") => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            let most = most.and_then(|most| usize::try_from(most).ok());
            rsplit(text, separator, most).map(Value::from)
        }
        (Some(text), "removeprefix") => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        (Some(text), "removesuffix") => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// `str.rsplit`: cut from the right, at most so often.
fn rsplit(text: &str, separator: Option<&str>, most: Option<usize>) -> Result<Vec<String>, Error> {
    let most = most.unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) => text.rsplitn(most.saturating_add(1), separator).collect(),
        // runs of white space, of which none is left at the ends that were cut
        None => {
            let (mut parts, mut rest) = (Vec::new(), text.trim_end());
            while !rest.is_empty() {
                match rest.rfind(char::is_whitespace).filter(|_| parts.len() < most) {
                    Some(at) => {
                        let begin = at + rest[at..].chars().next().map_or(0, char::len_utf8);
                        parts.push(&rest[begin..]);
                        rest = rest[..at].trim_end();
                    }
                    None => {
                        parts.push(rest);
                        rest = "";
                    }
                }
            }
            parts
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(str::to_owned).collect())
}

/// Runs of letters, digits and underscores.
fn word_count(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

/// Functions and macros, and what is not defined: Jinja2's value for that has a method that fails. minijinja has no values
/// for methods.
fn is_callable(value: &Value) -> bool {
    let name = value.as_object().map_or("", |object| object.type_name());
    value.is_undefined() || ["BoxedFunction", "Macro"].iter().any(|kind| name.ends_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rsplit_refuses_an_empty_separator_as_python_does() {
        let error = rsplit("x", Some(""), None).unwrap_err();
        assert!(error.to_string().contains("empty separator"), "{error}");
    }
}

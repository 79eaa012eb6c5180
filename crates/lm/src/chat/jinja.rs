//! Jinja2 as transformers sets it up, on minijinja.

use jiff::Zoned;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use super::json::Dump;
use super::{loops, python};

/// Templates are untrusted: a template that runs for longer than this many instructions is stopped.
const FUEL: u64 = 5_000_000;
const NAME: &str = "template";

/// Renders a template; a failure is said in one line.
///
/// - `now`: the moment that `strftime_now` tells
pub(super) fn render(
    source: &str,
    variables: &Map<String, Json>,
    now: &Zoned,
) -> Result<String, String> {
    let source = loops::lazy(&without_generation_tags(source))?;
    let mut environment = environment(now);
    environment
        .add_template(NAME, &source)
        .and_then(|()| environment.get_template(NAME)?.render(Value::from(Serde(variables))))
        .map_err(|error| describe(&error))
}

/// The message, with the template's own line: no source excerpt, which can be pages long.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// `{% generation %}` marks the assistant's text for training; for a prompt it is a plain block with its own
/// scope, which is what `with` is.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end];
        let name = inner.trim_matches(['-', '+']).trim();
        let replaced = match name {
            "generation" => inner.replace(name, "with"),
            "endgeneration" => inner.replace(name, "endwith"),
            _ => inner.to_owned(),
        };
        out.push_str("{%");
        out.push_str(&replaced);
        out.push_str("%}");
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

/// Jinja2 as transformers configures it.
fn environment<'a>(now: &Zoned) -> Environment<'a> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    python::add_to(&mut environment);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", to_json);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    let now = now.clone();
    environment.add_function("strftime_now", move |format: &str| {
        jiff::fmt::strtime::format(format, &now)
            .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    // In Python text is a sequence and can be iterated over.
    environment.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined
        )
    });
    environment.add_test("iterable", |value: &Value| match value.kind() {
        // Templates ask this of `tools`, which is none when there are none.
        ValueKind::None => false,
        ValueKind::String | ValueKind::Undefined => true,
        _ => value.try_iter().is_ok(),
    });
    environment
}

/// `json.dumps` with transformers' defaults: nothing is escaped for HTML, non-ASCII stays.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let refuse = |error: String| minijinja::Error::new(ErrorKind::InvalidOperation, error);
    let json = serde_json::to_value(value).map_err(|error| refuse(error.to_string()))?;
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(refuse("tojson: separators takes two strings".to_owned())),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let dump = Dump {
        item,
        key,
        indent,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    Ok(dump.text_of(&json))
}

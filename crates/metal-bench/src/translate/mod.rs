//! Metal to C++.
//!
//! A kernel's text stays as it is, apart from what C++ has no words for: address spaces and
//! attributes go, arrays in threadgroup memory become references to memory that the threads share,
//! floating literals become `float`, as they are in Metal. What the attributes said of a kernel's
//! parameters becomes a table, from which the machine calls it.

mod lexer;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    ops::Range,
};

use lexer::{Kind, Token, tokens};

use crate::{Error, Result};

const ADDRESS_SPACES: [&str; 4] = ["constant", "device", "thread", "threadgroup"];

/// Attributes of parameters, and the member of `bench::Source` that each stands for.
const BUILTINS: [(&str, &str); 16] = [
    ("dispatch_threads_per_threadgroup", "kThreadsPerThreadgroup"),
    ("quadgroup_index_in_threadgroup", "kQuadgroupIndexInThreadgroup"),
    ("simdgroup_index_in_threadgroup", "kSimdgroupIndexInThreadgroup"),
    ("simdgroups_per_threadgroup", "kSimdgroupsPerThreadgroup"),
    ("thread_execution_width", "kThreadsPerSimdgroup"),
    ("thread_index_in_quadgroup", "kThreadIndexInQuadgroup"),
    ("thread_index_in_simdgroup", "kThreadIndexInSimdgroup"),
    ("thread_index_in_threadgroup", "kThreadIndexInThreadgroup"),
    ("thread_position_in_grid", "kThreadPositionInGrid"),
    ("thread_position_in_threadgroup", "kThreadPositionInThreadgroup"),
    ("threadgroup_position_in_grid", "kThreadgroupPositionInGrid"),
    ("threadgroups_per_grid", "kThreadgroupsPerGrid"),
    ("threads_per_grid", "kThreadsPerGrid"),
    ("threads_per_simdgroup", "kThreadsPerSimdgroup"),
    ("threads_per_threadgroup", "kThreadsPerThreadgroup"),
    ("quadgroups_per_threadgroup", ""),
];

/// A translated file.
#[derive(Debug)]
pub struct Translation {
    text: String,
    /// By the name of the function: the rows of its table of arguments.
    functions: BTreeMap<String, Vec<String>>,
    /// By the name that hosts ask for: the function and the expression that names its instance.
    kernels: BTreeMap<String, (String, String)>,
}

impl Translation {
    /// Translates `text`, which the preprocessor has read.
    ///
    /// # Errors
    /// `Translate`, with what it does not understand.
    pub fn of(text: &str) -> Result<Translation> {
        let mut translator = Translator {
            text,
            tokens: tokens(text),
            edits: Vec::new(),
            functions: BTreeMap::new(),
            kernels: BTreeMap::new(),
        };
        translator.run()?;
        let mut edits = translator.edits;
        edits.sort_by_key(|(span, _)| (span.start, span.end));
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        for (span, new) in edits {
            if span.start < at {
                // inside of something that is gone
                continue;
            }
            out += &text[at..span.start];
            out += &new;
            // lines keep their numbers
            let lost = text[span.clone()].matches('\n').count() - new.matches('\n').count();
            out.extend(std::iter::repeat_n('\n', lost));
            at = span.end;
        }
        out += &text[at..];
        Ok(Translation { text: out, functions: translator.functions, kernels: translator.kernels })
    }

    /// The names of the kernels that a host can ask for.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.keys().map(String::as_str)
    }

    /// C++ that has the named kernels.
    ///
    /// # Errors
    /// `NoKernel` for a name that is not one of them.
    pub fn cpp(&self, names: &[String]) -> Result<String> {
        let mut out = format!("#include \"stdlib/metal.h\"\n{}\nnamespace {{\n", self.text);
        let mut written = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let (function, instance) = self.kernels.get(name).ok_or_else(|| Error::NoKernel {
                name: name.clone(),
                known: self.kernels.keys().cloned().collect(),
            })?;
            if !written.contains(function) {
                written.push(function.clone());
                let rows = self.functions[function].join(", ");
                let _ = writeln!(out, "const bench::Argument arguments_{function}[] = {{{rows}}};");
            }
            let _ = writeln!(
                out,
                "__attribute__((flatten)) void run_{number}() {{\n  \
                 bench::call<{instance}>(arguments_{function});\n}}\n\
                 bench::Kernel kernel_{number}(\"{name}\", run_{number});"
            );
        }
        out += "}\n";
        Ok(out)
    }
}

struct Translator<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    edits: Vec<(Range<usize>, String)>,
    functions: BTreeMap<String, Vec<String>>,
    kernels: BTreeMap<String, (String, String)>,
}

impl Translator<'_> {
    fn run(&mut self) -> Result<()> {
        self.drop_overloads(0..self.tokens.len())?;
        self.member_specializations();
        let mut i = 0;
        while i < self.tokens.len() {
            match self.tokens[i].kind {
                Kind::Directive if self.word(i).starts_with("#pragma") => self.pragma(i),
                Kind::Number => self.literal(i),
                Kind::Word if self.word(i) == "kernel" => {
                    self.replace(i..i + 1, "");
                    self.function(i)?;
                }
                Kind::Word if ADDRESS_SPACES.contains(&self.word(i)) => self.address_space(i)?,
                Kind::Mark if self.word(i) == "[[" => i = self.attribute(i)?,
                _ => {}
            }
            i += 1;
        }
        Ok(())
    }

    fn word(&self, i: usize) -> &str {
        self.tokens.get(i).map_or("", |t| &self.text[t.span.clone()])
    }

    fn before(&self, i: usize) -> &str {
        i.checked_sub(1).map_or("", |i| self.word(i))
    }

    /// The text of the tokens in `range`.
    fn texts(&self, range: Range<usize>) -> &str {
        if range.is_empty() {
            return "";
        }
        &self.text[self.tokens[range.start].span.start..self.tokens[range.end - 1].span.end]
    }

    fn replace(&mut self, range: Range<usize>, new: &str) {
        let span = self.tokens[range.start].span.start..self.tokens[range.end - 1].span.end;
        self.edits.push((span, new.to_owned()));
    }

    fn fail<T>(&self, i: usize, reason: &str) -> Result<T> {
        let at = self.tokens.get(i).map_or(self.text.len(), |t| t.span.start);
        let line = self.text[at..].lines().next().unwrap_or_default().trim();
        Err(Error::Translate { reason: format!("{reason}: {line}") })
    }

    /// The index of the bracket that closes the one at `open`.
    fn closing(&self, open: usize) -> Result<usize> {
        let mut depth = 0;
        for i in open..self.tokens.len() {
            match self.word(i) {
                "(" | "[" | "{" | "[[" => depth += 1,
                ")" | "]" | "}" | "]]" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(i);
            }
        }
        self.fail(open, "a bracket that nothing closes")
    }

    /// `#pragma clang fp contract(off)` is for the function around it; gcc takes an attribute in its place.
    /// Other pragmas go.
    fn pragma(&mut self, i: usize) {
        let words: Vec<&str> = self.word(i).split_whitespace().skip(1).collect();
        if words != ["clang", "fp", "contract(off)"] {
            self.replace(i..i + 1, "");
            return;
        }
        let mut depth = 0;
        let brace = (0..i).rev().find(|k| {
            match self.word(*k) {
                "}" => depth += 1,
                "{" => depth -= 1,
                _ => {}
            }
            depth < 0
        });
        let Some(mut head) = brace else { return };
        while head > 0
            && !matches!(self.before(head), ";" | "{" | "}")
            && self.tokens[head - 1].kind != Kind::Directive
        {
            head -= 1;
        }
        while self.word(head) == "template" {
            let mut depth = 0;
            loop {
                head += 1;
                match self.word(head) {
                    "<" => depth += 1,
                    ">" => depth -= 1,
                    _ => {}
                }
                if depth == 0 || head >= brace.unwrap_or(0) {
                    break;
                }
            }
            head += 1;
        }
        let at = self.tokens[head].span.start;
        self.edits.push((at..at, "BENCH_UNCONTRACTED ".to_owned()));
    }

    fn literal(&mut self, i: usize) {
        let word = self.word(i);
        let lower = word.to_ascii_lowercase();
        let hex = lower.starts_with("0x");
        let floating = if hex {
            lower.contains('p')
        } else {
            lower.contains(['.', 'e']) || lower.ends_with('h')
        };
        if !floating {
            return;
        }
        let new = if let Some(digits) = lower.strip_suffix("bf").filter(|_| !hex) {
            format!("bfloat({digits}f)")
        } else if let Some(digits) = lower.strip_suffix('h') {
            format!("half({digits}{}f)", if digits.contains('.') { "" } else { ".0" })
        } else if lower.ends_with('f') {
            return;
        } else {
            format!("{word}f")
        };
        self.replace(i..i + 1, &new);
    }

    fn address_space(&mut self, i: usize) -> Result<()> {
        let space = self.word(i).to_owned();
        if space == "threadgroup" && matches!(self.before(i), ";" | "{" | "}") {
            return self.threadgroup_variables(i);
        }
        self.replace(i..i + 1, "");
        Ok(())
    }

    /// What is defined once for each address space would be defined several times: the first stays.
    /// `range` is a file, or what is between the braces of a namespace or a class.
    fn drop_overloads(&mut self, range: Range<usize>) -> Result<()> {
        let mut seen = HashSet::new();
        let (mut begin, mut i) = (range.start, range.start);
        while i < range.end {
            let open = i;
            match self.word(i) {
                "{" => {
                    i = self.closing(i)?;
                    let container = self.opens_namespace(open) || self.opens_class(open);
                    let body = container
                        || ADDRESS_SPACES.contains(&self.before(open))
                        || matches!(self.before(open), ")" | "}" | "const" | "noexcept");
                    if body && self.is_known(begin..open, &mut seen) {
                        self.replace(begin..i + 1, "");
                    } else if container {
                        self.drop_overloads(open + 1..i)?;
                    }
                    // otherwise it is an initializer
                    begin = if body { i + 1 } else { begin };
                }
                "(" | "[" | "[[" => i = self.closing(i)?,
                ";" => begin = i + 1,
                _ => {}
            }
            i += 1;
        }
        Ok(())
    }

    /// Whether a definition with address spaces in its head has been seen with others; the initializers
    /// of a constructor are no part of a head.
    fn is_known(&self, head: Range<usize>, seen: &mut HashSet<String>) -> bool {
        let initializers = head.clone().find(|k| {
            let before = self.before(*k);
            self.word(*k) == ":" && (before == ")" || ADDRESS_SPACES.contains(&before))
        });
        let head = head.start..initializers.unwrap_or(head.end);
        let head = head.filter(|k| self.tokens[*k].kind != Kind::Directive);
        let (spaces, words): (Vec<_>, Vec<_>) =
            head.map(|k| self.word(k)).partition(|w| ADDRESS_SPACES.contains(w));
        !seen.insert(words.join(" ")) && !spaces.is_empty()
    }

    /// `template <>` in a class: an overload without it is preferred just the same, and gcc knows no
    /// such specializations.
    fn member_specializations(&mut self) {
        let mut classes = Vec::new();
        for i in 0..self.tokens.len() {
            match self.word(i) {
                "{" => classes.push(self.opens_class(i)),
                "}" => drop(classes.pop()),
                "template" if classes.last() == Some(&true) && self.is_empty_template(i) => {
                    self.replace(i..i + 3, "");
                }
                _ => {}
            }
        }
    }

    fn is_empty_template(&self, i: usize) -> bool {
        self.word(i + 1) == "<" && self.word(i + 2) == ">"
    }

    fn opens_class(&self, brace: usize) -> bool {
        let ends = |k: &usize| {
            matches!(self.word(*k), ";" | "{" | "}" | "(" | ")")
                || self.tokens[*k].kind == Kind::Directive
        };
        let head = (0..brace).rev().take_while(|k| !ends(k));
        let mut words = head.map(|k| self.word(k));
        // a parameter `class T` is in angle brackets
        let mut depth = 0;
        words.any(|word| {
            match word {
                ">" => depth += 1,
                "<" => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(word, "struct" | "class" | "union")
        })
    }

    fn opens_namespace(&self, brace: usize) -> bool {
        let before = brace.checked_sub(2).map_or("", |k| self.word(k));
        before == "namespace" || before == "extern" || self.before(brace) == "namespace"
    }

    /// `threadgroup float a[32], b;` in the body of a function.
    fn threadgroup_variables(&mut self, i: usize) -> Result<()> {
        let all = i + 1..self.tokens.len();
        let Some(end) = all.clone().find(|k| self.word(*k) == ";") else {
            return self.fail(i, "a declaration without an end");
        };
        // what points to threadgroup memory says so before its name ends; dimensions may multiply
        let name_ends = all.into_iter().find(|k| matches!(self.word(*k), "[" | ";" | "=" | "{"));
        if (i..name_ends.unwrap_or(end)).any(|k| matches!(self.word(k), "*" | "&" | "(")) {
            self.replace(i..i + 1, "");
            return Ok(());
        }
        // the name is the last word before the first dimension, comma or the end
        let mut depth = 0;
        let first = (i + 1..=end).find(|&k| {
            match self.word(k) {
                "<" => depth += 1,
                ">" => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(self.word(k), "[" | "," | ";")
        });
        let Some(first) = first.filter(|f| *f > i + 2) else {
            return self.fail(i, "not understood as variables in threadgroup memory");
        };
        let kind = self.texts(i + 1..first - 1).to_owned();
        let mut new = String::new();
        let mut name = first - 1;
        let mut k = first;
        while k <= end {
            if self.word(k) == "[" {
                k = self.closing(k)? + 1;
                continue;
            }
            let dimensions = self.texts(name + 1..k);
            let _ = write!(
                new,
                "auto& {} = bench::shared<{kind}{dimensions}>([] {{}});",
                self.word(name)
            );
            name = k + 1;
            k += 2;
        }
        self.replace(i..end + 1, &new);
        Ok(())
    }

    /// The attributes between `[[` at `i` and the closing brackets; returns the index of these.
    fn attribute(&mut self, i: usize) -> Result<usize> {
        let end = self.closing(i)?;
        let words: Vec<&str> = (i + 1..end).map(|k| self.word(k)).collect();
        if words.first() == Some(&"host_name") && self.before(i) == "template" {
            return self.instance(i - 1);
        }
        if words.first() == Some(&"function_constant") {
            let (name, index) =
                (self.before(i).to_owned(), words.get(2).copied().unwrap_or_default().to_owned());
            let stop = (end..self.tokens.len()).find(|k| self.word(*k) == ";").unwrap_or(end);
            self.replace(
                i..stop + 1,
                &format!("; static bench::Constant bench_constant_{name}({index}, \"{name}\", &{name}, sizeof {name});"),
            );
            return Ok(stop);
        }
        let is_kernel = words.contains(&"kernel");
        self.replace(i..end + 1, "");
        if is_kernel {
            self.function(end)?;
        }
        Ok(end)
    }

    /// `template [[host_name("x")]] [[kernel]] decltype(f<..>) f<..>;` from `template` on.
    fn instance(&mut self, template: usize) -> Result<usize> {
        let end = (template..self.tokens.len()).find(|k| self.word(*k) == ";");
        let Some(end) = end else { return self.fail(template, "an instance without an end") };
        let words = template..end;
        let name: String = {
            // neighbouring literals are one
            let close = self.closing(template + 1)?;
            let texts = (template..close).filter(|k| self.tokens[*k].kind == Kind::Text);
            texts.map(|k| self.word(k).trim_matches('"')).collect()
        };
        let Some(open) = words.clone().find(|k| self.word(*k) == "decltype") else {
            return self.fail(template, "an instance without decltype");
        };
        let close = self.closing(open + 1)?;
        let expression = self.texts(open + 2..close).to_owned();
        let function = self.word(open + 2).to_owned();
        self.replace(template..end + 1, "");
        self.kernels.insert(name, (function, expression));
        Ok(end)
    }

    /// A kernel's definition, after the word or the attribute that says that it is one.
    fn function(&mut self, after: usize) -> Result<()> {
        let mut open = after + 1;
        while self.word(open) != "(" {
            open = if self.word(open) == "[[" { self.closing(open)? } else { open } + 1;
            if open >= self.tokens.len() {
                return self.fail(after, "a kernel without parameters");
            }
        }
        let name = self.word(open - 1).to_owned();
        let close = self.closing(open)?;
        let parameters = self.parameters(open + 1..close)?;
        let taken: Vec<usize> = parameters.iter().filter_map(Parameter::index).collect();
        let mut next = 0;
        let mut rows = Vec::new();
        for parameter in &parameters {
            rows.push(match parameter {
                Parameter::Buffer(Some(index)) => format!("{{bench::Source::kBuffer, {index}}}"),
                Parameter::Buffer(None) => {
                    // the compiler numbers them in order, around those that have a number
                    while taken.contains(&next) {
                        next += 1;
                    }
                    next += 1;
                    format!("{{bench::Source::kBuffer, {}}}", next - 1)
                }
                Parameter::Threadgroup(index) => {
                    format!("{{bench::Source::kThreadgroupMemory, {index}}}")
                }
                Parameter::Builtin(source) => format!("{{bench::Source::{source}, 0}}"),
            });
        }
        // no template: a host asks for it by its own name
        let mut head = after;
        while head > 0
            && !matches!(self.before(head), ";" | "}" | ">")
            && self.tokens[head - 1].kind != Kind::Directive
        {
            head -= 1;
        }
        if self.before(head) != ">" {
            self.kernels.insert(name.clone(), (name.clone(), name.clone()));
        }
        self.functions.insert(name, rows);
        Ok(())
    }

    fn parameters(&self, range: Range<usize>) -> Result<Vec<Parameter>> {
        let mut all = Vec::new();
        let mut begin = range.start;
        let mut depth = 0;
        for k in range.clone() {
            match self.word(k) {
                "(" | "[" | "{" | "[[" | "<" => depth += 1,
                ")" | "]" | "}" | "]]" | ">" => depth -= 1,
                _ => {}
            }
            let last = k + 1 == range.end;
            if last || (depth == 0 && self.word(k) == ",") {
                all.push(self.parameter(begin..if last { k + 1 } else { k })?);
                begin = k + 1;
            }
        }
        Ok(all)
    }

    fn parameter(&self, range: Range<usize>) -> Result<Parameter> {
        let attribute = range.clone().find(|k| self.word(*k) == "[[");
        let points = range.clone().any(|k| matches!(self.word(k), "*" | "&" | "["));
        let Some(attribute) = attribute else {
            if points {
                return Ok(Parameter::Buffer(None));
            }
            return self.fail(range.start, "a parameter without an attribute");
        };
        let name = self.word(attribute + 1);
        let index = || self.word(attribute + 3).parse().ok();
        match name {
            "buffer" => Ok(Parameter::Buffer(index())),
            "threadgroup" => Ok(Parameter::Threadgroup(index().unwrap_or(0))),
            _ => match BUILTINS.iter().find(|(n, source)| *n == name && !source.is_empty()) {
                Some((_, source)) => Ok(Parameter::Builtin(source)),
                None => self.fail(range.start, "a parameter with an attribute that is not known"),
            },
        }
    }
}

enum Parameter {
    Buffer(Option<usize>),
    Threadgroup(usize),
    Builtin(&'static str),
}

impl Parameter {
    fn index(&self) -> Option<usize> {
        match self {
            Parameter::Buffer(index) => *index,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(text: &str) -> String {
        let translation = Translation::of(text).unwrap();
        translation.text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn address_spaces_and_attributes_go() {
        let text =
            "inline float f(const device float* x [[buffer(0)]], thread int& n) { return x[n]; }";
        assert_eq!(translated(text), "inline float f(const float* x , int& n) { return x[n]; }");
    }

    #[test]
    fn literals_are_float() {
        assert_eq!(
            translated("x = 1.5 + 2e3 + 1.0f + 3 + 0x1f + 2.0h;"),
            "x = 1.5f + 2e3f + 1.0f + 3 + 0x1f + half(2.0f);"
        );
    }

    #[test]
    fn arrays_of_a_threadgroup_are_shared_and_pointers_are_not() {
        let text = "void f(threadgroup float* p) { threadgroup float a[4 * n], b; threadgroup float* q = a; }";
        let expected = "void f( float* p) { auto& a = bench::shared<float[4 * n]>([] {});\
                        auto& b = bench::shared<float>([] {}); float* q = a; }";
        assert_eq!(translated(text), expected);
    }

    #[test]
    fn one_overload_of_several_address_spaces_stays() {
        let text = "struct A { A(int x) thread : n{x} {} A(int x) device : n{x} {} int n{0}; }; \
                    void f(thread A& a) { a; } void f(device A& a) { a; } void f(int a) { a; }";
        let expected =
            "struct A { A(int x) : n{x} {} int n{0}; }; void f( A& a) { a; } void f(int a) { a; }";
        assert_eq!(translated(text), expected);
    }

    #[test]
    fn arguments_are_numbered_around_those_with_a_number() {
        let text = "kernel void f(device int* a, device int* b [[buffer(1)]], constant int& c, \
                    uint i [[thread_position_in_grid]]) {}";
        let cpp = Translation::of(text).unwrap().cpp(&["f".to_owned()]).unwrap();
        let rows = "{bench::Source::kBuffer, 0}, {bench::Source::kBuffer, 1}, \
                    {bench::Source::kBuffer, 2}, {bench::Source::kThreadPositionInGrid, 0}";
        assert!(cpp.contains(rows), "{cpp}");
    }

    #[test]
    fn function_with_the_pragma_is_not_contracted() {
        let text = "int a;\ntemplate <typename T>\ninline T f(T x) {\n#pragma clang fp contract(off)\n\
                    return x * x + x; }\n#pragma METAL internals : enable\nint b;";
        let expected = "int a; template <typename T> BENCH_UNCONTRACTED inline T f(T x) { \
                        #pragma clang fp contract(off) return x * x + x; } int b;";
        assert_eq!(translated(text), expected);
    }

    #[test]
    fn instances_are_found_by_the_name_for_hosts() {
        let text = "template <typename T> [[kernel]] void f(device T* x) {}\n\
                    template [[host_name(\"f\" \"_int\")]] [[kernel]] decltype(f<int>) f<int>;";
        let translation = Translation::of(text).unwrap();
        assert_eq!(translation.kernels().collect::<Vec<_>>(), ["f_int"]);
        assert!(translation.cpp(&["f_int".to_owned()]).unwrap().contains("bench::call<f<int>>"));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let unknown = "kernel void f(uint i [[amplification_id]]) {}";
        assert!(Translation::of(unknown).unwrap_err().to_string().contains("amplification_id"));
        let without = "kernel void f(uint i) {}";
        assert!(Translation::of(without).is_err());
        let missing = Translation::of("").unwrap().cpp(&["f".to_owned()]);
        assert!(matches!(missing, Err(Error::NoKernel { .. })));
    }
}

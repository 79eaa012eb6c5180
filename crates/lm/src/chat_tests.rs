use serde_json::json;

use super::*;

/// What transformers rendered; see `scripts/chat_golden/make.py`.
const GOLDEN: &str = include_str!("chat_golden.json");

#[test]
fn render_matches_transformers() {
    let golden: Json = serde_json::from_str(GOLDEN).expect("golden file parses");
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().expect("cases") {
        let template = case["template"].as_str().expect("template");
        let options = ChatOptions {
            add_generation_prompt: case["prompt"] == true,
            tools: Some(case["tools"].clone()).filter(|tools| !tools.is_null()),
            variables: Map::new(),
        };
        let messages = case["messages"].as_array().expect("messages");
        let variables = case["variables"].as_object().expect("variables").clone();
        let got = ChatTemplate::from_source(template).render_with(messages, variables, &options);
        match (&got, case["expected"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Err(_), None) => {}
            (got, expected) => wrong.push(format!("{template}\n  {got:?}\n  {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(path, content).expect("write");
    }
    folder
}

fn rendered(files: &[(&str, &str)], tools: Option<Json>) -> Result<String> {
    let folder = folder(files);
    let template = ChatTemplate::load(folder.path())?.expect("a template");
    let options = ChatOptions { tools, ..ChatOptions::default() };
    template.render_with(&user_message("hi"), Map::new(), &options)
}

#[test]
fn load_finds_templates_wherever_checkpoints_keep_them() {
    let in_config = ("tokenizer_config.json", r#"{"chat_template": "config"}"#);
    let in_json = ("chat_template.json", r#"{"chat_template": "json"}"#);
    let in_file = ("chat_template.jinja", "file");
    assert_eq!(rendered(&[in_config], None).expect("renders"), "config");
    assert_eq!(rendered(&[in_config, in_json], None).expect("renders"), "json");
    assert_eq!(rendered(&[in_config, in_json, in_file], None).expect("renders"), "file");
    assert!(ChatTemplate::load(folder(&[]).path()).expect("loads").is_none());
    let without = folder(&[("tokenizer_config.json", r#"{"chat_template": null}"#)]);
    assert!(ChatTemplate::load(without.path()).expect("loads").is_none());
}

#[test]
fn named_templates_are_chosen_as_transformers_does() {
    let list = r#"{"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}"#;
    let named = ("tokenizer_config.json", list);
    assert_eq!(rendered(&[named], None).expect("renders"), "plain");
    assert_eq!(rendered(&[named], Some(json!([]))).expect("renders"), "tools");
    let extra =
        [("chat_template.jinja", "plain"), ("additional_chat_templates/tool_use.jinja", "extra")];
    assert_eq!(rendered(&extra, Some(json!([]))).expect("renders"), "extra");
    let odd = ("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": ""}]}"#);
    let error = rendered(&[odd], None).expect_err("no default").to_string();
    assert!(error.contains("rag"), "{error}");
}

#[test]
fn malformed_templates_give_errors() {
    for (template, part) in [
        ("{% if %}", "line 1"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("\n{{ undefined_function() }}", "line 2"),
        (
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "fuel",
        ),
    ] {
        let error = rendered(&[("chat_template.jinja", template)], None).expect_err("malformed");
        assert!(error.to_string().contains(part), "{error}");
    }
    let odd = ("tokenizer_config.json", r#"{"chat_template": 3}"#);
    assert!(matches!(rendered(&[odd], None), Err(Error::Template { .. })));
}

#[test]
fn strftime_now_formats_the_date() {
    let text =
        rendered(&[("chat_template.jinja", "{{ strftime_now('%Y-%m-%d %d %b %Y') }}")], None);
    let text = text.expect("renders");
    assert_eq!(text.len(), "2026-01-01 01 Jan 2026".len(), "{text}");
}

#[test]
fn render_passes_special_tokens_and_thinking() {
    let ((), tokenizer) = crate::tokenizer::tests::byte_level();
    let template = ChatTemplate::from_source("{{ bos_token }}{{ enable_thinking }}{{ eos_token }}");
    let mut options = ChatOptions::default();
    let render = |options: &ChatOptions| {
        template.render(&user_message("hi"), &tokenizer, options).expect("renders")
    };
    assert_eq!(render(&options), "<bos>False<eos>");
    options.variables.insert("enable_thinking".to_owned(), true.into());
    assert_eq!(render(&options), "<bos>True<eos>");
}

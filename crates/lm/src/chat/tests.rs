use serde_json::json;

use super::*;

/// What transformers and mlx-lm rendered; see `scripts/chat_golden/make.py`.
const GOLDEN: &str = include_str!("golden.json");

/// The moment at which the golden texts were made.
fn clock() -> Zoned {
    let moment = jiff::civil::datetime(2025, 3, 9, 14, 5, 6, 0);
    moment.to_zoned(jiff::tz::TimeZone::UTC).expect("a moment")
}

fn special_tokens() -> BTreeMap<String, String> {
    [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// Renders one golden case; returns its name too.
fn render_case(case: &Json, chats: &Json) -> (String, Result<String>) {
    let given = case["chat"].as_str().map_or(case, |name| &chats[name]);
    let mut variables = given["variables"].as_object().cloned().unwrap_or_default();
    let enable_thinking = variables.remove("enable_thinking").and_then(|value| value.as_bool());
    let options = ChatOptions {
        add_generation_prompt: given["prompt"] != false,
        tools: given["tools"].as_array().cloned(),
        enable_thinking,
        variables,
    };
    let (name, template) = if let Some(source) = case["template"].as_str() {
        (source.to_owned(), ChatTemplate::from_source(source))
    } else if let Some(file) = case["file"].as_str() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chat/templates");
        let source = fs::read_to_string(folder.join(file)).expect("template");
        (file.to_owned(), ChatTemplate::from_source(source))
    } else {
        let fields = json!({ "chat_template_type": case["builtin"] }).to_string();
        let folder = folder(&[("tokenizer_config.json", &fields)]);
        let template = ChatTemplate::load(folder.path()).expect("loads").expect("a template");
        (case["builtin"].to_string(), template)
    };
    let messages = given["messages"].as_array().expect("messages");
    let rendered = template.render_at(messages, &special_tokens(), &options, &clock());
    (format!("{name}: {}", case["chat"].as_str().unwrap_or_default()), rendered)
}

#[test]
fn render_matches_transformers_and_mlx_lm() {
    let golden: Json = serde_json::from_str(GOLDEN).expect("golden file parses");
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().expect("cases") {
        let (name, got) = render_case(case, &golden["chats"]);
        match (&got, case["expected"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Err(_), None) => {}
            (Ok(text), Some(expected)) => {
                let at = text.bytes().zip(expected.bytes()).take_while(|(a, b)| a == b).count();
                let near = |text: &str| {
                    let bytes = text.as_bytes();
                    let end = bytes.len().min(at + 80);
                    String::from_utf8_lossy(&bytes[at.saturating_sub(40)..end]).into_owned()
                };
                wrong.push(format!("{name}\n  {:?}\n  {:?}", near(text), near(expected)));
            }
            (got, _) => wrong.push(format!("{name}\n  {got:?}\n  {}", case["error"])),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_published_template_has_golden_texts_and_a_source() {
    const README: &str = include_str!("templates/README.md");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chat/templates");
    for entry in fs::read_dir(folder).expect("templates").flatten() {
        let name = entry.file_name().into_string().expect("text");
        if name.ends_with(".jinja") {
            let row = format!("\"file\": \"{name}\"");
            assert!(GOLDEN.matches(&row).count() > 10, "run make.py for {name}");
            assert!(README.contains(&format!("`{name}`")), "README.md lacks {name}");
        }
    }
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

fn rendered(files: &[(&str, &str)], tools: Option<Vec<Json>>) -> Result<String> {
    let folder = folder(files);
    let template = ChatTemplate::load(folder.path())?.expect("a template");
    let options = ChatOptions { tools, ..ChatOptions::default() };
    template.render_at(&user_message("hi"), &BTreeMap::new(), &options, &clock())
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
    assert_eq!(rendered(&[named], Some(Vec::new())).expect("renders"), "tools");
    let extra =
        [("chat_template.jinja", "plain"), ("additional_chat_templates/tool_use.jinja", "extra")];
    assert_eq!(rendered(&extra, Some(Vec::new())).expect("renders"), "extra");
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
    assert_eq!(text.expect("renders"), "2025-03-09 09 Mar 2025");
}

#[test]
fn render_passes_special_tokens_and_thinking() {
    let ((), tokenizer) = crate::tokenizer::tests::byte_level();
    let template = ChatTemplate::from_source("{{ bos_token }}{{ enable_thinking }}{{ eos_token }}");
    let render = |options: &ChatOptions| {
        template.render(&user_message("hi"), &tokenizer, options).expect("renders")
    };
    let mut options = ChatOptions::default();
    assert_eq!(render(&options), "<bos>False<eos>");
    options.enable_thinking = Some(true);
    assert_eq!(render(&options), "<bos>True<eos>");
    options.variables.insert("enable_thinking".to_owned(), "hard".into());
    assert_eq!(render(&options), "<bos>hard<eos>");
}

#[test]
fn conversation_begins_with_the_instructions() {
    assert_eq!(conversation(None, "hi"), [json!({ "role": "user", "content": "hi" })]);
    let both = conversation(Some("be brief"), "hi");
    assert_eq!(both[0], json!({ "role": "system", "content": "be brief" }));
    assert_eq!(both[1..], user_message("hi"));
}

#[test]
fn chat_template_type_is_taken_as_mlx_lm_does() {
    let config = |kind: &str| format!("{{\"chat_template_type\": \"{kind}\"}}");
    let template = ("chat_template.jinja", "file");
    let v32 = config("deepseek_v32");
    let text = rendered(&[("tokenizer_config.json", &v32), template], None).expect("renders");
    assert_eq!(text, "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>");
    let spark = config("muse_spark");
    let text = rendered(&[("tokenizer_config.json", &spark), template], None);
    assert_eq!(text.expect("renders"), "file");
    let other = config("other");
    let error = rendered(&[("tokenizer_config.json", &other)], None).expect_err("unknown");
    for part in ["`other`", "tokenizer_config.json", "deepseek_v32"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

use std::fs;

use serde_json::json;

use crate::tokenizer::Tokenizer;

use super::*;

/// What tiktoken makes of texts; see `scripts/tiktoken_golden/make.py`.
const GOLDEN: &str = include_str!("golden.json");

fn golden() -> Value {
    serde_json::from_str(GOLDEN).expect("golden file parses")
}

fn rank_file(golden: &Value) -> String {
    let tokens = golden["ranks"].as_array().expect("ranks");
    let line =
        |(rank, token): (usize, &Value)| format!("{} {rank}\n", token.as_str().expect("text"));
    tokens.iter().enumerate().map(line).collect()
}

fn config(golden: &Value) -> Value {
    let special = golden["special"].as_object().expect("special tokens");
    let added: Map<String, Value> =
        special.iter().map(|(id, name)| (id.clone(), json!({ "content": name }))).collect();
    json!({ "tokenizer_class": CLASS, "added_tokens_decoder": added,
        "bos_token": "[BOS]", "eos_token": { "content": "[EOS]" } })
}

fn folder(ranks: &str, config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join(FILE), ranks).expect("write");
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("write");
    folder
}

/// Compares ids, decoded text and streamed text with what tiktoken says.
fn check(golden: &Value) {
    let folder = folder(&rank_file(golden), &config(golden));
    assert!(Tokenizer::exists(folder.path()));
    let tokenizer = Tokenizer::load(folder.path()).expect("loads");
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("text");
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
        let got = tokenizer.encode_prompt(text).expect("encodes");
        if got != ids {
            wrong.push(format!("{text:?}\n  {got:?}\n  {ids:?}"));
        }
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), text);
        let mut detokenizer = tokenizer.detokenizer();
        let mut streamed: String =
            ids.iter().map(|id| detokenizer.push(*id).expect("push")).collect();
        streamed.push_str(&detokenizer.finish().expect("finish"));
        assert_eq!(streamed, text);
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn tokenizer_equals_tiktoken() {
    check(&golden());
}

#[test]
fn special_tokens_have_their_names_and_ids() {
    let golden = golden();
    let folder = folder(&rank_file(&golden), &config(&golden));
    let tokenizer = Tokenizer::load(folder.path()).expect("loads");
    let first = golden["ranks"].as_array().expect("ranks").len() as u32;
    assert_eq!(tokenizer.vocab_size(), first as usize + 256);
    assert_eq!(tokenizer.token_to_id("[BOS]"), Some(first));
    assert_eq!(tokenizer.eos_token_ids(&[]), [first + 2]);
    let reserved = format!("<|reserved_token_{}|>", first + 255);
    assert_eq!(tokenizer.token_to_id(&reserved), Some(first + 255));
    assert!(tokenizer.sorts_tools());
}

#[test]
fn load_prefers_tokenizer_json() {
    let folder = folder("", &json!({}));
    fs::write(folder.path().join("tokenizer.json"), "{").expect("write");
    let error = Tokenizer::load(folder.path()).expect_err("malformed").to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn malformed_rank_files_are_refused_with_the_line() {
    let golden = golden();
    let (whole, kimi) = (rank_file(&golden), config(&golden));
    let count = whole.lines().count();
    let mut twice = kimi.clone();
    twice["added_tokens_decoder"][(count + 1).to_string()] = json!({ "content": "[BOS]" });
    let other = json!({ "tokenizer_class": "QWenTokenizer" });
    for (ranks, config, part) in [
        (format!("{whole}IA== {}\n", count + 1), &kimi, "expected"),
        (format!("{whole}IA== {count}\n"), &kimi, "two ranks"),
        (format!("{whole}?? {count}\n"), &kimi, "no base64"),
        (format!("{whole}IA=={count}\n"), &kimi, "expected a token in base64"),
        (format!("{whole} {count}\n"), &kimi, "base64"),
        ("IQ== 0\n".to_owned(), &kimi, "byte 0"),
        (String::new(), &kimi, "byte 0"),
        (whole.clone(), &twice, "twice"),
        (whole.clone(), &other, "QWenTokenizer"),
        (whole.clone(), &json!({}), "TikTokenTokenizer"),
    ] {
        let error = Tokenizer::load(folder(&ranks, config).path()).expect_err("malformed");
        let message = error.to_string();
        assert!(message.contains(part) && message.contains(FILE), "`{part}`: {message}");
    }
}

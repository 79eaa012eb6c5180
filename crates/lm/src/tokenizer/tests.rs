use std::sync::OnceLock;

use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A folder with a `tokenizer.json` and further files.
fn folder(files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (name, content) in files {
        fs::write(folder.path().join(name), content.to_string()).expect("write");
    }
    folder
}

fn load(folder: TempDir) -> (TempDir, Tokenizer) {
    let tokenizer = Tokenizer::load(folder.path()).expect("tokenizer loads");
    (folder, tokenizer)
}

/// Writing and parsing a tokenizer takes milliseconds, and property tests ask for it hundreds of times.
fn once(
    cell: &'static OnceLock<Tokenizer>,
    make: impl FnOnce() -> (TempDir, Tokenizer),
) -> ((), Tokenizer) {
    ((), cell.get_or_init(|| make().1).clone())
}

fn added(id: u32, content: &str) -> Value {
    json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true })
}

/// GPT-2's letters for all bytes.
fn alphabet() -> Vec<char> {
    let kept = |b: &u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut letters: Vec<char> = (0..256).filter(kept).filter_map(char::from_u32).collect();
    letters.extend((0x100..0x144).filter_map(char::from_u32));
    letters
}

/// Byte-level BPE: 256 bytes, two merges, `<eos>` and `<bos>`, the latter added before every sequence.
pub(crate) fn byte_level() -> ((), Tokenizer) {
    static CELL: OnceLock<Tokenizer> = OnceLock::new();
    once(&CELL, || load(byte_level_folder()))
}

fn byte_level_folder() -> TempDir {
    let mut vocab: Map<String, Value> = alphabet()
        .into_iter()
        .enumerate()
        .map(|(id, letter)| (letter.to_string(), json!(id)))
        .collect();
    vocab.insert("th".to_owned(), json!(256));
    vocab.insert("Ġth".to_owned(), json!(257));
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    folder(&[
        (
            "tokenizer.json",
            json!({
                "version": "1.0",
                "truncation": { "max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
                "padding": null,
                "added_tokens": [added(258, "<bos>"), added(259, "<eos>")],
                "normalizer": null,
                "pre_tokenizer": level,
                "post_processor": { "type": "TemplateProcessing",
                    "single": [{ "SpecialToken": { "id": "<bos>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
                    "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
                    "special_tokens": { "<bos>": { "id": "<bos>", "ids": [258], "tokens": ["<bos>"] } } },
                "decoder": level,
                "model": { "type": "BPE", "vocab": vocab, "merges": [["t", "h"], ["Ġ", "th"]] },
            }),
        ),
        (
            "tokenizer_config.json",
            json!({ "bos_token": { "content": "<bos>" }, "eos_token": "<eos>", "add_bos_token": false, "pad_token": null }),
        ),
    ])
}

/// SentencePiece-like BPE with byte fallback, as Llama 2 has it.
pub(crate) fn spm() -> ((), Tokenizer) {
    static CELL: OnceLock<Tokenizer> = OnceLock::new();
    once(&CELL, || {
        let mut vocab: Map<String, Value> =
            (0..256).map(|b| (format!("<0x{b:02X}>"), json!(b + 1))).collect();
        vocab.insert("<unk>".to_owned(), json!(0));
        for (offset, token) in ["▁", "a", "b", "▁a", "ab", "é", "\u{fffd}"].iter().enumerate()
        {
            vocab.insert((*token).to_owned(), json!(257 + offset));
        }
        load(folder(&[(
            "tokenizer.json",
            json!({
                "version": "1.0", "truncation": null, "padding": null,
                "added_tokens": [added(0, "<unk>")],
                "normalizer": { "type": "Sequence", "normalizers": [
                    { "type": "Prepend", "prepend": "▁" },
                    { "type": "Replace", "pattern": { "String": " " }, "content": "▁" } ] },
                "pre_tokenizer": null, "post_processor": null,
                "decoder": { "type": "Sequence", "decoders": [
                    { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                    { "type": "ByteFallback" }, { "type": "Fuse" },
                    { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] },
                "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                    "vocab": vocab, "merges": [["▁", "a"], ["a", "b"]] },
            }),
        )]))
    })
}

/// A decoder that has no method of its own.
pub(crate) fn word_piece() -> ((), Tokenizer) {
    static CELL: OnceLock<Tokenizer> = OnceLock::new();
    once(&CELL, || {
        load(folder(&[(
            "tokenizer.json",
            json!({
                "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
                "normalizer": null, "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null,
                "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
                "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100,
                    "vocab": { "[UNK]": 0, "hel": 1, "##lo": 2, "world": 3, "!": 4 } },
            }),
        )]))
    })
}

#[test]
fn encode_adds_special_tokens_only_when_asked() {
    let ((), tokenizer) = byte_level();
    assert_eq!(tokenizer.encode(" the", true).expect("encode"), [258, 257, 68]);
    assert_eq!(tokenizer.encode(" the", false).expect("encode"), [257, 68]);
}

#[test]
fn encode_prompt_adds_bos_once() {
    let ((), tokenizer) = byte_level();
    assert_eq!(tokenizer.encode_prompt("t").expect("encode"), [258, 83]);
    assert_eq!(tokenizer.encode_prompt("<bos>t").expect("encode"), [258, 83]);
}

#[test]
fn encode_ignores_truncation_saved_in_the_file() {
    let ((), tokenizer) = byte_level();
    assert_eq!(tokenizer.encode("abcdefgh", false).expect("encode").len(), 8);
}

#[test]
fn decode_keeps_special_tokens() {
    let ((), tokenizer) = byte_level();
    assert_eq!(tokenizer.decode(&[258, 257, 259]).expect("decode"), "<bos> th<eos>");
}

#[test]
fn special_tokens_are_read_from_both_spellings() {
    let ((), tokenizer) = byte_level();
    assert_eq!(tokenizer.special("bos_token"), Some("<bos>"));
    assert_eq!(tokenizer.special("eos_token"), Some("<eos>"));
    assert_eq!(tokenizer.special("pad_token"), None);
}

#[test]
fn eos_token_ids_join_configuration_and_tokenizer() {
    let ((), tokenizer) = byte_level();
    assert_eq!(tokenizer.eos_token_ids(&[7]), [7, 259]);
    assert_eq!(tokenizer.eos_token_ids(&[259]), [259]);
}

#[test]
fn load_without_the_file_names_it() {
    let folder = folder(&[]);
    let error = Tokenizer::load(folder.path()).expect_err("no file").to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    assert!(!Tokenizer::exists(folder.path()));
}

#[test]
fn load_of_a_malformed_file_says_what_is_wrong() {
    for content in [json!([]), json!({ "model": { "type": "Unknown" } }), json!("text")] {
        let folder = folder(&[("tokenizer.json", content)]);
        let error = Tokenizer::load(folder.path()).expect_err("malformed");
        assert!(matches!(error, Error::Tokenizer { .. }), "{error:?}");
    }
}

#[test]
fn load_of_a_malformed_config_names_it() {
    let folder = byte_level_folder();
    fs::write(folder.path().join("tokenizer_config.json"), "{").expect("write");
    let error = Tokenizer::load(folder.path()).expect_err("malformed");
    assert!(matches!(error, Error::Json { .. }), "{error:?}");
}

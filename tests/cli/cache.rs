use std::path::Path;

use super::{assert_has_keys, stderr, summary, tiny, zmlx};

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

/// The tokens that `generate` says with these arguments.
fn tokens(arguments: &[&str]) -> Vec<u64> {
    let all = [&["generate", tiny()], arguments, &["-n", "8", "--ignore-eos", "--json"]].concat();
    let found = summary(&zmlx(&all));
    found["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn a_prompt_is_read_once_and_continued() {
    let folder = tempfile::tempdir().unwrap();
    for (name, kv) in [
        ("plain", &[][..]),
        ("packed", &["--kv-bits", "8", "--kv-group-size", "32", "--quantized-kv-start", "0"]),
    ] {
        let file = path(folder.path(), name);
        let cache =
            ["cache-prompt", tiny(), "--prompt-tokens", "1,2,3,4", "--out", &file, "--json"];
        let output = zmlx(&[&cache, kv].concat());
        let found = summary(&output);
        assert_has_keys(
            &found,
            &["out", "prompt_tokens", "cache_bytes", "patched_modules", "precision"],
        );
        assert_eq!(found["prompt_tokens"], 4);
        let continued =
            tokens(&[&["--prompt-tokens", "5,6", "--prompt-cache", &file], kv].concat());
        let whole = tokens(&[&["--prompt-tokens", "1,2,3,4,5,6"], kv].concat());
        if kv.is_empty() {
            assert_eq!(continued, whole);
        }
        // a file is not overwritten
        let again = zmlx(&[&cache, kv].concat());
        assert_eq!(again.status.code(), Some(2));
        assert!(stderr(&again).contains("exists already"), "{}", stderr(&again));
    }
    let packed = path(folder.path(), "packed");
    let other = zmlx(&[
        "generate",
        tiny(),
        "--prompt-tokens",
        "5",
        "--prompt-cache",
        &packed,
        "--kv-bits",
        "4",
    ]);
    assert_eq!(other.status.code(), Some(2));
    assert!(stderr(&other).contains("holds 8 bits in groups of 32, not 4"), "{}", stderr(&other));
}

#[test]
fn caches_of_other_models_and_other_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = path(folder.path(), "demo");
    let output = zmlx(&["cache-prompt", "models/demo", "-p", "What is", "--out", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said =
        zmlx(&["generate", "models/demo", "-p", " grep?", "--prompt-cache", &file, "-n", "4"]);
    assert_eq!(said.status.code(), Some(0), "{}", stderr(&said));
    for (model, file, part) in [
        (tiny(), file.as_str(), "was made with the model models/demo"),
        ("models/demo", "models/demo/model.safetensors", "is no prompt cache"),
        ("models/demo", "no-such-file", "no-such-file"),
    ] {
        let output = zmlx(&["generate", model, "--prompt-tokens", "1", "--prompt-cache", file]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}

#[test]
fn packed_keys_and_values_change_the_answer_and_bad_ones_are_refused() {
    let prompt = ["--prompt-tokens", "1,5,9,33,72,100,7"];
    let packed = |bits| {
        [&prompt[..], &["--kv-bits", bits, "--kv-group-size", "32", "--quantized-kv-start", "0"]]
            .concat()
    };
    assert_eq!(tokens(&packed("8")).len(), 8);
    assert_ne!(tokens(&packed("2")), tokens(&prompt));
    let validated = zmlx(&[&["validate", tiny(), "-n", "8"], &packed("4")[..]].concat());
    assert_eq!(validated.status.code(), Some(0), "{}", stderr(&validated));
    for (arguments, part) in [
        (&["--kv-bits", "5"][..], "kv_bits is 5"),
        (&["--kv-bits", "8", "--kv-group-size", "48"], "kv_group_size is 48"),
        (&["--kv-bits", "8", "--quantized-kv-start=-1"], "-1"),
        (&["--kv-group-size", "64"], "--kv-bits"),
    ] {
        let output = zmlx(&[&["generate", tiny()], &prompt[..], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(part), "{arguments:?}: {}", stderr(&output));
    }
}

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use super::{assert_has_keys, command, demo, keys, lines, stderr, stdout, summary, tiny, zmlx};

/// `generate` on the random checkpoint.
fn generate(more: &[&str]) -> Vec<String> {
    let mut arguments = vec!["generate", tiny(), "--prompt-tokens", "1,5,9"];
    if !more.contains(&"-n") {
        arguments.extend(["--max-tokens", "12"]);
    }
    arguments.extend(more);
    arguments.into_iter().map(str::to_owned).collect()
}

fn run(arguments: &[String]) -> std::process::Output {
    zmlx(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn generate_json_has_the_fields_of_the_contract() {
    let output = run(&generate(&["--ignore-eos", "--json"]));
    let summary = summary(&output);
    assert_has_keys(
        &summary,
        &[
            "token_ids",
            "text",
            "prompt_tokens",
            "prompt_tok_per_s",
            "generated_tokens",
            "decode_tok_per_s",
            "ttft_ms",
            "peak_memory_bytes",
            "patched_modules",
        ],
    );
    assert_eq!(summary["prompt_tokens"], 3);
    assert_eq!(summary["generated_tokens"], 12);
    assert_eq!(summary["text"], Value::Null, "there is no tokenizer");
    assert!(summary["peak_memory_bytes"].as_u64().unwrap() > 0);

    let lines = lines(&output);
    assert_eq!(lines[0]["prompt_token_ids"], json!([1, 5, 9]));
    let tokens: Vec<&Value> = lines.iter().filter(|line| line["type"] == "token").collect();
    assert_eq!(tokens.len(), 12);
    for (index, token) in tokens.iter().enumerate() {
        assert_eq!(token["index"], index);
        assert_eq!(token["id"], summary["token_ids"][index]);
    }
}

#[test]
fn generate_without_json_prints_the_answer_alone() {
    let output = run(&generate(&["--ignore-eos"]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let ids: Vec<u32> = text.trim_end().split(',').map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids.len(), 12);
    assert!(stderr(&output).contains("tok/s"));
}

#[test]
fn generate_same_seed_same_tokens_other_seed_others() {
    let ids = |seed: &str| {
        let flags = ["--ignore-eos", "--json", "--temp", "1.5", "--seed", seed];
        summary(&run(&generate(&flags)))["token_ids"].clone()
    };
    assert_eq!(ids("3"), ids("3"));
    assert_ne!(ids("3"), ids("4"));
}

#[test]
fn generate_patched_and_unpatched_agree() {
    let of = |patch: &str| summary(&run(&generate(&["--ignore-eos", "--json", "--patch", patch])));
    let (auto, off) = (of("auto"), of("off"));
    assert_eq!(auto["token_ids"], off["token_ids"]);
    assert_eq!(off["patched_modules"], 0);
    if cfg!(feature = "custom-primitive") {
        assert_eq!(auto["patched_modules"], 2);
        assert_eq!(of("moe_mlp")["token_ids"], off["token_ids"]);
    }
}

#[test]
fn generate_one_token_has_no_decode_speed() {
    let output = zmlx(&["generate", tiny(), "--prompt-tokens", "1", "--max-tokens", "1", "--json"]);
    assert_eq!(summary(&output)["decode_tok_per_s"], Value::Null);
}

/// The text of every token line, and the summary.
fn streamed(arguments: &[&str]) -> (Vec<String>, Value) {
    let output = zmlx(arguments);
    let tokens = lines(&output).into_iter().filter(|line| line["type"] == "token");
    let texts = tokens.map(|line| line["text"].as_str().unwrap().to_owned()).collect();
    (texts, summary(&output))
}

#[test]
fn generate_text_streams_what_the_summary_says() {
    let question = ["generate", "--prompt", "What is a shell? \u{2603}", "--max-tokens", "24"];
    let (texts, summary) = streamed(&[&question[..], &["--json"]].concat());
    let text = summary["text"].as_str().unwrap();
    assert_eq!(texts.concat(), text);
    assert!(texts.iter().filter(|text| !text.is_empty()).count() > 12, "word by word: {texts:?}");
    assert_eq!(stdout(&zmlx(&question)), format!("{text}\n"));
}

#[test]
fn generate_stops_before_a_stop_string_that_spans_tokens() {
    let question = ["generate", "--prompt", "What is a shell?", "--max-tokens", "24"];
    let (texts, free) = streamed(&[&question[..], &["--json"]].concat());
    let whole = free["text"].as_str().unwrap();
    // the last character of one token and the first of the next, somewhere in the middle
    let (end, start) = (texts[9].chars().next_back().unwrap(), texts[10].chars().next().unwrap());
    let stop = format!("{end}{start}");
    let expected = &whole[..whole.find(&stop).unwrap()];
    let flags = ["--stop", "not there", "--stop", &stop];
    let (texts, summary) = streamed(&[&question[..], &flags[..], &["--json"]].concat());
    assert_eq!(summary["text"], expected);
    assert_eq!(summary["finish_reason"], "stop");
    assert!(summary["generated_tokens"].as_u64() <= Some(11), "{summary}");
    assert_eq!(texts.concat(), expected, "nothing of it was shown");
    assert_eq!(stdout(&zmlx(&[&question[..], &flags].concat())), format!("{expected}\n"));
}

#[test]
fn generate_shows_what_only_began_like_a_stop_string() {
    let question = ["generate", "--prompt", "What is a shell?", "--max-tokens", "8"];
    let free = summary(&zmlx(&[&question[..], &["--json"]].concat()));
    let text = free["text"].as_str().unwrap();
    let begins = format!("{}\u{2603}", text.chars().next_back().unwrap());
    let output = zmlx(&[&question[..], &["--json", "--stop", &begins]].concat());
    assert_eq!(summary(&output)["text"], text);
    assert_eq!(summary(&output)["finish_reason"], free["finish_reason"]);
    let shown: Vec<Value> = lines(&output);
    let held = shown.iter().find(|line| line["type"] == "text").unwrap();
    let texts = shown.iter().filter(|line| line["type"] == "token");
    let texts: String = texts.map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(texts + held["text"].as_str().unwrap(), text);
    let plain = zmlx(&[&question[..], &["--stop", &begins]].concat());
    assert_eq!(stdout(&plain), format!("{text}\n"));
}

#[test]
fn generate_penalties_change_what_repeats() {
    let ids = |flags: &[&str]| {
        let output = run(&generate(&[&["--ignore-eos", "--json", "-n", "40"], flags].concat()));
        summary(&output)["token_ids"].as_array().unwrap().clone()
    };
    let repeats = |ids: &[Value]| (1..ids.len()).any(|i| ids[..i].contains(&ids[i]));
    let free = ids(&[]);
    assert!(repeats(&free), "{free:?}");
    assert_ne!(ids(&["--repetition-penalty", "3"]), free);
    for name in ["presence", "frequency"] {
        let (penalty, size) = (format!("--{name}-penalty"), format!("--{name}-context-size"));
        assert!(!repeats(&ids(&[&penalty, "1000", &size, "0"])), "{name}");
        assert_ne!(ids(&[&penalty, "1000", &size, "1"]), ids(&[&penalty, "1000", &size, "0"]));
        assert_eq!(ids(&[&penalty, "0"]), free, "{name}");
    }
}

#[test]
fn generate_streams_each_token_before_the_next_is_there() {
    let mut child = command(&["generate", tiny(), "--prompt-tokens", "1,5,9", "--json"])
        .args(["--max-tokens", "100000", "--ignore-eos"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for kind in ["begin", "token", "token", "token"] {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["type"], kind);
    }
    // far from its end, or the lines were held back
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn generate_reads_the_prompt_from_a_file_or_stdin() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "What is a shell?").unwrap();
    let line = folder.path().join("line.txt");
    std::fs::write(&line, "What is a shell?\n").unwrap();
    let of = |source: &[&str], stdin: &Path| {
        let mut command = command(&[&["generate"], source, &["-n", "4", "--json"]].concat());
        command.stdin(std::fs::File::open(stdin).unwrap());
        let output = command.output().unwrap();
        (lines(&output)[0]["prompt_token_ids"].clone(), summary(&output)["token_ids"].clone())
    };
    let null = Path::new("/dev/null");
    let expected = of(&["--prompt", "What is a shell?"], null);
    assert_eq!(of(&["-p", "What is a shell?"], &line), expected, "what is said wins");
    assert_eq!(of(&["--prompt-file", file.to_str().unwrap()], null), expected);
    assert_eq!(of(&["-f", "-"], &file), expected);
    assert_eq!(of(&[], &file), expected);
    assert_eq!(of(&[], &line), expected, "less the line end");
    assert_eq!(of(&[&demo()], &file), expected);
    let default = of(&["-p", "What does the command grep do?"], null);
    assert_eq!(of(&[], null), default);
    assert_eq!(of(&[&demo()], null), default);
}

#[test]
fn generate_waits_for_a_pipe_that_is_written_to_slowly() {
    let mut child = command(&["generate", "-n", "1", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"What is ").unwrap();
    std::thread::sleep(Duration::from_millis(3500));
    stdin.write_all(b"a shell?").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let whole = zmlx(&["generate", "-n", "1", "--json", "-p", "What is a shell?"]);
    assert_eq!(lines(&output)[0]["prompt_token_ids"], lines(&whole)[0]["prompt_token_ids"]);
}

#[test]
fn generate_system_message_reaches_the_model() {
    let of = |more: &[&str]| {
        let output = zmlx(&[&["generate", "-p", "Why?", "-n", "1", "--json"], more].concat());
        let count = |line: &Value| line["prompt_token_ids"].as_array().unwrap().len();
        count(&lines(&output)[0])
    };
    assert!(of(&["--system", "You are a shell."]) > of(&[]) + 4);
}

#[test]
fn generate_into_a_closed_pipe_ends_quietly() {
    let mut child = command(&["generate", tiny(), "--prompt-tokens", "1,5,9", "--json"])
        .args(["--max-tokens", "512", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn validate_json_has_the_fields_of_the_contract() {
    let flags = ["--max-tokens", "8", "--runs", "2", "--json"];
    let summary = summary(&zmlx(&[&["validate", tiny()], &flags[..]].concat()));
    assert_has_keys(
        &summary,
        &[
            "identical",
            "tokens_compared",
            "first_divergence",
            "repeatability",
            "baseline_decode_tok_per_s",
            "patched_decode_tok_per_s",
            "speedup",
            "patched_modules",
            "fallbacks",
        ],
    );
    assert_eq!(summary["identical"], true);
    assert_eq!(summary["tokens_compared"], 3 * 8 * 2, "three prompts, two runs");
    assert_eq!(summary["first_divergence"], Value::Null);
    if cfg!(feature = "custom-primitive") {
        assert_eq!(summary["patched_modules"], 2);
        assert_eq!(summary["fallbacks"], json!([]));
    }
}

#[test]
fn validate_of_the_demo_model_ends_with_identical_yes() {
    let output = zmlx(&["validate", "--max-tokens", "8"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).ends_with("identical: yes\n"), "{}", stdout(&output));
    assert!(stdout(&output).contains("24 tokens: 3 prompts"), "{}", stdout(&output));
}

#[test]
fn validate_takes_several_prompts() {
    let flags = ["--prompt-tokens", "1", "--prompt-tokens", "2,3", "--max-tokens", "4", "--json"];
    let summary = summary(&zmlx(&[&["validate", tiny()], &flags[..]].concat()));
    assert_eq!(summary["tokens_compared"], 8);
}

#[test]
fn validate_without_a_prompt_stays_within_a_small_vocabulary() {
    let small = crate::checkpoints::Tiny::new();
    let path = small.path().to_str().unwrap();
    let output = zmlx(&["validate", path, "--max-tokens", "2", "--json"]);
    let summary = summary(&output);
    assert_eq!(summary["prompts"], 3);
    assert_eq!(summary["tokens_compared"], 6);
}

#[test]
fn validate_require_fused_answers_no_with_reasons_when_a_module_is_not() {
    // The experts of a dense checkpoint cannot take a primitive for quantised weights.
    let dense = crate::checkpoints::Tiny::dense();
    let path = dense.path().to_str().unwrap();
    let flags = "--prompt-tokens 1,5,9 --max-tokens 4 --patterns moe_mlp --json";
    let flags: Vec<&str> = flags.split(' ').collect();
    let free = summary(&zmlx(&[&["validate", path], &flags[..]].concat()));
    assert_eq!(free["patched_modules"], 0);
    let fallbacks = free["fallbacks"].as_array().unwrap();
    assert!(!fallbacks.is_empty());
    assert!(fallbacks.iter().all(|f| !f["reason"].as_str().unwrap().is_empty()));

    let output = zmlx(&[&["validate", path, "--require-fused"], &flags[..]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let last = lines(&output).pop().unwrap();
    assert_eq!(last["type"], "summary");
    assert_eq!(last["fallbacks"], free["fallbacks"]);
}

#[test]
fn validate_against_mlx_lm_without_it_says_what_to_install() {
    let mut command = command(&["validate", tiny(), "--reference", "mlx-lm"]);
    let output = command.env("ZMLX_PYTHON", "/no/such/python").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("ZMLX_PYTHON"), "{}", stderr(&output));
}

#[test]
fn inspect_shows_every_module_with_its_outcome() {
    let summary = summary(&zmlx(&["inspect", tiny(), "--json"]));
    assert_eq!(summary["model_type"], "qwen3_moe");
    assert_eq!(summary["architecture"]["num_experts"], 16);
    assert_eq!(summary["quantization"], json!({"mode": "affine", "bits": 4, "group_size": 64}));
    let modules = summary["modules"].as_array().unwrap();
    assert!(!modules.is_empty());
    for module in modules {
        assert_eq!(module["fused"] == true, module["reason"].is_null(), "{module}");
    }
    let folded = stdout(&zmlx(&["inspect", &demo()]));
    assert!(folded.contains("qwen3_moe") && folded.contains("  model.layers.0-7.mlp "), "{folded}");
    let all = stdout(&zmlx(&["inspect", &demo(), "--all"]));
    assert!(
        all.contains("  model.layers.0.mlp ") && all.contains("  model.layers.7.mlp "),
        "{all}"
    );
    assert!(folded.lines().count() * 3 < all.lines().count(), "{folded}");
}

#[test]
fn inspect_of_no_patterns_plans_nothing() {
    let summary = summary(&zmlx(&["inspect", tiny(), "--patch", "off", "--json"]));
    assert_eq!(summary["modules"], json!([]));
    assert_eq!(summary["patched_modules"], 0);
}

#[test]
fn excluded_modules_and_other_layers_stay_on_stock_with_the_reason() {
    let flags = ["--exclude", "*.mlp", "--layers", "1", "--json"];
    let output = zmlx(&[&["inspect", tiny()], &flags[..]].concat());
    let summary = summary(&output);
    let reason = |module: &str| {
        let rows = summary["modules"].as_array().unwrap();
        let row = rows.iter().find(|row| row["module"] == module).unwrap();
        assert_eq!(row["left_out"], row["fused"] == false, "{row}");
        row["reason"].clone()
    };
    assert_eq!(reason("model.layers.1.mlp"), "excluded by `*.mlp`");
    assert_eq!(reason("model.layers.0.self_attn.q_proj"), "not in the chosen layers");
    if cfg!(feature = "custom-primitive") {
        assert_eq!(reason("model.layers.1.self_attn.q_proj"), Value::Null);
    }
    let mistaken = zmlx(&["inspect", tiny(), "--exclude", "nothing*", "--layers", "0-1,99"]);
    for part in ["nothing*: no module matches", "99-99: the model has no such layer"] {
        assert!(stderr(&mistaken).contains(part), "{}", stderr(&mistaken));
    }
    assert!(!stderr(&mistaken).contains("0-1"), "{}", stderr(&mistaken));
}

#[test]
fn validate_require_fused_asks_nothing_of_modules_left_out() {
    let flags = ["--layers", "1", "--require-fused", "--max-tokens", "4", "--json"];
    let output = zmlx(&[&["validate", tiny()], &flags[..]].concat());
    if cfg!(feature = "custom-primitive") {
        let summary = summary(&output);
        assert_eq!(summary["patched_modules"], 1);
        let fallbacks = summary["fallbacks"].as_array().unwrap();
        assert!(!fallbacks.is_empty() && fallbacks.iter().all(|f| f["left_out"] == true));
    } else {
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    }
}

#[test]
fn doctor_says_what_is_fused_and_why_not() {
    let summary = summary(&zmlx(&["doctor", "--json"]));
    assert_has_keys(
        &summary,
        &["version", "git_hash", "pin", "patches", "mode", "backends", "devices", "cpu_isa"],
    );
    assert_eq!(summary["mlx_version"], summary["compiled_mlx_version"]);
    assert!(summary["mlx_problem"].is_null(), "{summary}");
    let stock = summary["stock"].as_str().unwrap();
    let version = summary["mlx_version"].as_str().unwrap();
    assert_eq!(stock, format!("MLX {version} ({})", summary["mode"].as_str().unwrap()));
    if summary["mode"] == "source" {
        assert_eq!(summary["mlx_version"], summary["pinned_mlx_version"]);
    }
    let primitives = summary["primitives"].as_array().unwrap();
    assert!(primitives.iter().any(|p| p["primitive"] == "gather_qmm_swiglu"));
    for primitive in primitives {
        assert_eq!(primitive["fused"] == true, primitive["reason"].is_null(), "{primitive}");
    }
    assert!(stdout(&zmlx(&["doctor"])).contains("gather_qmm_swiglu"));
}

#[test]
fn synth_reports_what_it_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let path = path.to_str().unwrap();
    for (flags, name) in [(&["--mode", "mxfp4"][..], "mxfp4"), (&["--bits", "8"], "affine")] {
        let path = format!("{path}-{name}");
        let base = ["synth", "--like", "qwen3-moe-tiny", "--layers", "1", "--out", &path, "--json"];
        let summary = summary(&zmlx(&[&base[..], flags].concat()));
        assert_eq!(summary["num_layers"], 1);
        assert_eq!(summary["num_files"], 1);
        let config = std::fs::read_to_string(format!("{path}/config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["quantization"]["mode"], name);
        assert!(keys(&config).contains(&"num_experts"));
    }
}

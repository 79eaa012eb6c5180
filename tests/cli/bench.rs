use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use super::{command, lines, stderr, stdout, summary, tiny, zmlx};

/// `bench` into a new file of a folder.
fn bench(folder: &Path, name: &str, more: &[&str]) -> (Output, String) {
    let out = folder.join(name).to_str().unwrap().to_owned();
    let fixed = ["bench", tiny(), "--cooldown", "0", "--out", &out];
    (zmlx(&[&fixed[..], more].concat()), out)
}

fn read(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

const REDUCED: [&str; 6] = ["--prompts", "code,chinese", "--lengths", "6,9", "--runs", "2"];

#[test]
fn bench_writes_a_capsule_that_report_reads_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let flags = [&REDUCED[..], &["--json", "--routing-histogram", "--logits", "4"]].concat();
    let (output, path) = bench(folder.path(), "a.json", &flags);
    let found = summary(&output);
    assert_eq!((&found["identical"], &found["interrupted"]), (&json!(true), &json!(false)));
    assert_eq!(found["samples"], 2 * 4 * 2, "variants, cases, runs");
    let events = lines(&output);
    assert_eq!(events.iter().filter(|line| line["type"] == "sample").count(), 16);
    let tokens: Vec<&Value> =
        found["variants"].as_array().unwrap().iter().map(|v| &v["tokens"]).collect();
    assert!(tokens[0].is_string() && tokens[0] == tokens[1], "{tokens:?}");

    let capsule = read(&path);
    assert_eq!((&capsule["schema"], &capsule["version"]), (&json!("zmlx.capsule"), &json!(1)));
    assert_eq!(capsule["cases"][0]["name"], "code 6");
    assert_eq!(capsule["logits"].as_array().unwrap().len(), 4);
    assert_eq!(capsule["logits"][0]["max_abs"], 0.0, "exact");
    assert_eq!(capsule["routing"].as_array().unwrap().len(), 4 * 2, "cases by layers");
    assert!(capsule["bandwidth"][0]["read_bytes_per_s"].as_f64().unwrap() > 1e8);
    assert!(!capsule.to_string().contains(folder.path().to_str().unwrap()), "no path of here");

    let text = stdout(&zmlx(&["report", &path]));
    assert!(text.contains("Decode tok/s: median") && text.contains("chinese 9"), "{text}");
    let marks = stdout(&zmlx(&["report", &path, "--format", "markdown"]));
    assert!(marks.contains("| code 6 |"), "{marks}");
    let page = folder.path().join("a.html");
    let written = zmlx(&["report", &path, "--html", page.to_str().unwrap()]);
    assert_eq!(written.status.code(), Some(0), "{}", stderr(&written));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.matches("<figure>").count() >= 6 && !page.contains("NaN"), "{}", page.len());

    let matrix = folder.path().join("matrix.jsonl");
    for expected in [8, 8] {
        zmlx(&["report", &path, "--append", matrix.to_str().unwrap()]);
        assert_eq!(std::fs::read_to_string(&matrix).unwrap().lines().count(), expected);
    }
}

#[test]
fn bench_sweeps_lengths_depths_and_batches() {
    let folder = tempfile::tempdir().unwrap();
    let flags =
        ["--pp", "5", "--tg", "4", "--depth", "0,3", "--batch", "1,2", "--runs", "1", "--json"];
    let (output, path) = bench(folder.path(), "a.json", &flags);
    assert_eq!(summary(&output)["identical"], true);
    let capsule = read(&path);
    let names: Vec<&str> =
        capsule["cases"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp5", "tg4", "tg4 x2", "pp5 @ 3", "tg4 @ 3", "tg4 @ 3 x2"]);
    let sample = capsule["samples"].as_array().unwrap().iter().find(|s| s["case"] == 5).unwrap();
    assert_eq!(sample["tokens"], 2 * 5, "and the token before the clock");
    assert!(sample["metrics"]["prompt_tok_per_s"].is_null());
}

#[test]
fn bench_with_a_process_for_each_variant_says_the_same_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let (output, path) = bench(folder.path(), "here.json", &[&REDUCED[..], &["--json"]].concat());
    let here = summary(&output)["variants"][1]["tokens"].clone();
    let flags = [&REDUCED[..], &["--json", "--isolate"]].concat();
    let (output, apart) = bench(folder.path(), "apart.json", &flags);
    assert_eq!(summary(&output)["variants"][1]["tokens"], here);
    let patterns = |path: &str| read(path)["variants"][1]["patterns"].clone();
    assert_eq!(patterns(&apart), patterns(&path));
    assert_eq!(read(&apart)["protocol"]["isolate"], true);
}

#[test]
fn bench_answers_no_where_a_variant_says_another_token() {
    let folder = tempfile::tempdir().unwrap();
    let two_bits = "off,kv-bits=2,quantized-kv-start=0,kv-group-size=32";
    let variant = format!("packed={two_bits}");
    let flags = ["--variant", "stock=off", "--variant", &variant, "--tg", "48", "--runs", "1"];
    let (output, path) = bench(folder.path(), "a.json", &[&flags[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let last = lines(&output).pop().unwrap();
    assert_eq!(last["identical"], false);
    let found = &last["variants"][1]["first_divergence"];
    let index = found["index"].as_u64().unwrap() as usize;
    assert_ne!(found["expected"], found["got"]);
    let capsule = read(&path);
    let outputs = capsule["outputs"].as_array().unwrap();
    let token = |variant: usize| {
        let output = outputs.iter().find(|o| o["variant"] == variant).unwrap();
        output["rows"][0][index].clone()
    };
    assert_eq!((token(0), token(1)), (found["expected"].clone(), found["got"].clone()));
    let text = stdout(&zmlx(&["report", &path]));
    assert!(text.contains("not identical") && text.contains(&format!("token {index}:")), "{text}");

    // who says that it is no surprise is told all the same
    let variant = format!("packed={two_bits},lossy");
    let flags = ["--variant", "stock=off", "--variant", &variant, "--tg", "48", "--runs", "1"];
    let (output, _) = bench(folder.path(), "b.json", &flags);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("not identical (expected)"), "{}", stdout(&output));
}

#[test]
fn bench_stopped_keeps_what_it_measured_and_goes_on() {
    stopped(&[]);
}

#[test]
fn bench_stopped_with_a_process_for_each_variant_keeps_it_too() {
    stopped(&["--isolate"]);
}

fn stopped(more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json").to_str().unwrap().to_owned();
    // a token takes 20 ms at least, so the end is far off
    let flags =
        ["--variant", "off", "--variant", "slow=auto,delay-us=20000", "--tg", "8", "--runs", "6"];
    let mut child = command(&["bench", tiny(), "--cooldown", "0", "--json", "--out", &path])
        .args(flags)
        .args(more)
        .process_group(0)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    while !lines.next().unwrap().unwrap().contains("\"sample\"") {}
    // as a terminal does it: to whoever is in the foreground
    let group = format!("-{}", child.id());
    let kill = ["-INT", "--", &group];
    assert!(std::process::Command::new("kill").args(kill).status().unwrap().success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("--resume"), "{}", stderr(&output));
    assert!(rest.last().unwrap().contains("\"interrupted\":true"), "{rest:?}");
    let before = read(&path);
    let kept = before["samples"].as_array().unwrap().len();
    assert!((1..12).contains(&kept), "{kept}");

    let output = zmlx(&["bench", tiny(), "--resume", &path, "--json"]);
    assert_eq!(summary(&output)["samples"], 12);
    let after = read(&path);
    assert_eq!(after["interrupted"], false);
    assert_eq!(
        &after["samples"].as_array().unwrap()[..kept],
        &before["samples"].as_array().unwrap()[..]
    );

    let mut other = after.clone();
    other["zmlx"]["commit"] = json!("another");
    std::fs::write(&path, other.to_string()).unwrap();
    let output = zmlx(&["bench", tiny(), "--resume", &path]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("another zmlx"), "{}", stderr(&output));
}

#[test]
fn report_flags_a_slowed_variant_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let work = ["--tg", "24", "--runs", "10", "--variant", "control=auto"];
    let run = |name: &str, variant: &str| {
        let (output, path) =
            bench(folder.path(), name, &[&work[..], &["--variant", variant]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        path
    };
    let (old, same) = (run("old.json", "x=auto"), run("same.json", "x=auto"));
    let slow = run("slow.json", "x=auto,delay-us=2000");
    let compare = |new: &str| {
        let flags = ["--compare", "--control", "control", "--threshold", "25", "--json"];
        let output = zmlx(&[&["report", &old, new], &flags[..]].concat());
        let last = lines(&output).pop().unwrap();
        (output.status.code(), last["comparison"].clone())
    };
    let (code, found) = compare(&slow);
    assert_eq!((code, &found["regression"]), (Some(1), &json!(true)), "{found}");
    let (code, found) = compare(&same);
    assert_eq!((code, &found["regression"]), (Some(0), &json!(false)), "{found}");
}

#[test]
fn bench_measures_what_smart_chooses_and_report_judges_it() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--variant", "stock=off", "--variant", "chosen=smart", "--tg", "8", "--runs", "8"];
    let (output, path) = bench(folder.path(), "a.json", &flags);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("chosen: "), "{}", stderr(&output));
    let capsule = read(&path);
    let chosen = &capsule["variants"][1];
    let names: Vec<&str> =
        chosen["patterns"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    let settings = if names.is_empty() { "off".to_owned() } else { names.join(",") };
    assert_eq!(chosen["settings"], settings, "what makes the same variant again");
    let note = capsule["notes"].as_array().unwrap().last().unwrap().as_str().unwrap();
    assert!(note.starts_with("chosen was chosen by measurement: "), "{note}");
    // half the speed is no noise
    let judged = zmlx(&["report", "--compare", &path, "--threshold", "100", "--json"]);
    let found = summary(&judged)["comparison"].clone();
    assert_eq!(
        (&found["regression"], &found["rows"][0]["variant"]),
        (&json!(false), &json!("chosen"))
    );
}

#[test]
fn bench_runs_other_programs_as_variants() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("llama-bench");
    let script = "#!/bin/sh\necho '{\"build_commit\":\"b1\",\"model_type\":\"moe\",\"n_gen\":0,\"avg_ts\":50.5}'\n\
                  echo '{\"n_gen\":4,\"avg_ts\":7.25}'\n";
    std::fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let program = program.to_str().unwrap();
    let flags = ["--prompts", "code", "--lengths", "4", "--runs", "2", "--json"];
    let more = ["--llama-bench", program, "--gguf", "none.gguf"];
    let (output, path) = bench(folder.path(), "a.json", &[&flags[..], &more].concat());
    let variants = summary(&output)["variants"].clone();
    assert_eq!(variants[2]["name"], "llama.cpp");
    assert_eq!(
        (&variants[2]["decode_tok_per_s"], &variants[2]["identical"]),
        (&json!(7.25), &Value::Null)
    );
    assert_eq!(read(&path)["variants"][2]["engine_version"], "llama.cpp b1, moe");

    let mut command =
        command(&["bench", tiny(), "--variant", "auto", "--variant", "mlx-lm", "--tg", "2"]);
    let output = command.env("ZMLX_PYTHON", "/no/such/python").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/no/such/python"), "{}", stderr(&output));
}

#[test]
fn bench_and_report_refuse_what_they_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there.json");
    std::fs::write(&there, "{}").unwrap();
    let there = there.to_str().unwrap();
    for (arguments, reason) in [
        (&["bench", tiny(), "--prompts", "poem"][..], "there is no prompt `poem`"),
        (&["bench", tiny(), "--variant", "a=quick"], "`quick`: is no setting"),
        (
            &["bench", tiny(), "--variant", "off", "--variant", "off", "--tg", "2"],
            "two are called off",
        ),
        (&["bench", tiny(), "--depth", "3"], "--depth and --batch are for"),
        (&["bench", tiny(), "--tg", "2", "--out", there], "is there already"),
        (&["bench", tiny(), "--variant", "llama-bench", "--tg", "2"], "needs --llama-bench"),
        (&["bench", tiny(), "--resume", there], "is no capsule"),
        (&["report", there], "is no capsule"),
        (&["report", "nowhere.json"], "nowhere.json"),
        (&["report", there, "--control", "x"], "--compare"),
        (&["bench", tiny(), "--variant", "a=smart,moe_mlp"], "smart chooses the patterns itself"),
        (
            &["bench", tiny(), "--variant", "a=mlx-lm,fast"],
            "`fast`: is nothing that mlx-lm is told",
        ),
    ] {
        let output = zmlx(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stdout(&output));
        assert!(stderr(&output).contains(reason), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn bench_is_steady_enough_for_its_own_verdicts() {
    // the same variant twice, whatever else the machine does meanwhile: noise passes for a change once in fifty times
    let folder = tempfile::tempdir().unwrap();
    let flags =
        ["--variant", "a=auto", "--variant", "b=auto", "--tg", "16", "--runs", "12", "--json"];
    let mut slower = 0;
    for trial in 0..3 {
        let (output, path) = bench(folder.path(), &format!("{trial}.json"), &flags);
        let _ = summary(&output);
        let text = stdout(&zmlx(&["report", &path]));
        let row = text.lines().find(|line| line.starts_with("b  ")).unwrap();
        slower += usize::from(row.ends_with("slower"));
    }
    assert!(slower <= 1, "{slower} of 3");
}

#[test]
fn validate_holds_a_model_to_a_capsule_made_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let (output, path) = bench(folder.path(), "a.json", &REDUCED);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let validate = |path: &str| zmlx(&["validate", tiny(), "--reference", path, "--json"]);
    let found = summary(&validate(&path));
    assert_eq!((&found["identical"], &found["prompts"]), (&json!(true), &json!(2)));
    assert_eq!(found["tokens_compared"], 2 * 9, "the longer ones of each prompt");
    assert!(found["reference"].as_str().unwrap().starts_with("stock of 20"), "{found}");
    let hashes = &found["tokens_sha256"];
    assert_eq!(hashes["reference"], hashes["patched"]);

    let mut other = read(&path);
    for output in other["outputs"].as_array_mut().unwrap() {
        output["rows"][0][5] = json!(0);
    }
    std::fs::write(&path, other.to_string()).unwrap();
    let output = validate(&path);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(lines(&output).pop().unwrap()["first_divergence"]["index"], 5);
    other["model"]["fingerprint"] = json!("00".repeat(32));
    std::fs::write(&path, other.to_string()).unwrap();
    let output = validate(&path);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("another checkpoint"), "{}", stderr(&output));
    let output = zmlx(&["validate", tiny(), "--reference", "nowhere.json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("unpatched, mlx-lm or the file"), "{}", stderr(&output));
}

#[test]
fn validate_tells_how_far_logits_are() {
    let flags = ["--max-tokens", "6", "--prompt-tokens", "1,5,9", "--logits", "--json"];
    let logits = summary(&zmlx(&[&["validate", tiny()], &flags[..]].concat()))["logits"].clone();
    assert_eq!((&logits["positions"], &logits["max_abs"]), (&json!(6), &json!(0.0)));
    assert_eq!(logits["top_k_agreement"], 1.0);
    let text = stdout(&zmlx(&["validate", tiny(), "--max-tokens", "6", "--logits"]));
    assert!(text.contains("logits     largest distance") && text.contains("tokens     "), "{text}");
}

#[test]
fn generate_with_smart_patching_says_why_and_remembers() {
    let store = tempfile::tempdir().unwrap();
    let arguments =
        ["generate", tiny(), "--prompt-tokens", "1,5,9", "-n", "6", "--ignore-eos", "--json"];
    let ids = |output: &Output| summary(output)["token_ids"].clone();
    let smart = |more: &[&str]| {
        let mut command = command(&[&arguments[..], &["--patch", "smart"], more].concat());
        command.env("ZMLX_SMART_DIR", store.path()).output().unwrap()
    };
    let first = smart(&[]);
    assert_eq!(ids(&first), ids(&zmlx(&[&arguments[..], &["--patch", "off"]].concat())));
    let told = stderr(&first);
    assert!(told.contains("smart: ") && !told.contains("(remembered)"), "{told}");
    if cfg!(feature = "custom-primitive") {
        assert!(told.contains("smart takes ") || told.contains("smart leaves "), "{told}");
    }
    let again = smart(&[]);
    assert!(stderr(&again).contains("(remembered)"), "{}", stderr(&again));
    assert_eq!(ids(&again), ids(&first));
    assert!(!stderr(&smart(&["--remeasure"])).contains("(remembered)"));
    let output = zmlx(&["inspect", tiny(), "--patch", "smart"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("reads no weights"), "{}", stderr(&output));
}

use std::path::Path;

use serde_json::{Value, json};

use crate::stats::Random;
use crate::{Capsule, Error, matrix};

/// Two variants, the second twice as fast and of another opinion once; two prompts and lengths, six runs.
pub(crate) fn sample_capsule() -> Capsule {
    let mut random = Random::new(7);
    let mut samples = Vec::new();
    for case in 0..2 {
        for run in 0..6 {
            for variant in 0..2usize {
                let noise = 1.0 + 0.01 * random.unit();
                let speed = crate::rounded(noise * [50.0, 100.0][variant] * [1.0, 0.8][case]);
                samples.push(json!({
                    "variant": variant, "case": case, "run": run, "tokens": 8,
                    "metrics": {"decode_tok_per_s": speed, "prompt_tok_per_s": crate::rounded(4.0 * speed), "ttft_ms": crate::rounded(9.0 / noise),
                                "peak_memory_bytes": 1e8},
                    "tokens_sha256": "00".repeat(32),
                }));
            }
        }
    }
    let variant = |name: &str, settings: &str| json!({"name": name, "engine": "zmlx", "settings": settings, "lossy": false});
    let case = |name: &str, prompt: &str, length: usize| {
        json!({"name": name, "kind": "generate", "prompt": prompt, "prompt_tokens": 5, "generate_tokens": length,
               "prompt_sha256": "11".repeat(32)})
    };
    let capsule = json!({
        "schema": "zmlx.capsule", "version": 1, "created": "2026-11-20T12:00:00Z", "program": "bench",
        "zmlx": {"version": "0.1.0", "commit": "abc"},
        "mlx": {"version": "0.32.2", "mode": "source", "pin": "1f8e", "patches": [], "backends": ["cpu"]},
        "machine": {"cpu": "a processor", "cores": 2, "os": "Linux", "arch": "x86_64", "device": "cpu", "isa": "avx512",
                    "threads": 2, "hints": [{"when": "start", "load_average": 0.1}]},
        "model": {"name": "demo", "model_type": "qwen3_moe", "quantization": "affine 4b gs64", "num_parameters": 9000000,
                  "weights_bytes": 5000000, "decode_read_bytes": 2000000, "kv_bytes_per_token": 4096,
                  "fingerprint": "22".repeat(32)},
        "protocol": {"runs": 6, "warmup": 1, "cooldown_ms": 0, "order": "abba", "isolate": false},
        "variants": [variant("stock", "off"), variant("zmlx", "auto")],
        "cases": [case("english 16", "english", 16), case("code 64", "code", 64)],
        "samples": samples,
        "outputs": [{"variant": 0, "case": 0, "run": 0, "rows": [[1, 2, 3, 8]]}],
        "fidelity": [
            {"variant": 0, "case": 0, "tokens_compared": 40},
            {"variant": 1, "case": 0, "tokens_compared": 48},
            {"variant": 1, "case": 1, "tokens_compared": 48,
             "first_divergence": {"run": 2, "row": 0, "index": 3, "expected": 8, "got": 9}},
        ],
        "routing": [
            {"case": 0, "layer": 0, "tokens": 8, "counts": [8, 4, 2, 2], "weights": [4.0, 2.0, 1.0, 1.0], "entropy_bits": 1.75},
        ],
        "bandwidth": [{"copy_bytes_per_s": 4e10, "read_bytes_per_s": 3e10}],
        "interrupted": false,
    });
    serde_json::from_value(capsule).unwrap()
}

fn written(change: impl FnOnce(&mut Value)) -> crate::Result<Capsule> {
    let mut value = serde_json::to_value(sample_capsule()).unwrap();
    change(&mut value);
    Capsule::parse(value.to_string().as_bytes(), Path::new("x.json"))
}

#[test]
fn a_capsule_comes_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("capsule.json");
    let capsule = sample_capsule();
    capsule.write(&path).unwrap();
    assert!(Capsule::read(&path).unwrap() == capsule);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "no draft is left");
}

#[test]
fn what_a_capsule_cannot_say_is_refused_by_field() {
    let cases: [(&str, Value, &str); 12] = [
        ("/samples/0/variant", json!(7), "samples[0].variant: 7 of 2"),
        ("/samples/0/case", json!(7), "samples[0].case: 7 of 2"),
        ("/samples/1/variant", json!(0), "samples[1]: a second sample"),
        ("/samples/0/metrics", json!({}), "samples[0].metrics"),
        ("/samples/0/metrics", json!({"ttft_ms": -1.0}), "not negative"),
        ("/samples/0/metrics", json!({"speed": 1.0}), "unknown variant `speed`"),
        ("/samples/0/tokens_sha256", json!("no"), "64 hexadecimal"),
        ("/variants/1/name", json!("stock"), "a second \"stock\""),
        ("/cases", json!([]), "cases: expected at least one"),
        ("/created", json!("yesterday"), "created: expected a time"),
        ("/routing/0/weights", json!([1.0]), "routing[0].weights"),
        ("/machine/threads", json!("two"), "machine.threads"),
    ];
    for (pointer, value, reason) in cases {
        let error = written(|v| *v.pointer_mut(pointer).unwrap() = value).unwrap_err();
        assert!(matches!(error, Error::Field { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{pointer}: {error}");
    }
    let error = written(|v| v["surprise"] = json!(1)).unwrap_err();
    assert!(error.to_string().contains("unknown field `surprise`"), "{error}");
}

#[test]
fn other_files_and_versions_say_what_they_are() {
    for (bytes, reason) in [
        ("{", "EOF"),
        ("[1]", "schema"),
        (r#"{"schema": "other"}"#, "its schema is \"other\""),
        (
            r#"{"schema": "zmlx.capsule", "version": 9}"#,
            "version 9, this zmlx reads version 1; a newer",
        ),
        (r#"{"schema": "zmlx.capsule"}"#, "no version"),
    ] {
        let error = Capsule::parse(bytes.as_bytes(), Path::new("x.json")).unwrap_err();
        assert!(matches!(error, Error::NotACapsule { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn a_matrix_takes_a_capsule_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("matrix.jsonl");
    let capsule = sample_capsule();
    assert_eq!(matrix::append(&path, &capsule, "a.json").unwrap(), 4);
    assert_eq!(matrix::append(&path, &capsule, "a.json").unwrap(), 0);
    assert_eq!(matrix::append(&path, &capsule, "b.json").unwrap(), 4);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 8);
    let row: matrix::MatrixRow = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((row.variant.as_str(), row.case.as_str(), row.runs), ("stock", "english 16", 6));
    std::fs::write(&path, "{}\n").unwrap();
    let error = matrix::append(&path, &capsule, "c.json").unwrap_err();
    assert!(error.to_string().contains("line 1"), "{error}");
}

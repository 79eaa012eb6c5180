use mlx::Dtype;
use mlx::quantization::Quantization;
use serde_json::json;
use tempfile::TempDir;
use zmlx_lm::load;
use zmlx_lm::synth::Draft;

use super::*;

fn checkpoint(seed: u64) -> TempDir {
    let config = json!({
        "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 6,
        "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 64,
        "rms_norm_eps": 1e-6, "vocab_size": 96, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "max_position_embeddings": 1024, "norm_topk_prob": true, "eos_token_id": 1,
    });
    let folder = tempfile::tempdir().unwrap();
    let draft = Draft::new(config, Dtype::Bf16, seed).unwrap();
    draft.quantized(Quantization::affine(32, 4)).unwrap().write(folder.path()).unwrap();
    folder
}

fn options(store: Option<PathBuf>) -> SmartOptions {
    let software = Software { version: "1".to_owned(), commit: "c".to_owned() };
    let prompts = vec![vec![3, 14, 15, 9], vec![2, 7, 18]];
    let budget = Duration::from_millis(400);
    SmartOptions { store, budget, max_tokens: 8, ..SmartOptions::new(prompts, software) }
}

fn patched(folder: &TempDir, options: &SmartOptions) -> (SmartReport, usize) {
    let mut loaded = load(folder.path()).unwrap();
    let mut steps = 0;
    let report = smart_patch(&mut loaded, options, &mut |_| steps += 1).unwrap();
    (report, steps)
}

#[test]
fn every_candidate_has_a_reason_and_what_is_in_use_is_what_was_kept() {
    let folder = checkpoint(7);
    let (report, _) = patched(&folder, &options(None));
    let choice = &report.choice;
    let kept: Vec<&str> =
        choice.decisions.iter().filter(|d| d.kept).map(|d| d.pattern.as_str()).collect();
    assert_eq!(kept, choice.patterns);
    assert_eq!(report.patch.patterns, kept);
    assert!(!report.remembered && !choice.reason.is_empty());
    for decision in &choice.decisions {
        assert!(!decision.reason.is_empty(), "{decision:?}");
        let gain = decision.gain.as_ref().unwrap();
        assert!(gain.low <= gain.ratio && gain.ratio <= gain.high && gain.pairs >= 1, "{gain:?}");
        if decision.kept {
            assert!(gain.ratio > 1.0, "{decision:?}");
        }
    }
    assert_eq!(choice.gain.is_some(), !kept.is_empty());
    if let Some(gain) = &choice.gain {
        assert!(gain.ratio > 1.0, "never slower than stock: {gain:?}");
    }
}

#[test]
fn a_choice_is_remembered_for_the_same_model_and_versions_alone() {
    let (folder, store) = (checkpoint(7), tempfile::tempdir().unwrap());
    let options = options(Some(store.path().to_owned()));
    let (first, steps) = patched(&folder, &options);
    assert!(!first.remembered && steps > 0);
    let (again, steps) = patched(&folder, &options);
    assert!(again.remembered);
    assert_eq!((again.choice, steps), (first.choice, 0), "nothing is measured");
    assert_eq!(again.patch.patterns, first.patch.patterns);
    let measured =
        |folder: &TempDir, options: &SmartOptions| !patched(folder, options).0.remembered;
    assert!(measured(&folder, &SmartOptions { remeasure: true, ..options.clone() }));
    let newer = Software { commit: "d".to_owned(), ..options.zmlx.clone() };
    assert!(measured(&folder, &SmartOptions { zmlx: newer, ..options.clone() }));
    assert!(measured(&checkpoint(8), &options), "another model of the same shape");
    for file in std::fs::read_dir(store.path()).unwrap() {
        std::fs::write(file.unwrap().path(), "{").unwrap();
    }
    assert!(measured(&folder, &options), "what cannot be understood is measured anew");
}

#[test]
fn a_choice_that_takes_too_long_is_still_one_of_several_pairs() {
    let folder = checkpoint(7);
    let (report, _) = patched(&folder, &SmartOptions { budget: Duration::ZERO, ..options(None) });
    for gain in report.choice.decisions.iter().filter_map(|d| d.gain.as_ref()) {
        assert!(gain.pairs >= 2, "{gain:?}: of one pair nothing can be said");
    }
}

#[test]
fn a_pattern_that_changes_tokens_is_left_out() {
    let folder = checkpoint(7);
    let mut loaded = load(folder.path()).unwrap();
    let mut options = options(None);
    options.patch.precision = mlx::primitives::Precision::Fast;
    options.prompts = vec![vec![3, 14, 15, 9]];
    let report = smart_patch(&mut loaded, &options, &mut |_| {}).unwrap();
    // whatever fast precision does to this model, what is in use says what stock says
    let mut trial = Trial { loaded: &mut loaded, options: &options, sample_tokens: 0 };
    assert!(trial.is_identical(&report.patch.patterns).unwrap());
}

#[test]
fn nothing_to_measure_with_is_an_error_and_no_candidate_is_stock() {
    let folder = checkpoint(7);
    let mut loaded = load(folder.path()).unwrap();
    let none = SmartOptions { prompts: vec![Vec::new()], ..options(None) };
    assert!(smart_patch(&mut loaded, &none, &mut |_| {}).is_err());
    let mut off = options(None);
    off.patch.patterns = Patterns::Off;
    let report = smart_patch(&mut loaded, &off, &mut |_| {}).unwrap();
    assert!(report.choice.patterns.is_empty() && report.choice.reason.contains("stock"));
}

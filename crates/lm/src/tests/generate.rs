//! When generation stops, what it returns, and that seeds repeat.

use std::ops::ControlFlow;

use mlx::Dtype;

use super::fixture::{Fixture, PROMPT, VOCAB, q4};
use crate::error::Error;
use crate::generate::{FinishReason, GenerateOptions, Generation, generate};
use crate::models::LoadedModel;
use crate::sampler::Sampling;

fn loaded() -> LoadedModel {
    Fixture::dense(Dtype::Bf16).quantized(q4()).load()
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::default() }
}

fn run(loaded: &LoadedModel, options: &GenerateOptions) -> Generation {
    let mut go_on = |_| ControlFlow::Continue(());
    generate(loaded.model.as_ref(), PROMPT, options, &mut go_on).unwrap()
}

#[test]
fn length_is_kept_and_timed() {
    let loaded = loaded();
    let whole = run(&loaded, &options(24));
    assert_eq!(whole.token_ids.len(), 24);
    assert_eq!(whole.finish_reason, FinishReason::Length);
    assert_eq!(whole.prompt_tokens, PROMPT.len());
    assert!(whole.ttft_ms > 0.0 && whole.prompt_tok_per_s > 0.0);
    assert!(whole.decode_tok_per_s.is_some_and(|speed| speed > 0.0));
    assert!(whole.peak_memory_bytes > 0);
    let one = run(&loaded, &options(1));
    assert_eq!(one.token_ids, whole.token_ids[..1]);
    assert!(one.decode_tok_per_s.is_none());
    assert!(run(&loaded, &options(0)).token_ids.is_empty());
    // a fixture that says one thing over and over proves little
    let mut distinct = whole.token_ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 5, "{:?}", whole.token_ids);
}

#[test]
fn eos_ends_unless_ignored() {
    let loaded = loaded();
    let whole = run(&loaded, &options(24));
    let end = whole.token_ids[10];
    let at = whole.token_ids.iter().position(|t| *t == end).unwrap();
    let with_eos = GenerateOptions { eos_token_ids: vec![VOCAB + 5, end], ..options(24) };
    let short = run(&loaded, &with_eos);
    assert_eq!(short.finish_reason, FinishReason::Eos);
    assert_eq!(short.token_ids, whole.token_ids[..=at]);
    let ignoring = GenerateOptions { ignore_eos: true, ..with_eos };
    assert_eq!(run(&loaded, &ignoring).token_ids, whole.token_ids);
}

#[test]
fn callback_sees_each_token_and_may_stop() {
    let loaded = loaded();
    let mut seen = Vec::new();
    let stopped = generate(loaded.model.as_ref(), PROMPT, &options(24), &mut |token| {
        assert_eq!(token.index, seen.len());
        assert!(!token.is_eos);
        seen.push(token.id);
        if seen.len() == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(stopped.finish_reason, FinishReason::Cancelled);
    assert_eq!(stopped.token_ids, seen);
    assert_eq!(seen, run(&loaded, &options(24)).token_ids[..5]);
}

#[test]
fn prefill_step_changes_no_token() {
    let loaded = Fixture::dense(Dtype::F32).quantized(q4()).load();
    let whole = run(&loaded, &options(16)).token_ids;
    for prefill_step in [1, 3, PROMPT.len() - 1, 0] {
        let options = GenerateOptions { prefill_step, ..options(16) };
        assert_eq!(run(&loaded, &options).token_ids, whole, "{prefill_step}");
    }
}

#[test]
fn seed_repeats_and_matters() {
    let loaded = loaded();
    let sampled = |sampling| run(&loaded, &GenerateOptions { sampling, ..options(24) }).token_ids;
    let hot = Sampling { temperature: 1.0, seed: 1, ..Sampling::default() };
    assert_eq!(sampled(hot), sampled(hot));
    assert_ne!(sampled(hot), sampled(Sampling { seed: 2, ..hot }));
    for filtered in [
        Sampling { top_p: 0.8, ..hot },
        Sampling { min_p: 0.1, ..hot },
        Sampling { top_k: 5, ..hot },
        Sampling { top_p: 0.9, min_p: 0.05, top_k: 7, ..hot },
    ] {
        assert_eq!(sampled(filtered), sampled(filtered));
    }
}

#[test]
fn filters_that_leave_one_token_are_greedy() {
    let loaded = Fixture::dense(Dtype::F32).quantized(q4()).load();
    let sampled = |sampling| run(&loaded, &GenerateOptions { sampling, ..options(16) }).token_ids;
    let greedy = sampled(Sampling::default());
    let hot = Sampling { temperature: 1.0, seed: 4, ..Sampling::default() };
    assert_eq!(sampled(Sampling { top_k: 1, ..hot }), greedy);
    assert_eq!(sampled(Sampling { top_p: 1e-6, ..hot }), greedy);
    assert_eq!(sampled(Sampling { min_p: 1.0, ..hot }), greedy);
    assert_ne!(sampled(hot), greedy);
}

#[test]
fn prompt_empty_or_beyond_vocabulary_is_refused() {
    let loaded = loaded();
    for prompt in [&[][..], &[VOCAB], &[1, 2, u32::MAX, 3]] {
        let mut go_on = |_| ControlFlow::Continue(());
        let result = generate(loaded.model.as_ref(), prompt, &options(4), &mut go_on);
        assert!(matches!(result, Err(Error::Argument { .. })), "{prompt:?}");
    }
}

#[test]
fn sampling_out_of_range_is_refused() {
    let loaded = loaded();
    let ok = Sampling::default();
    for (name, sampling) in [
        ("temperature", Sampling { temperature: -1.0, ..ok }),
        ("temperature", Sampling { temperature: f32::NAN, ..ok }),
        ("temperature", Sampling { temperature: f32::INFINITY, ..ok }),
        ("top_p", Sampling { top_p: 1.5, ..ok }),
        ("min_p", Sampling { min_p: -0.1, ..ok }),
        ("top_k", Sampling { top_k: VOCAB, ..ok }),
    ] {
        let options = GenerateOptions { sampling, ..options(4) };
        let mut go_on = |_| ControlFlow::Continue(());
        let error = generate(loaded.model.as_ref(), PROMPT, &options, &mut go_on).unwrap_err();
        assert!(matches!(&error, Error::Argument { name: n, .. } if *n == name), "{error}");
    }
}

//! The decoder: what its iterator yields, what it leaves behind, and what changes the logits on the way.

use std::ops::ControlFlow;

use mlx::{Array, Dtype};

use super::fixture::{Fixture, PROMPT, VOCAB, q4};
use crate::decoder::{Decoder, Progress, PromptCache};
use crate::error::Error;
use crate::generate::{FinishReason, GenerateOptions, Generation, generate};
use crate::models::{LoadedModel, load};
use crate::patch::{PatchOptions, Patterns, patch};
use crate::processors::{Penalty, Processing};
use crate::sampler::Sampling;

fn loaded() -> LoadedModel {
    Fixture::dense(Dtype::F32).quantized(q4()).load()
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::default() }
}

fn whole(loaded: &LoadedModel, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    let mut go_on = |_| ControlFlow::Continue(());
    generate(loaded.model.as_ref(), prompt, options, &mut go_on).unwrap().token_ids
}

fn finish(mut decoder: Decoder<'_>) -> (Generation, PromptCache) {
    for token in &mut decoder {
        token.unwrap();
    }
    decoder.finish().unwrap()
}

#[test]
fn tokens_come_one_by_one() {
    let loaded = loaded();
    let mut decoder = Decoder::new(loaded.model.as_ref(), PROMPT, &options(9)).unwrap();
    let tokens: Vec<_> = decoder.by_ref().map(Result::unwrap).collect();
    assert!(decoder.next().is_none());
    let ids: Vec<_> = tokens.iter().map(|t| t.id).collect();
    assert!(tokens.iter().enumerate().all(|(i, t)| t.index == i));
    assert_eq!(ids, whole(&loaded, PROMPT, &options(9)));
    assert_eq!(decoder.finish().unwrap().0.finish_reason, FinishReason::Length);
}

#[test]
fn prefill_tells_its_progress_and_changes_no_token() {
    let loaded = loaded();
    let options = GenerateOptions { prefill_step: 3, ..options(6) };
    let mut decoder = Decoder::new(loaded.model.as_ref(), PROMPT, &options).unwrap();
    let mut seen = Vec::new();
    let mut watch = |progress| {
        seen.push(progress);
        ControlFlow::Continue(())
    };
    decoder.prefill(&mut watch).unwrap();
    let total = PROMPT.len();
    assert_eq!(seen, [0, 3, 6].map(|done| Progress { done, total }));
    assert_eq!(finish(decoder).0.token_ids, whole(&loaded, PROMPT, &options));
}

#[test]
fn prefill_may_be_cancelled() {
    let loaded = loaded();
    let options = GenerateOptions { prefill_step: 3, ..options(6) };
    let mut decoder = Decoder::new(loaded.model.as_ref(), PROMPT, &options).unwrap();
    let mut second = |p: Progress| match p.done {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    decoder.prefill(&mut second).unwrap();
    assert!(decoder.next().is_none());
    let (generation, cache) = decoder.finish().unwrap();
    assert_eq!(generation.finish_reason, FinishReason::Cancelled);
    assert!(generation.token_ids.is_empty());
    // what was read is of use to the next attempt
    assert_eq!(cache.tokens(), &PROMPT[..3]);
    let again = Decoder::resume(loaded.model.as_ref(), cache, PROMPT, &options).unwrap();
    let (generation, _) = finish(again);
    assert_eq!(generation.reused_tokens, 3);
    assert_eq!(generation.token_ids, whole(&loaded, PROMPT, &options));
}

#[test]
fn cache_continues_with_the_next_turn() {
    let loaded = loaded();
    let model = loaded.model.as_ref();
    let (first, cache) = finish(Decoder::new(model, PROMPT, &options(8)).unwrap());
    assert_eq!(cache.tokens(), [PROMPT, &first.token_ids[..7]].concat());
    assert_eq!(cache.cache().len() as usize, cache.tokens().len());

    let turn = [PROMPT, &first.token_ids, &[7, 8, 9]].concat();
    let (second, cache) = finish(Decoder::resume(model, cache, &turn, &options(8)).unwrap());
    assert_eq!(second.reused_tokens, PROMPT.len() + 7);
    assert_eq!(second.token_ids, whole(&loaded, &turn, &options(8)));

    // the same prompt again: all but its last token is there, what followed is forgotten
    let (third, cache) = finish(Decoder::resume(model, cache, &turn, &options(8)).unwrap());
    assert_eq!(third.reused_tokens, turn.len() - 1);
    assert_eq!(third.token_ids, second.token_ids);

    // a prompt that parts from it in the middle
    let other = [&PROMPT[..4], &[80, 81]].concat();
    let (fourth, _) = finish(Decoder::resume(model, cache, &other, &options(8)).unwrap());
    assert_eq!(fourth.reused_tokens, 4);
    assert_eq!(fourth.token_ids, whole(&loaded, &other, &options(8)));
}

#[test]
fn stopped_decoder_leaves_a_cache_of_known_tokens() {
    let loaded = loaded();
    let model = loaded.model.as_ref();
    let mut decoder = Decoder::new(model, PROMPT, &options(20)).unwrap();
    let ids: Vec<_> = decoder.by_ref().take(5).map(|t| t.unwrap().id).collect();
    decoder.stop(FinishReason::StopString);
    assert!(decoder.next().is_none());
    let (generation, cache) = decoder.finish().unwrap();
    assert_eq!(generation.finish_reason, FinishReason::StopString);
    assert_eq!(generation.token_ids, ids);
    // the step after the last token that was read had been started
    assert_eq!(cache.tokens(), [PROMPT, &ids].concat());
    assert_eq!(cache.cache().len() as usize, cache.tokens().len());
}

/// Logits of a made-up vocabulary of 8, two of them negative.
fn logits(dtype: Dtype) -> Array {
    let values = [1.7_f32, -0.3, 2.2, 0.013, -1.9, 3.3, 0.7, 1.0];
    Array::from_slice(&values, &[1, 8]).unwrap().astype(dtype).unwrap()
}

fn processed(processing: &Processing, history: &[u32], pending: bool, dtype: Dtype) -> Vec<f32> {
    let (known, latest) = match pending {
        true => (&history[..history.len() - 1], history.last()),
        false => (history, None),
    };
    let latest = latest.map(|id| Array::from_slice(&[*id], &[1]).unwrap());
    let out = processing.apply(logits(dtype), known, latest.as_ref()).unwrap();
    assert_eq!((out.shape(), out.dtype()), (&[1, 8][..], dtype));
    out.astype(Dtype::F32).unwrap().to_vec().unwrap()
}

/// What `mlx_lm.sample_utils.make_logits_processors` (0.32.0) returns for the same logits in bfloat16.
#[test]
fn penalties_and_bias_have_the_numbers_of_mlx_lm() {
    let history = [5, 2, 2, 4, 0, 2, 5, 1];
    let penalty = |penalty, context_size| Some(Penalty { penalty, context_size });
    let bias = vec![(1, 0.35), (6, -2.5)];
    let none = Processing::default();
    for (processing, expected) in [
        (
            Processing { repetition: penalty(1.3, 20), ..none.clone() },
            [1.3125, -0.390625, 1.6953125, 0.013_000_488, -2.46875, 2.546875, 0.69921875, 1.0],
        ),
        (
            Processing { repetition: penalty(1.3, 3), ..none.clone() },
            [1.703125, -0.390625, 1.6953125, 0.013_000_488, -1.8984375, 2.546875, 0.69921875, 1.0],
        ),
        (
            Processing { repetition: penalty(1.3, 1), ..none.clone() },
            [1.703125, -0.390625, 2.203125, 0.013_000_488, -1.8984375, 3.296875, 0.69921875, 1.0],
        ),
        (
            Processing { repetition: penalty(1.3, 0), ..none.clone() },
            [1.3125, -0.390625, 1.6953125, 0.013_000_488, -2.46875, 2.546875, 0.69921875, 1.0],
        ),
        (
            Processing { presence: penalty(0.4, 20), ..none.clone() },
            [1.3046875, -0.703125, 1.8046875, 0.013_000_488, -2.296875, 2.890625, 0.69921875, 1.0],
        ),
        (
            Processing { presence: penalty(0.4, 4), ..none.clone() },
            [1.3046875, -0.703125, 1.8046875, 0.013_000_488, -1.8984375, 2.890625, 0.69921875, 1.0],
        ),
        (
            Processing { frequency: penalty(0.37, 20), ..none.clone() },
            [1.3359375, -0.671875, 1.1015625, 0.013_000_488, -2.265625, 2.546875, 0.69921875, 1.0],
        ),
        (
            Processing { frequency: penalty(0.37, 2), ..none.clone() },
            [1.703125, -0.671875, 2.203125, 0.013_000_488, -1.8984375, 2.921875, 0.69921875, 1.0],
        ),
        (
            Processing { logit_bias: bias.clone(), ..none.clone() },
            [1.703125, 0.048828125, 2.203125, 0.013_000_488, -1.8984375, 3.296875, -1.796875, 1.0],
        ),
        (
            Processing {
                logit_bias: bias.clone(),
                repetition: penalty(1.1, 20),
                presence: penalty(-0.2, 20),
                frequency: penalty(0.37, 5),
            },
            [1.3828125, -0.125, 1.8359375, 0.013_000_488, -2.265625, 2.828125, -1.796875, 1.0],
        ),
    ] {
        for pending in [false, true] {
            let got = processed(&processing, &history, pending, Dtype::Bf16);
            assert_eq!(got, expected, "{processing:?}, pending: {pending}");
        }
    }
}

#[test]
fn penalties_change_what_is_said_alike_however_the_prompt_came() {
    let loaded = loaded();
    let model = loaded.model.as_ref();
    let plain = whole(&loaded, PROMPT, &options(24));
    let strong = Processing {
        repetition: Some(Penalty { penalty: 1.8, context_size: 0 }),
        ..Processing::default()
    };
    let options = GenerateOptions { processing: strong, ..options(24) };
    let penalised = whole(&loaded, PROMPT, &options);
    let distinct = |ids: &[u32]| ids.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(distinct(&penalised) > distinct(&plain), "{plain:?} {penalised:?}");
    // a cache that is continued keeps the whole history
    let (_, cache) = finish(
        Decoder::new(model, PROMPT, &GenerateOptions { max_tokens: 1, ..options.clone() }).unwrap(),
    );
    let resumed = finish(Decoder::resume(model, cache, PROMPT, &options).unwrap()).0;
    assert_eq!(resumed.token_ids, penalised);
    // a bias decides alone when it is large enough
    let biased = Processing { logit_bias: vec![(77, 1e4)], ..Processing::default() };
    let options = GenerateOptions { processing: biased, ..options };
    assert_eq!(whole(&loaded, PROMPT, &options), [77; 24]);
    let hot = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
    assert_eq!(whole(&loaded, PROMPT, &GenerateOptions { sampling: hot, ..options }), [77; 24]);
}

#[test]
fn processing_out_of_range_is_refused() {
    let loaded = loaded();
    let ok = Processing::default();
    let of = |penalty| Some(Penalty::new(penalty));
    for (name, processing) in [
        ("repetition_penalty", Processing { repetition: of(-1.0), ..ok.clone() }),
        ("repetition_penalty", Processing { repetition: of(f32::NAN), ..ok.clone() }),
        ("presence_penalty", Processing { presence: of(f32::INFINITY), ..ok.clone() }),
        ("frequency_penalty", Processing { frequency: of(f32::NAN), ..ok.clone() }),
        ("logit_bias", Processing { logit_bias: vec![(0, f32::NAN)], ..ok.clone() }),
        ("logit_bias token", Processing { logit_bias: vec![(VOCAB, 1.0)], ..ok.clone() }),
        ("logit_bias token", Processing { logit_bias: vec![(1, 1.0), (1, 2.0)], ..ok }),
    ] {
        let options = GenerateOptions { processing, ..options(4) };
        let Err(error) = Decoder::new(loaded.model.as_ref(), PROMPT, &options) else {
            panic!("{name} was taken");
        };
        assert!(matches!(&error, Error::Argument { name: n, .. } if *n == name), "{error}");
    }
}

/// Eight sequences of the demo model that begin one after another, in stock and in fused form.
#[test]
fn ragged_batch_says_what_its_rows_say_alone() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let mut loaded = load(&folder).unwrap();
    let vocab = loaded.model.vocab_size();
    let prompts: Vec<Vec<u32>> = (0..8_u32)
        .map(|row| (0..3 + 9 * row).map(|i| (i * 7919 + 13 + 101 * row) % vocab).collect())
        .collect();
    for (patterns, tokens) in [(Patterns::Auto, 40), (Patterns::Off, 5)] {
        patch(&mut loaded, &PatchOptions { patterns, ..PatchOptions::default() }).unwrap();
        let alone: Vec<_> = prompts.iter().map(|p| whole(&loaded, p, &options(tokens))).collect();
        let mut decoders: Vec<Decoder<'_>> = Vec::new();
        let mut said = vec![Vec::new(); prompts.len()];
        while decoders.len() < prompts.len() || decoders.iter().any(|d| !d.is_done()) {
            if let Some(prompt) = prompts.get(decoders.len()) {
                let model = loaded.model.as_ref();
                decoders.push(Decoder::new(model, prompt, &options(tokens)).unwrap());
            }
            let mut rows: Vec<_> = decoders.iter_mut().collect();
            for (said, token) in said.iter_mut().zip(Decoder::round(&mut rows).unwrap()) {
                said.extend(token.map(|token| token.id));
            }
        }
        assert_eq!(said, alone);
    }
}

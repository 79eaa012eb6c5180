//! The engine: requests that share a thread have the answers that they have alone, and cannot harm each other.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mlx::{Array, Dtype};

use super::fixture::{Fixture, VOCAB, q4};
use crate::cache::Cache;
use crate::engine::{Engine, EngineModel, EngineOptions, Event, Fifo, Request, Scheduler, Waiting};
use crate::error::{Error, Result};
use crate::generate::{FinishReason, GenerateOptions, generate};
use crate::layers::{Head, Site};
use crate::models::{Model, load};
use crate::patch::{PatchOptions, patch};
use crate::processors::{Penalty, Processing};
use crate::sampler::Sampling;
use crate::step::Step;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

/// An engine of a tiny random model.
fn tiny(options: EngineOptions) -> Engine {
    Engine::spawn(options, || {
        let mut loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
        patch(&mut loaded, &PatchOptions::default())?;
        Ok(EngineModel {
            model: Box::new(Faulty(loaded.model)),
            tokenizer: None,
            eos_token_ids: Vec::new(),
            max_context: Some(300),
        })
    })
    .unwrap()
}

const PANICS: u32 = VOCAB - 1;
const FAILS: u32 = VOCAB - 2;

/// A model that panics over one token and fails over another.
struct Faulty(Box<dyn Model>);

impl Model for Faulty {
    fn forward(&self, step: &Step<'_>, caches: &mut [&mut Cache]) -> Result<Array> {
        if step.tokens.dim(1) > 1 {
            let tokens = step.tokens.to_vec::<u32>()?;
            assert!(!tokens.contains(&PANICS), "no such luck");
            if tokens.contains(&FAILS) {
                return Err(Error::argument("token", FAILS, "it fails"));
            }
        }
        self.0.forward(step, caches)
    }

    fn make_cache(&self) -> Cache {
        self.0.make_cache()
    }

    fn vocab_size(&self) -> u32 {
        self.0.vocab_size()
    }

    fn activation_dtype(&self) -> Result<Dtype> {
        self.0.activation_dtype()
    }

    fn head(&self) -> &Head {
        self.0.head()
    }

    fn sites<'a>(&'a mut self, sites: &mut Vec<Site<'a>>) {
        self.0.sites(sites);
    }
}

fn request(seed: u32, length: u32, max_tokens: usize) -> Request {
    let prompt = (0..length).map(|i| (i * 31 + seed * 7 + 1) % (VOCAB - 2)).collect();
    let options = GenerateOptions { max_tokens, ..GenerateOptions::default() };
    Request { options, ..Request::new(prompt) }
}

/// The tokens that a request has when nobody else is there.
fn alone(engine: &Engine, request: &Request) -> Vec<u32> {
    engine.submit(request.clone()).unwrap().wait().unwrap().generation.token_ids
}

#[test]
fn concurrent_requests_have_the_answers_that_they_have_alone() {
    let hot = |seed| Sampling { temperature: 0.9, top_p: 0.95, seed, ..Sampling::default() };
    let mut requests: Vec<Request> =
        (0..8).map(|i| request(i, 3 + 13 * i, 12 + 5 * i as usize)).collect();
    requests[2].options.sampling = hot(7);
    requests[5].options.sampling = hot(8);
    requests[6].options.processing =
        Processing { repetition: Some(Penalty::new(1.4)), ..Processing::default() };
    let engine = tiny(EngineOptions { max_batch: 8, prefill_step: 16 });
    let expected: Vec<_> = requests.iter().map(|r| alone(&engine, r)).collect();
    let streams: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    for ((stream, expected), request) in streams.into_iter().zip(&expected).zip(&requests) {
        let got = stream.wait().unwrap().generation;
        assert_eq!(got.token_ids, *expected);
        assert_eq!(got.token_ids.len(), request.options.max_tokens);
        assert_eq!(got.finish_reason, FinishReason::Length);
    }
    // more than fit, joining as others leave, from several threads
    let narrow = tiny(EngineOptions { max_batch: 3, prefill_step: 16 });
    std::thread::scope(|scope| {
        for (request, expected) in requests.iter().zip(&expected) {
            let engine = narrow.clone();
            scope.spawn(move || assert_eq!(alone(&engine, request), *expected));
        }
    });
}

#[test]
fn engine_says_what_generate_says_with_text() {
    let engine = Engine::open(&demo(), PatchOptions::default(), EngineOptions::default()).unwrap();
    let mut loaded = load(&demo()).unwrap();
    patch(&mut loaded, &PatchOptions::default()).unwrap();
    let tokenizer = crate::Tokenizer::load(&demo()).unwrap();
    let texts = [
        "The shell reads commands from",
        "What does ls do?",
        "A file is",
        "Processes are started by the kernel when a user asks for them, and then",
    ];
    let mut streams = Vec::new();
    let mut expected = Vec::new();
    for text in texts {
        let prompt = tokenizer.encode_prompt(text).unwrap();
        let options = GenerateOptions {
            max_tokens: 40,
            eos_token_ids: tokenizer.eos_token_ids(&loaded.config.eos_token_ids),
            ..GenerateOptions::default()
        };
        let mut go_on = |_| ControlFlow::Continue(());
        let all = generate(loaded.model.as_ref(), &prompt, &options, &mut go_on).unwrap();
        let options = GenerateOptions { eos_token_ids: Vec::new(), ..options };
        streams.push(engine.submit(Request { options, ..Request::new(prompt) }).unwrap());
        expected.push(all);
    }
    for (stream, expected) in streams.into_iter().zip(&expected) {
        let got = stream.wait().unwrap();
        assert_eq!(got.generation.token_ids, expected.token_ids);
        assert_eq!(got.generation.finish_reason, expected.finish_reason);
        let ids = &expected.token_ids;
        let spoken = match expected.finish_reason {
            FinishReason::Eos => &ids[..ids.len() - 1],
            _ => ids,
        };
        assert_eq!(got.text, tokenizer.decode(spoken).unwrap());
    }
    // a stop string ends it, and is no part of the text
    let prompt = tokenizer.encode_prompt(texts[0]).unwrap();
    let whole = engine.submit(Request::new(prompt.clone())).unwrap().wait().unwrap().text;
    let cut: String = whole.chars().skip(12).take(5).collect();
    let stop = vec![cut.clone()];
    let stopped = engine.submit(Request { stop, ..Request::new(prompt) }).unwrap().wait().unwrap();
    assert_eq!(stopped.generation.finish_reason, FinishReason::StopString);
    assert_eq!(stopped.text, whole[..whole.find(&cut).unwrap()]);
}

#[test]
fn cancelled_requests_end_and_leave_the_others_alone() {
    let engine = tiny(EngineOptions { max_batch: 2, prefill_step: 8 });
    let kept = request(1, 9, 60);
    let expected = alone(&engine, &kept);
    let mut long = engine.submit(request(2, 5, 290)).unwrap();
    let stream = engine.submit(kept).unwrap();
    let waiting = engine.submit(request(3, 5, 290)).unwrap();
    waiting.canceller().cancel();
    let canceller = long.canceller();
    let first = long.find(|event| matches!(event, Ok(Event::Token { .. })));
    assert!(first.is_some());
    canceller.cancel();
    let last = long.last().unwrap().unwrap();
    let Event::Finished(finished) = last else { panic!("{last:?}") };
    assert_eq!(finished.reason(), FinishReason::Cancelled);
    assert!(finished.generation.token_ids.len() < 290);
    assert_eq!(stream.wait().unwrap().generation.token_ids, expected);
    let cancelled = waiting.wait().unwrap().generation;
    assert_eq!((cancelled.finish_reason, cancelled.token_ids.len()), (FinishReason::Cancelled, 0));
}

#[test]
fn dropped_streams_free_their_places() {
    let engine = tiny(EngineOptions { max_batch: 1, prefill_step: 8 });
    for seed in 0..4 {
        let mut stream = engine.submit(request(seed, 5, 290)).unwrap();
        stream.next().unwrap().unwrap();
    }
    // would wait behind 1160 tokens
    assert_eq!(alone(&engine, &request(9, 5, 3)).len(), 3);
}

#[test]
fn last_handle_ends_the_thread() {
    let engine = tiny(EngineOptions::default());
    let other = engine.clone();
    let mut stream = engine.submit(request(1, 20, 40)).unwrap();
    drop(engine);
    assert_eq!(alone(&other, &request(2, 4, 5)).len(), 5);
    drop(other);
    // a stream still gets all of its tokens
    let tokens = stream.by_ref().filter(|e| matches!(e, Ok(Event::Token { .. }))).count();
    assert_eq!(tokens, 40);
    assert!(stream.next().is_none() && stream.next_timeout(Duration::from_secs(1)).is_none());
    drop(stream); // joins the thread; a hang here is the failure
}

#[test]
fn requests_that_cannot_be_served_say_why() {
    let engine = tiny(EngineOptions::default());
    let good = request(4, 6, 10);
    let expected = alone(&engine, &good);
    let running = engine.submit(good).unwrap();
    let fails = |request: Request| engine.submit(request).unwrap().wait().unwrap_err().to_string();
    let bad_prompt = |prompt| Request::new(prompt);
    assert!(fails(bad_prompt(Vec::new())).contains("prompt is empty"));
    assert!(fails(bad_prompt(vec![VOCAB])).contains("vocabulary"));
    assert!(fails(bad_prompt(vec![1; 300])).contains("prompt is 300 tokens long"));
    let mut hot = request(1, 3, 3);
    hot.options.sampling.temperature = -1.0;
    assert!(fails(hot).contains("temperature"));
    let stop = Request { stop: vec!["x".to_owned()], ..request(1, 3, 3) };
    assert!(fails(stop).contains("tokenizer"));
    assert_eq!(running.wait().unwrap().generation.token_ids, expected);
    // what would outgrow the context ends with it
    let longest = engine.submit(request(1, 290, 100)).unwrap().wait().unwrap();
    assert_eq!(longest.generation.token_ids.len(), 10);
}

#[test]
fn panic_or_error_of_one_request_spares_the_engine() {
    let engine = tiny(EngineOptions::default());
    let good = request(4, 6, 30);
    let expected = alone(&engine, &good);
    let running = engine.submit(good.clone()).unwrap();
    let with = |token| Request::new(vec![1, 2, token, 3, 4]);
    let panicked = engine.submit(with(PANICS)).unwrap().wait().unwrap_err();
    assert!(matches!(&panicked, Error::Engine { reason } if reason.contains("no such luck")));
    let failed = engine.submit(with(FAILS)).unwrap().wait().unwrap_err();
    assert!(failed.to_string().contains("it fails"), "{failed}");
    assert_eq!(running.wait().unwrap().generation.token_ids, expected);
    assert_eq!(alone(&engine, &good), expected);
}

#[test]
fn load_that_fails_is_told() {
    let missing = Path::new("/no/such/folder");
    let error = Engine::open(missing, PatchOptions::default(), EngineOptions::default());
    assert!(error.unwrap_err().to_string().contains("/no/such/folder"));
    let error = Engine::spawn(EngineOptions::default(), || panic!("no model here"));
    assert!(matches!(error, Err(Error::Engine { .. })));
}

#[test]
fn fifo_keeps_the_order_and_its_limit() {
    let mut fifo = Fifo::new(2);
    for id in 0..4 {
        fifo.push(Waiting { id, prompt_tokens: 1, max_tokens: 1 });
    }
    fifo.remove(1);
    assert_eq!([fifo.next(0), fifo.next(1), fifo.next(2)], [Some(0), Some(2), None]);
    assert_eq!([fifo.next(1), fifo.next(0)], [Some(3), None]);
}

#[test]
fn prompts_are_read_in_pieces_between_steps() {
    let engine = tiny(EngineOptions { max_batch: 2, prefill_step: 8 });
    let mut first = engine.submit(request(1, 4, 250)).unwrap();
    first.find(|event| matches!(event, Ok(Event::Token { .. }))).unwrap().unwrap();
    let events = engine.submit(request(2, 81, 2)).unwrap();
    let events: Vec<Event> = events.map(Result::unwrap).collect();
    let pieces = events.iter().filter(|e| matches!(e, Event::Prefill(_))).count();
    assert_eq!(pieces, 10);
    assert!(matches!(events.last(), Some(Event::Finished(_))));
    drop(first);
}

//! Recorded steps: whoever records them, the tokens are those of ordinary ones, and what is left is an ordinary cache.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;

use mlx::primitives::{self, Precision, Setting};
use mlx::recording::Recording;
use mlx::{Array, Device, Dtype, default_device};
use serde_json::json;

use super::families::Golden;
use super::fixture::{Fixture, PROMPT, q4};
use crate::cache::{Cache, CacheOptions, KvQuantization};
use crate::decoder::{Decoder, PromptCache};
use crate::error::{Error, Result};
use crate::generate::{FinishReason, GenerateOptions, Generation, generate};
use crate::layers::ModuleKind;
use crate::models::{LoadedModel, Model};
use crate::patch::{PatchOptions, Patterns, patch, plan};
use crate::processors::{Penalty, Processing};
use crate::recorded::{Plan, RecordedSteps, Recorder};
use crate::sampler::Sampling;
use crate::sequence::{self, Sequence};
use crate::step::Step;

/// Plans as the real one does, and computes every step by ordinary means.
struct Fake {
    model: Rc<LoadedModel>,
    plans: RefCell<Vec<Plan>>,
    fails: bool,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fake")
    }
}

impl Fake {
    fn new(model: &Rc<LoadedModel>) -> Rc<Self> {
        Rc::new(Self { model: model.clone(), plans: RefCell::default(), fails: false })
    }
}

impl Recorder for Fake {
    fn record(
        &self,
        _: &dyn Model,
        cache: &Cache,
        token: &Array,
        most: usize,
    ) -> Result<Option<Box<dyn RecordedSteps>>> {
        let Some(plan) = Plan::of(cache, most) else { return Ok(None) };
        self.plans.borrow_mut().push(plan);
        if self.fails {
            return Err(Error::argument("step", "odd", "nobody knows how to record it"));
        }
        let (model, cache) = (self.model.clone(), Some(cache.clone()));
        let mut steps = FakeSteps { model, cache, plan, last: token.clone(), tokens: Vec::new() };
        steps.launch()?;
        Ok(Some(Box::new(steps)))
    }
}

struct FakeSteps {
    model: Rc<LoadedModel>,
    /// Until it is settled.
    cache: Option<Cache>,
    plan: Plan,
    last: Array,
    tokens: Vec<u32>,
}

impl std::fmt::Debug for FakeSteps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FakeSteps")
    }
}

impl RecordedSteps for FakeSteps {
    fn launch(&mut self) -> Result<()> {
        let cache = self.cache.as_mut().expect("not settled");
        assert_eq!(cache.len(), self.plan.len + self.tokens.len() as i32);
        assert!(cache.len() < self.plan.until, "launched without room");
        let model = self.model.model.as_ref();
        let logits = model.forward(&Step::new(&self.last.reshape(&[1, 1])?), &mut [cache])?;
        self.last = model.head().greedy(&logits.reshape(&[1, logits.dim(-1)])?)?;
        self.tokens.push(self.last.item()?);
        Ok(())
    }

    fn num_started(&self) -> u64 {
        self.tokens.len() as u64
    }

    fn room(&self) -> i32 {
        self.plan.until - self.plan.len - self.tokens.len() as i32
    }

    fn token(&mut self, index: u64) -> Result<u32> {
        assert!(self.cache.is_some(), "asked after it was settled");
        assert!(index + Recording::MOST_AHEAD >= self.num_started(), "asked too late");
        Ok(self.tokens[index as usize])
    }

    fn settle(&mut self) -> Result<Cache> {
        Ok(self.cache.take().expect("settled once"))
    }
}

fn loaded() -> Rc<LoadedModel> {
    Rc::new(Fixture::dense(Dtype::F32).quantized(q4()).load())
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::default() }
}

fn ordinary(loaded: &LoadedModel, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    let mut go_on = |_| ControlFlow::Continue(());
    generate(loaded.model.as_ref(), prompt, options, &mut go_on).unwrap().token_ids
}

fn finish(mut decoder: Decoder<'_>) -> (Generation, PromptCache) {
    for token in &mut decoder {
        token.unwrap();
    }
    decoder.finish().unwrap()
}

/// What a decoder with that recorder says after `prompt`.
fn recorded(fake: &Rc<Fake>, prompt: &[u32], options: &GenerateOptions) -> Generation {
    let decoder = Decoder::new(fake.model.model.as_ref(), prompt, options).unwrap();
    finish(decoder.with_recorder(fake.clone())).0
}

/// Where the recordings began and ended.
fn spans(fake: &Fake) -> Vec<(i32, i32)> {
    fake.plans.borrow().iter().map(|plan| (plan.len, plan.until)).collect()
}

#[test]
fn recordings_follow_the_buffers() {
    let loaded = loaded();
    let fake = Fake::new(&loaded);
    let options = options(530);
    let said = recorded(&fake, PROMPT, &options);
    assert_eq!(said.token_ids, ordinary(&loaded, PROMPT, &options));
    assert_eq!(said.not_recorded, None);
    // from the prompt but its last token
    assert_eq!(spans(&fake), [(6, 256), (256, 512), (512, 768)]);
    // a prompt of one token leaves nothing to copy
    let fake = Fake::new(&loaded);
    let said = recorded(&fake, &PROMPT[..1], &options);
    assert_eq!(said.token_ids, ordinary(&loaded, &PROMPT[..1], &options));
    assert_eq!(spans(&fake), [(1, 256), (256, 512), (512, 768)]);
    // too few to be worth it
    let fake = Fake::new(&loaded);
    recorded(&fake, PROMPT, &GenerateOptions { max_tokens: 15, ..options });
    assert_eq!(spans(&fake), []);
}

#[test]
fn stopped_recording_leaves_a_cache_to_continue() {
    let hybrid = || Rc::new(Golden::of("lfm2").load(Dtype::F32, None));
    for loaded in [loaded(), hybrid()] {
        let model = loaded.model.as_ref();
        let options = options(40);
        let run = |fake: Option<Rc<Fake>>| {
            let with = |decoder: Decoder<'_>| match &fake {
                Some(fake) => finish_some(decoder.with_recorder(fake.clone())),
                None => finish_some(decoder),
            };
            let (first, cache) = with(Decoder::new(model, PROMPT, &options).unwrap());
            let held = cache.tokens().to_vec();
            assert_eq!(cache.cache().len() as usize, held.len());
            let turn = [PROMPT, &first, &[7, 8, 9]].concat();
            let decoder = Decoder::resume(model, cache, &turn, &options).unwrap();
            let (second, cache) = with(decoder);
            // parts from what is held
            let other = [&turn[..9], &[5, 6]].concat();
            let (third, _) = with(Decoder::resume(model, cache, &other, &options).unwrap());
            (first, held, second, third)
        };
        let fake = Fake::new(&loaded);
        assert_eq!(run(Some(fake.clone())), run(None));
        assert_eq!(fake.plans.borrow().len(), 3);
    }
}

/// Five tokens, with the sixth under way.
fn finish_some(mut decoder: Decoder<'_>) -> (Vec<u32>, PromptCache) {
    let ids = decoder.by_ref().take(5).map(|token| token.unwrap().id).collect();
    decoder.stop(FinishReason::StopString);
    (ids, decoder.finish().unwrap().1)
}

#[test]
fn recording_ends_where_another_sequence_joins() {
    let loaded = loaded();
    let model = loaded.model.as_ref();
    let other = [9, 8, 7, 6];
    let expected =
        [ordinary(&loaded, PROMPT, &options(80)), ordinary(&loaded, &other, &options(20))];
    let fake = Fake::new(&loaded);
    let decoder = |prompt, tokens| {
        Decoder::new(model, prompt, &options(tokens)).unwrap().with_recorder(fake.clone())
    };
    let (mut first, mut second) = (decoder(PROMPT, 80), decoder(&other[..], 20));
    for _ in 0..10 {
        Decoder::round(&mut [&mut first]).unwrap();
    }
    while !first.is_done() || !second.is_done() {
        Decoder::round(&mut [&mut first, &mut second]).unwrap();
    }
    assert_eq!([first.token_ids(), second.token_ids()], [&expected[0][..], &expected[1][..]]);
    // and begins again where it has left: after 20 steps together
    assert_eq!(spans(&fake), [(6, 256), (36, 256)]);
}

#[test]
fn steps_may_be_started_far_ahead() {
    let loaded = loaded();
    let model = loaded.model.as_ref();
    let expected = ordinary(&loaded, PROMPT, &options(30));
    let fake = Fake::new(&loaded);
    let sequence = Sequence::new(model, None, PROMPT, &options(30)).unwrap();
    let mut sequence = sequence.with_recorder(fake.clone());
    while !sequence.is_ready() {
        sequence.prefill_piece(model).unwrap();
    }
    for _ in 0..30 {
        sequence::step(model, &mut [&mut sequence]).unwrap();
    }
    let read: Vec<u32> = std::iter::from_fn(|| sequence.read().unwrap()).collect();
    assert_eq!(read, expected);
    assert_eq!(spans(&fake), [(6, 256)]);
}

#[test]
fn other_steps_than_greedy_ones_over_growing_caches_are_not_recorded() {
    let loaded = loaded();
    let sampling = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
    let repetition = Some(Penalty { penalty: 1.5, context_size: 0 });
    let processing = Processing { repetition, ..Processing::default() };
    let packed = Some(KvQuantization { bits: 8, group_size: 32, start: 1000 });
    let limited = |size| CacheOptions { max_kv_size: Some(size), quantized: None };
    let all = options(40);
    for options in [
        GenerateOptions { sampling, ..all.clone() },
        GenerateOptions { processing, ..all.clone() },
        GenerateOptions {
            cache: CacheOptions { quantized: packed, max_kv_size: None },
            ..all.clone()
        },
        // which stock attends by cuDNN on CUDA
        GenerateOptions { cache: limited(256), ..all.clone() },
    ] {
        let fake = Fake::new(&loaded);
        let said = recorded(&fake, PROMPT, &options);
        assert_eq!(said.token_ids, ordinary(&loaded, PROMPT, &options));
        assert_eq!(spans(&fake), [], "{options:?}");
    }
    let fake = Fake::new(&loaded);
    let options = GenerateOptions { cache: limited(16), ..all };
    assert_eq!(recorded(&fake, PROMPT, &options).token_ids, ordinary(&loaded, PROMPT, &options));
    assert_eq!(spans(&fake), [(6, 46)], "a small window");
}

#[test]
fn what_cannot_be_recorded_is_told_once_and_goes_on() {
    let loaded = loaded();
    let fake = Fake { model: loaded.clone(), plans: RefCell::default(), fails: true };
    let fake = Rc::new(fake);
    let said = recorded(&fake, PROMPT, &options(300));
    assert_eq!(said.token_ids, ordinary(&loaded, PROMPT, &options(300)));
    assert!(said.not_recorded.unwrap().contains("nobody knows how"));
    assert_eq!(spans(&fake), [(6, 256)]);
}

#[test]
fn report_says_why_steps_are_not_recorded() {
    let refused = |loaded: &mut LoadedModel, part: &str| {
        let patterns = Patterns::Names(vec!["recorded_step".into()]);
        let report = plan(loaded, &PatchOptions { patterns, ..PatchOptions::default() }).unwrap();
        let [row] = &report.modules[..] else { panic!("{report:?}") };
        assert_eq!((row.module.as_str(), row.kind), ("step", ModuleKind::Step));
        let reason = row.fallback.as_deref().unwrap();
        assert!(reason.contains(part), "{reason}");
    };
    refused(&mut Golden::of("deepseek_v3").load(Dtype::F32, None), "layer 0 is latents");
    refused(&mut Golden::of("deepseek_v32").load(Dtype::F32, None), "layer 0 is a list");
    if default_device() == Device::Cpu && !mlx::build_info().primitives.is_empty() {
        for model_type in ["gpt_oss", "qwen3_moe", "lfm2_moe", "qwen3_next"] {
            refused(&mut Golden::of(model_type).load(Dtype::F32, None), "CUDA devices alone");
        }
    }
}

/// Where the device has the kernels: recordings against stock, and against themselves.
#[test]
fn device_that_records_says_what_stock_says() {
    let setting =
        Setting { device: default_device(), dtype: Dtype::Bf16, precision: Precision::Exact };
    let supported = primitives::supports(&primitives::RecordedStep, &setting);
    if default_device() != Device::Gpu || supported.is_err() {
        println!("SKIPPED: {supported:?}");
        return;
    }
    let sizes = json!({"head_dim": 64, "hidden_size": 128, "moe_intermediate_size": 128});
    let mut loaded = Fixture::with(Dtype::Bf16, sizes).load();
    // up to 255 keys; then stock asks cuDNN, which is not equal to itself
    let (options, few) = (options(200), options(40));
    let run = |loaded: &LoadedModel| {
        let model = loaded.model.as_ref();
        let (said, cache) = finish(Decoder::new(model, PROMPT, &options).unwrap());
        let longer = [PROMPT, &said.token_ids].concat();
        let (after, _) = finish(Decoder::resume(model, cache, &longer, &few).unwrap());
        assert_eq!((said.not_recorded, after.not_recorded), (None, None));
        [said.token_ids, after.token_ids]
    };
    let stock = run(&loaded);
    let report = patch(&mut loaded, &PatchOptions::default()).unwrap();
    let recorded = report.modules.iter().find(|row| row.pattern == "recorded_step").unwrap();
    assert_eq!(recorded.fallback, None);
    assert_eq!(run(&loaded), stock);
    let long = GenerateOptions { max_tokens: 1200, ..options };
    let once = ordinary(&loaded, PROMPT, &long);
    assert_eq!(ordinary(&loaded, PROMPT, &long), once);
}

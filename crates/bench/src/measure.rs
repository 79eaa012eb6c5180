//! One run of one case on a model in memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use mlx::memory;
use zmlx_capsule::{CaseKind, Metric, rounded};
use zmlx_lm::{CacheOptions, Decoder, GenerateOptions, Model};

use crate::case::Work;
use crate::engine::Outcome;
use crate::variant::VariantSpec;
use crate::{Error, Result};

/// Whether whoever watches wants no more.
pub(crate) type Cancelled<'a> = &'a dyn Fn() -> bool;

/// `None` when it was cancelled: a run that is not whole is no sample.
pub(crate) fn run(
    model: &dyn Model,
    spec: &VariantSpec,
    work: &Work,
    cancelled: Cancelled<'_>,
) -> Result<Option<Outcome>> {
    memory::clear_cache()?;
    memory::reset_peak()?;
    let outcome = match work.case.kind {
        CaseKind::Generate => generate(model, spec, work, cancelled)?,
        CaseKind::Prefill => prefill(model, spec, work, cancelled)?,
        CaseKind::Decode => decode(model, spec, work, cancelled)?,
        CaseKind::Call => {
            return Err(Error::argument("case", &work.case.name, "a call is no work for a model"));
        }
    };
    let Some(mut outcome) = outcome else { return Ok(None) };
    outcome.metrics.insert(Metric::PeakMemoryBytes, memory::peak_bytes()? as f64);
    Ok(Some(outcome))
}

fn options(max_tokens: usize, cache: CacheOptions) -> GenerateOptions {
    GenerateOptions { max_tokens, ignore_eos: true, cache, ..GenerateOptions::default() }
}

fn generate(
    model: &dyn Model,
    spec: &VariantSpec,
    work: &Work,
    cancelled: Cancelled<'_>,
) -> Result<Option<Outcome>> {
    let prompt = &work.rows[0];
    let prompt = &prompt[..spec.capped(prompt.len())];
    let max_tokens = spec.capped(work.case.generate_tokens);
    let mut decoder = Decoder::new(model, prompt, &options(max_tokens, spec.cache_options()))?;
    if !read(&mut decoder, cancelled)? {
        return Ok(None);
    }
    while decoder.next().transpose()?.is_some() {
        wait(spec.delay)?;
        if cancelled() {
            return Ok(None);
        }
    }
    let (generation, _) = decoder.finish()?;
    let mut metrics = BTreeMap::new();
    metrics.insert(Metric::TtftMs, rounded(generation.ttft_ms));
    metrics.insert(Metric::PromptTokPerS, rounded(generation.prompt_tok_per_s));
    if let Some(speed) = generation.decode_tok_per_s {
        metrics.insert(Metric::DecodeTokPerS, rounded(speed));
    }
    Ok(Some(Outcome { metrics, rows: Some(vec![generation.token_ids]) }))
}

/// Reads all of the prompt but its last token; `false` when it was cancelled.
fn read(decoder: &mut Decoder<'_>, cancelled: Cancelled<'_>) -> Result<bool> {
    decoder.prefill(&mut |_| match cancelled() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?;
    Ok(!decoder.is_done() || !cancelled())
}

fn prefill(
    model: &dyn Model,
    spec: &VariantSpec,
    work: &Work,
    cancelled: Cancelled<'_>,
) -> Result<Option<Outcome>> {
    let (row, depth) = (&work.rows[0], work.case.depth);
    let options = options(1, spec.cache_options());
    let count = spec.capped(row.len() - depth);
    let prompt = &row[..depth + count];
    let mut decoder = match depth {
        0 => Decoder::new(model, prompt, &options)?,
        _ => {
            let before = Decoder::new(model, &prompt[..depth], &options)?.into_prompt_cache()?;
            Decoder::resume(model, before, prompt, &options)?
        }
    };
    // the clock starts when the first of these is asked for
    let start = Instant::now();
    if !read(&mut decoder, cancelled)? {
        return Ok(None);
    }
    while decoder.next().transpose()?.is_some() {}
    wait(spec.delay)?;
    let seconds = start.elapsed().as_secs_f64();
    let (generation, _) = decoder.finish()?;
    let read = (generation.prompt_tokens - generation.reused_tokens) as f64;
    let metrics = [(Metric::PromptTokPerS, read / seconds), (Metric::TtftMs, seconds * 1e3)];
    let metrics = metrics.map(|(metric, value)| (metric, rounded(value)));
    Ok(Some(Outcome { metrics: metrics.into(), rows: Some(vec![generation.token_ids]) }))
}

/// The first token of each row comes before the clock starts.
fn decode(
    model: &dyn Model,
    spec: &VariantSpec,
    work: &Work,
    cancelled: Cancelled<'_>,
) -> Result<Option<Outcome>> {
    let max_tokens = spec.capped(work.case.generate_tokens) + 1;
    let options = options(max_tokens, spec.cache_options());
    let mut decoders = Vec::new();
    for row in &work.rows {
        let mut decoder = Decoder::new(model, row, &options)?;
        if !read(&mut decoder, cancelled)? {
            return Ok(None);
        }
        decoders.push(decoder);
    }
    let mut rows: Vec<&mut Decoder<'_>> = decoders.iter_mut().collect();
    let (mut start, mut count) = (Instant::now(), 0);
    while rows.iter().any(|row| !row.is_done()) {
        let tokens = Decoder::round(&mut rows)?;
        let mut came = tokens.iter().flatten();
        if came.clone().any(|token| token.index == 0) {
            start = Instant::now();
            continue;
        }
        if came.next().is_some() {
            wait(spec.delay)?;
        }
        count += tokens.iter().flatten().count();
        if cancelled() {
            return Ok(None);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let speed = rounded(count as f64 / seconds);
    let metrics = BTreeMap::from([(Metric::DecodeTokPerS, speed)]);
    let rows = decoders.iter().map(|decoder| decoder.token_ids().to_vec()).collect();
    Ok(Some(Outcome { metrics, rows: Some(rows) }))
}

/// The step that runs already is waited for first: it would hide the delay.
fn wait(delay: Duration) -> Result<()> {
    if !delay.is_zero() {
        mlx::synchronize()?;
        thread::sleep(delay);
    }
    Ok(())
}

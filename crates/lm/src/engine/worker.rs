//! The engine's thread.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::Instant;

use super::{EngineModel, EngineOptions, Event, Finished, Request, Scheduler, Waiting};
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::generate::{FinishReason, GenerateOptions, Token};
use crate::stop::TextStream;

/// A request and where its events go.
pub(super) struct Job {
    request: Request,
    line: Line,
    submitted: Instant,
}

impl Job {
    pub(super) fn new(
        request: Request,
        events: Sender<Result<Event>>,
        cancelled: Arc<AtomicBool>,
    ) -> Self {
        Self { request, line: Line { events, cancelled }, submitted: Instant::now() }
    }
}

/// The way back to whoever asked.
struct Line {
    events: Sender<Result<Event>>,
    cancelled: Arc<AtomicBool>,
}

impl Line {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn send(&self, event: Result<Event>) {
        if self.events.send(event).is_err() {
            self.cancelled.store(true, Ordering::Relaxed);
        }
    }
}

/// A sequence that runs.
struct Row<'a> {
    decoder: Decoder<'a>,
    text: Option<TextStream<'a>>,
    line: Line,
    queued_ms: f64,
}

/// Serves until nobody is left to ask and nothing is left to do.
pub(super) fn serve(
    loaded: &EngineModel,
    options: &EngineOptions,
    scheduler: Box<dyn Scheduler>,
    inbox: &Receiver<Job>,
) {
    let mut worker = Worker {
        loaded,
        options,
        scheduler,
        waiting: BTreeMap::new(),
        rows: Vec::new(),
        num_jobs: 0,
    };
    loop {
        let is_idle = worker.rows.is_empty() && worker.waiting.is_empty();
        let job = match is_idle {
            true => inbox.recv().map_err(|_| TryRecvError::Disconnected),
            false => inbox.try_recv(),
        };
        match job {
            Ok(job) => worker.enqueue(job),
            Err(TryRecvError::Disconnected) if is_idle => return,
            Err(_) => worker.turn(),
        }
    }
}

struct Worker<'a> {
    loaded: &'a EngineModel,
    options: &'a EngineOptions,
    scheduler: Box<dyn Scheduler>,
    waiting: BTreeMap<u64, Job>,
    rows: Vec<Row<'a>>,
    num_jobs: u64,
}

impl<'a> Worker<'a> {
    fn enqueue(&mut self, job: Job) {
        let id = self.num_jobs;
        self.num_jobs += 1;
        let prompt_tokens = job.request.prompt.len();
        let max_tokens = job.request.options.max_tokens;
        self.scheduler.push(Waiting { id, prompt_tokens, max_tokens });
        self.waiting.insert(id, job);
    }

    /// Lets requests begin, reads a piece of one prompt, takes all others a token further.
    fn turn(&mut self) {
        self.drop_cancelled();
        while let Some(id) = self.scheduler.next(self.rows.len()) {
            if let Some(job) = self.waiting.remove(&id) {
                self.begin(job);
            }
        }
        if self.rows.is_empty() {
            // A scheduler that holds back with nothing running would wait for ever; it is asked again.
            std::thread::yield_now();
            return;
        }
        self.prefill();
        self.decode();
    }

    fn drop_cancelled(&mut self) {
        let cancelled = |(id, job): (&u64, &Job)| job.line.is_cancelled().then_some(*id);
        let gone: Vec<u64> = self.waiting.iter().filter_map(cancelled).collect();
        for id in gone {
            self.scheduler.remove(id);
            if let Some(job) = self.waiting.remove(&id) {
                // It ends as one that has begun does, without tokens.
                self.begin(job);
            }
        }
        for row in &mut self.rows {
            if row.line.is_cancelled() && !row.decoder.is_done() {
                row.decoder.stop(FinishReason::Cancelled);
            }
        }
        self.finish_done();
    }

    fn begin(&mut self, job: Job) {
        let Job { request, line, submitted } = job;
        let queued_ms = submitted.elapsed().as_secs_f64() * 1e3;
        match guarded(|| self.start(&request)) {
            Ok((mut decoder, text)) => {
                if line.is_cancelled() {
                    decoder.stop(FinishReason::Cancelled);
                }
                self.rows.push(Row { decoder, text, line, queued_ms });
            }
            Err(error) => line.send(Err(error)),
        }
    }

    fn start(&self, request: &Request) -> Result<(Decoder<'a>, Option<TextStream<'a>>)> {
        let loaded = self.loaded;
        let text = match &loaded.tokenizer {
            Some(tokenizer) => Some(TextStream::new(tokenizer, &request.stop)?),
            None if request.stop.is_empty() => None,
            None => {
                let got = request.stop.join(", ");
                return Err(Error::argument("stop string", got, "the model has no tokenizer"));
            }
        };
        let mut options: GenerateOptions = request.options.clone();
        options.eos_token_ids.extend(&loaded.eos_token_ids);
        options.prefill_step = options.prefill_step.min(self.options.prefill_step);
        if let Some(most) = loaded.max_context {
            let length = request.prompt.len();
            if length >= most {
                let got = format!("{length} tokens long");
                let reason = format!("a sequence has up to {most}, one of them generated");
                return Err(Error::argument("prompt", got, reason));
            }
            options.max_tokens = options.max_tokens.min(most - length);
        }
        let decoder = Decoder::new(loaded.model.as_ref(), &request.prompt, &options)?;
        Ok((decoder, text))
    }

    /// A piece of the prompt that has waited longest.
    fn prefill(&mut self) {
        let reading = |row: &&mut Row<'_>| !row.decoder.is_ready() && !row.decoder.is_done();
        let Some(row) = self.rows.iter_mut().find(reading) else { return };
        match guarded(|| row.decoder.prefill_piece()) {
            Ok(_) => row.line.send(Ok(Event::Prefill(row.decoder.progress()))),
            Err(error) => {
                row.line.send(Err(error));
                row.text = None;
                row.line.cancelled.store(true, Ordering::Relaxed);
            }
        }
    }

    fn decode(&mut self) {
        let mut ready: Vec<&mut Row<'a>> =
            self.rows.iter_mut().filter(|row| row.decoder.is_ready()).collect();
        let mut decoders: Vec<&mut Decoder<'a>> =
            ready.iter_mut().map(|row| &mut row.decoder).collect();
        let result = guarded(|| Decoder::round(&mut decoders));
        match result {
            Ok(tokens) => {
                for (row, token) in ready.iter_mut().zip(tokens) {
                    if let Some(token) = token {
                        row.say(token);
                    }
                }
                self.finish_done();
            }
            Err(error) => {
                // Whose fault it was is not known, and nothing is known of the caches.
                let reason = error.to_string();
                let (failed, others): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut self.rows).into_iter().partition(|r| r.decoder.is_ready());
                self.rows = others;
                for row in failed {
                    row.line.send(Err(Error::engine(reason.clone())));
                }
            }
        }
    }

    fn finish_done(&mut self) {
        if !self.rows.iter().any(|row| row.decoder.is_done()) {
            return;
        }
        let (done, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.rows).into_iter().partition(|row| row.decoder.is_done());
        self.rows = others;
        for Row { decoder, text, line, queued_ms } in done {
            let finish = || {
                let text = text.map_or_else(|| Ok(String::new()), TextStream::finish)?;
                let (generation, _) = decoder.finish()?;
                Ok(Event::Finished(Finished { text, generation, queued_ms }))
            };
            line.send(guarded(finish));
        }
    }
}

impl Row<'_> {
    fn say(&mut self, token: Token) {
        let Some(stream) = &mut self.text else {
            return self.line.send(Ok(Event::Token { token, text: String::new() }));
        };
        match stream.push(token) {
            Ok(text) => {
                if stream.stopped().is_some() {
                    self.decoder.stop(FinishReason::StopString);
                }
                self.line.send(Ok(Event::Token { token, text }));
            }
            Err(error) => {
                self.line.send(Err(error));
                self.decoder.stop(FinishReason::Cancelled);
            }
        }
    }
}

/// An error in place of a panic.
fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(Error::engine(format!("a panic: {}", words(&*panic)))))
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

//! What comes back from a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::Engine;
use crate::decoder::Progress;
use crate::error::{Error, Result};
use crate::generate::{FinishReason, Generation, Token};

/// What happens to a request, in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// A piece of the prompt was read.
    Prefill(Progress),
    /// A token was generated.
    Token {
        /// It.
        token: Token,
        /// The text that became certain; empty without a tokenizer.
        text: String,
    },
    /// The end; nothing follows.
    Finished(Finished),
}

/// How a request ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Text that had been held back: the start of what might have become a character or a stop string.
    pub text: String,
    /// Its tokens, counts and speeds.
    pub generation: Generation,
    /// Milliseconds before its prompt was begun.
    pub queued_ms: f64,
}

impl Finished {
    /// Why it ended.
    pub fn reason(&self) -> FinishReason {
        self.generation.finish_reason
    }
}

/// All of a request's answer.
#[derive(Debug, Clone)]
pub struct Completion {
    /// Its text, empty without a tokenizer.
    pub text: String,
    /// Its tokens, counts and speeds.
    pub generation: Generation,
}

/// The events of a request: an iterator that waits for each, and ends after [`Event::Finished`] or an error. Dropping it
/// cancels the request.
#[derive(Debug)]
pub struct RequestStream {
    events: Receiver<Result<Event>>,
    cancelled: Arc<AtomicBool>,
    ended: bool,
    /// Keeps the engine alive.
    _engine: Engine,
}

impl RequestStream {
    pub(super) fn new(
        events: Receiver<Result<Event>>,
        cancelled: Arc<AtomicBool>,
        engine: Engine,
    ) -> Self {
        Self { events, cancelled, ended: false, _engine: engine }
    }

    /// Waits at most `timeout` for the next event; `None` when none came, or none will come.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<Result<Event>> {
        if self.ended {
            return None;
        }
        match self.events.recv_timeout(timeout) {
            Ok(event) => Some(self.pass(event)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(self.pass(Err(ended()))),
        }
    }

    /// Cancels the request from elsewhere, another thread for instance.
    pub fn canceller(&self) -> Canceller {
        Canceller(self.cancelled.clone())
    }

    /// Waits for all of it.
    ///
    /// # Errors
    /// Those of the request.
    pub fn wait(mut self) -> Result<Completion> {
        let mut all = String::new();
        for event in &mut self {
            match event? {
                Event::Prefill(_) => {}
                Event::Token { text, .. } => all.push_str(&text),
                Event::Finished(Finished { text, generation, .. }) => {
                    all.push_str(&text);
                    return Ok(Completion { text: all, generation });
                }
            }
        }
        Err(ended())
    }

    fn pass(&mut self, event: Result<Event>) -> Result<Event> {
        self.ended = matches!(event, Err(_) | Ok(Event::Finished(_)));
        event
    }
}

fn ended() -> Error {
    Error::engine("its thread has ended")
}

impl Iterator for RequestStream {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().unwrap_or_else(|_| Err(ended()));
        Some(self.pass(event))
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Cancels one request: its stream then ends with [`FinishReason::Cancelled`].
#[derive(Debug, Clone)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Cancels it, unless it has ended.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

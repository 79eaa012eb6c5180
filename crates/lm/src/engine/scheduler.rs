//! Which request runs next.

use std::collections::VecDeque;

/// A request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Its number, in order of arrival.
    pub id: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Most tokens that it generates.
    pub max_tokens: usize,
}

/// Decides when a request begins. It is asked between steps, on the engine's thread.
pub trait Scheduler: Send {
    /// A request has come.
    fn push(&mut self, request: Waiting);

    /// A request that waited is gone.
    fn remove(&mut self, id: u64);

    /// The request to begin now, beside `running` others; `None` to let them go on.
    fn next(&mut self, running: usize) -> Option<u64>;
}

/// First come, first served, up to a number at a time.
#[derive(Debug)]
pub struct Fifo {
    max_batch: usize,
    queue: VecDeque<u64>,
}

impl Fifo {
    /// Up to `max_batch` at a time, at least one.
    pub fn new(max_batch: usize) -> Self {
        Self { max_batch: max_batch.max(1), queue: VecDeque::new() }
    }
}

impl Scheduler for Fifo {
    fn push(&mut self, request: Waiting) {
        self.queue.push_back(request.id);
    }

    fn remove(&mut self, id: u64) {
        self.queue.retain(|waiting| *waiting != id);
    }

    fn next(&mut self, running: usize) -> Option<u64> {
        if running < self.max_batch { self.queue.pop_front() } else { None }
    }
}

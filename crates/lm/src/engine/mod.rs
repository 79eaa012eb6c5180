//! Many sequences on one thread: the thread owns the model, a handle submits requests from anywhere.
//!
//! MLX's arrays belong to the thread that made them, so the model is loaded there and stays there. Sequences decode
//! together, one forward pass for all of them, and join and leave between steps; a prompt that joins is read in pieces
//! between the others' steps. Each sequence has the tokens that it has alone.
//!
//! ```no_run
//! # fn main() -> zmlx_lm::Result<()> {
//! use zmlx_lm::engine::{Engine, EngineOptions, Event, Request};
//!
//! let folder = std::path::Path::new("models/demo");
//! let engine = Engine::open(folder, Default::default(), EngineOptions::default())?;
//! let tokenizer = zmlx_lm::Tokenizer::load(folder)?;
//! let prompt = tokenizer.encode_prompt("The shell reads commands from")?;
//! for event in engine.submit(Request::new(prompt))? {
//!     match event? {
//!         Event::Token { text, .. } => print!("{text}"),
//!         Event::Finished(finished) => println!("{} [{:?}]", finished.text, finished.reason()),
//!         Event::Prefill(_) => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod scheduler;
mod stream;
mod worker;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

pub use self::scheduler::{Fifo, Scheduler, Waiting};
pub use self::stream::{Canceller, Completion, Event, Finished, RequestStream};
use self::worker::Job;
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use crate::models::{LoadedModel, Model, load};
use crate::patch::{PatchOptions, patch};
use crate::tokenizer::Tokenizer;

/// What to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// How, and when to stop. The model's own ids of the end of a sequence are added to those given here.
    pub options: GenerateOptions,
    /// Texts that end generation and are no part of it; they need a tokenizer.
    pub stop: Vec<String>,
}

impl Request {
    /// The default options after `prompt`.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self { prompt, options: GenerateOptions::default(), stop: Vec::new() }
    }
}

/// What an engine runs.
pub struct EngineModel {
    /// The model.
    pub model: Box<dyn Model>,
    /// Turns tokens into text, where there is one.
    pub tokenizer: Option<Tokenizer>,
    /// Ids that end every sequence, unless a request ignores them.
    pub eos_token_ids: Vec<u32>,
    /// Most tokens of a sequence, its prompt included.
    pub max_context: Option<usize>,
}

impl EngineModel {
    /// A loaded model with its folder's tokenizer.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn new(loaded: LoadedModel, folder: &Path) -> Result<Self> {
        let tokenizer = match Tokenizer::exists(folder) {
            true => Some(Tokenizer::load(folder)?),
            false => None,
        };
        let own = &loaded.config.eos_token_ids;
        let eos_token_ids = match &tokenizer {
            Some(tokenizer) => tokenizer.eos_token_ids(own),
            None => own.clone(),
        };
        Ok(Self { model: loaded.model, tokenizer, eos_token_ids, max_context: None })
    }
}

/// How an engine shares its time.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Most sequences that decode together.
    pub max_batch: usize,
    /// Most prompt tokens that are read between two steps of the others.
    pub prefill_step: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_batch: 8, prefill_step: 512 }
    }
}

/// The handle of an engine. Clones are the same engine; when the last one and the last stream are gone, its thread ends.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.jobs = None; // the worker sees that nobody is left
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id())
        {
            // It catches panics of requests; one of its own has nobody left to hear of it.
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// Loads and patches a checkpoint folder on a thread of its own.
    ///
    /// # Errors
    /// Those of loading and patching.
    pub fn open(folder: &Path, patches: PatchOptions, options: EngineOptions) -> Result<Self> {
        let folder = folder.to_owned();
        let load = move || {
            let mut loaded = load(&folder)?;
            patch(&mut loaded, &patches)?;
            EngineModel::new(loaded, &folder)
        };
        Self::spawn(options, load)
    }

    /// Runs what `load` makes. `load` is called on the engine's thread, where everything of MLX's that belongs to the model
    /// has to be made; this waits for it.
    ///
    /// # Errors
    /// Those of `load`; `Engine` when it panics.
    pub fn spawn(
        options: EngineOptions,
        load: impl FnOnce() -> Result<EngineModel> + Send + 'static,
    ) -> Result<Self> {
        let scheduler = Box::new(Fifo::new(options.max_batch));
        Self::spawn_with(options, scheduler, load)
    }

    /// [`Engine::spawn`] with another order of requests.
    ///
    /// # Errors
    /// Those of `load`; `Engine` when it panics.
    pub fn spawn_with(
        options: EngineOptions,
        scheduler: Box<dyn Scheduler>,
        load: impl FnOnce() -> Result<EngineModel> + Send + 'static,
    ) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let run = move || {
            let loaded = match load() {
                Ok(loaded) => loaded,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            worker::serve(&loaded, &options, scheduler, &inbox);
        };
        let thread = thread::Builder::new()
            .name("zmlx-engine".to_owned())
            .spawn(run)
            .map_err(|error| Error::engine(format!("its thread cannot start: {error}")))?;
        is_ready.recv().unwrap_or_else(|_| Err(Error::engine("loading the model panicked")))?;
        Ok(Self(Arc::new(Shared { jobs: Some(jobs), thread: Mutex::new(Some(thread)) })))
    }

    /// Queues a request. What is wrong with it comes out of the stream. Dropping the stream cancels the request.
    ///
    /// # Errors
    /// `Engine` when its thread has ended.
    pub fn submit(&self, request: Request) -> Result<RequestStream> {
        let (events, receiver) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let job = Job::new(request, events, cancelled.clone());
        let sent = self.0.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(Error::engine("its thread has ended"));
        }
        Ok(RequestStream::new(receiver, cancelled, self.clone()))
    }
}

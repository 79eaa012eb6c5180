//! Processes of their own: one for each variant, which take requests and give answers line by line.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zmlx_capsule::{EngineKind, Variant};

use super::{Engine, Outcome};
use crate::case::Work;
use crate::measure::Cancelled;
use crate::variant::VariantSpec;
use crate::{Error, Result};

/// How often a wait looks whether it was cancelled.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a worker is asked, one JSON object on a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// What there is to say of a variant.
    Describe(Variant),
    /// To run a case once.
    Run {
        /// The variant.
        variant: Variant,
        /// The case.
        work: Work,
    },
}

/// What it answers, likewise.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Described(Variant),
    Ran(Outcome),
    Error(String),
}

/// How to start a worker for a variant.
type Start<'a> = Box<dyn Fn(&VariantSpec) -> Command + 'a>;

/// Variants in processes of their own.
pub struct Worker<'a> {
    start: Start<'a>,
    /// What can be told of cases that it has no part in.
    refuse: fn(&VariantSpec, &Work) -> Option<String>,
    running: BTreeMap<String, Process>,
}

struct Process {
    name: String,
    child: Child,
    /// Closed to end it.
    requests: Option<ChildStdin>,
    answers: Receiver<std::io::Result<String>>,
}

impl<'a> Worker<'a> {
    /// - `start`: makes the command of a variant's process
    pub fn new(start: Box<dyn Fn(&VariantSpec) -> Command + 'a>) -> Self {
        Self { start, refuse: |_, _| None, running: BTreeMap::new() }
    }

    /// mlx-lm in a Python.
    ///
    /// - `model`: folder of the checkpoint
    pub fn mlx_lm(python: &'a str, model: &'a std::path::Path) -> Self {
        const SCRIPT: &str = include_str!("mlx_lm_worker.py");
        let start = move |_: &VariantSpec| {
            let mut command = Command::new(python);
            command.args(["-c", SCRIPT]).arg(model).arg(mlx::default_device().to_string());
            command
        };
        let refuse = |_: &VariantSpec, work: &Work| {
            let batch = work.case.batch;
            (batch > 1).then(|| format!("mlx-lm is measured alone, not {batch} at once"))
        };
        Self { refuse, ..Self::new(Box::new(start)) }
    }

    fn ask(
        &mut self,
        spec: &VariantSpec,
        request: &Request,
        cancelled: Cancelled<'_>,
    ) -> Result<Option<Answer>> {
        if !self.running.contains_key(&spec.name) {
            let process = Process::start((self.start)(spec), &spec.name)?;
            self.running.insert(spec.name.clone(), process);
        }
        let Some(process) = self.running.get_mut(&spec.name) else { return Ok(None) };
        let answer = process.ask(request, cancelled);
        if !matches!(answer, Ok(Some(_))) {
            // it may be in the middle of something that nobody waits for
            self.running.remove(&spec.name);
        }
        match answer? {
            Some(Answer::Error(reason)) => Err(Error::program(&spec.name, reason)),
            answer => Ok(answer),
        }
    }
}

impl Process {
    fn start(mut command: Command, name: &str) -> Result<Self> {
        let program = command.get_program().display().to_string();
        // Ctrl-C is for the one who asks; a worker ends when there is nothing more to read
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child =
            child.map_err(|source| Error::Io { verb: "start", path: program, source })?;
        let (requests, output) = (child.stdin.take(), child.stdout.take());
        let (sender, answers) = mpsc::channel();
        if let Some(output) = output {
            // ends with the process, or when nobody listens any more
            thread::spawn(move || {
                BufReader::new(output).lines().all(|line| sender.send(line).is_ok())
            });
        }
        Ok(Self { name: name.to_owned(), child, requests, answers })
    }

    fn ask(&mut self, request: &Request, cancelled: Cancelled<'_>) -> Result<Option<Answer>> {
        let failed = |reason: String| Error::program(&self.name, reason);
        let mut line = serde_json::to_vec(request).map_err(|error| failed(error.to_string()))?;
        line.push(b'\n');
        if let Some(requests) = &mut self.requests {
            // a process that has ended is told apart below
            requests.write_all(&line).and_then(|()| requests.flush()).ok();
        }
        loop {
            match self.answers.recv_timeout(PATIENCE) {
                Ok(Ok(line)) => {
                    let answer = serde_json::from_str(&line);
                    return answer.map(Some).map_err(|error| {
                        failed(format!("its process answered {line:?}, no answer: {error}"))
                    });
                }
                Ok(Err(error)) => return Err(failed(format!("cannot read its answer: {error}"))),
                Err(RecvTimeoutError::Timeout) if cancelled() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed("its process ended; what it said stands above".to_owned()));
                }
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // an idle one ends by itself when there is nothing more to read
        self.requests = None;
        for _ in 0..20 {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            thread::sleep(PATIENCE / 10);
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Engine for Worker<'_> {
    fn describe(&mut self, spec: &VariantSpec, variant: &mut Variant) -> Result<()> {
        let request = Request::Describe(variant.clone());
        match self.ask(spec, &request, &|| false)? {
            Some(Answer::Described(described)) => {
                *variant = described;
                Ok(())
            }
            _ => Err(Error::program(&spec.name, "it did not say what it is")),
        }
    }

    fn refusal(&self, spec: &VariantSpec, work: &Work) -> Option<String> {
        (self.refuse)(spec, work)
    }

    fn run(
        &mut self,
        spec: &VariantSpec,
        work: &Work,
        cancelled: Cancelled<'_>,
    ) -> Result<Option<Outcome>> {
        let variant = spec.describe();
        let mut work = work.clone();
        if spec.engine != EngineKind::Zmlx {
            // other programs do not know of caps
            for row in &mut work.rows {
                let keep =
                    work.case.depth.max(1) + spec.capped(row.len().saturating_sub(work.case.depth));
                row.truncate(keep);
            }
            work.case.generate_tokens = spec.capped(work.case.generate_tokens);
        }
        match self.ask(spec, &Request::Run { variant, work }, cancelled)? {
            Some(Answer::Ran(outcome)) => Ok(Some(outcome)),
            None => Ok(None),
            Some(_) => Err(Error::program(&spec.name, "it did not say how the run went")),
        }
    }
}

/// Answers requests until there are no more: the other end of [`Worker`].
///
/// # Errors
/// `Io`. What goes wrong with a request is its answer.
pub fn serve(engine: &mut dyn Engine, input: impl BufRead, mut output: impl Write) -> Result<()> {
    let io = |verb| move |source| Error::Io { verb, path: "the pipe".to_owned(), source };
    for line in input.lines() {
        let line = line.map_err(io("read"))?;
        let answer = answer(engine, &line).unwrap_or_else(|error| Answer::Error(error.to_string()));
        let text = serde_json::to_string(&answer).map_err(|error| io("write")(error.into()))?;
        writeln!(output, "{text}").and_then(|()| output.flush()).map_err(io("write"))?;
    }
    Ok(())
}

fn answer(engine: &mut dyn Engine, line: &str) -> Result<Answer> {
    let request: Request = serde_json::from_str(line)
        .map_err(|error| Error::argument("request", line, error.to_string()))?;
    match request {
        Request::Describe(mut variant) => {
            engine.describe(&VariantSpec::of(&variant)?, &mut variant)?;
            Ok(Answer::Described(variant))
        }
        Request::Run { variant, work } => {
            match engine.run(&VariantSpec::of(&variant)?, &work, &|| false)? {
                Some(outcome) => Ok(Answer::Ran(outcome)),
                None => Ok(Answer::Error("it was cancelled".to_owned())),
            }
        }
    }
}

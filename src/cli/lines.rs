//! Lines that somebody types, or that are piped in.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Behavior, Config, Editor};
use signal_hook::consts::SIGINT;

/// Lines that the history keeps.
const HISTORY_LINES: usize = 1000;
/// What the shell reports of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of what is piped in.
    End,
}

/// Where lines come from.
pub(super) struct Lines {
    source: Source,
}

enum Source {
    Terminal { editor: Box<Editor<(), FileHistory>>, history: Option<PathBuf> },
    Pipe(io::Lines<io::StdinLock<'static>>),
}

impl Lines {
    /// Standard input: with line editing when it is a terminal.
    ///
    /// - `history`: the file that keeps what was typed
    pub(super) fn open(history: Option<PathBuf>) -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self { source: Source::Pipe(io::stdin().lines()) });
        }
        let config = Config::builder()
            // stdout holds answers alone
            .behavior(Behavior::PreferTerm)
            .history_ignore_space(true)
            .max_history_size(HISTORY_LINES)?
            .build();
        let mut editor = Box::new(Editor::with_config(config)?);
        if let Some(path) = &history {
            // the first time there is none
            editor.load_history(path).ok();
        }
        Ok(Self { source: Source::Terminal { editor, history } })
    }

    /// Whether somebody types.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self.source, Source::Terminal { .. })
    }

    /// The next line; one that ends in a backslash goes on in the next.
    pub(super) fn read(&mut self) -> anyhow::Result<Line> {
        let mut text = String::new();
        loop {
            let prompt = if text.is_empty() { "> " } else { ". " };
            match self.read_one(prompt)? {
                Line::Text(line) => match line.strip_suffix('\\') {
                    Some(start) => {
                        text.push_str(start);
                        text.push('\n');
                    }
                    None => {
                        text.push_str(&line);
                        break;
                    }
                },
                Line::End if !text.is_empty() => break,
                other => return Ok(other),
            }
        }
        self.remember(&text);
        Ok(Line::Text(text))
    }

    fn read_one(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match &mut self.source {
            Source::Terminal { editor, .. } => match editor.readline(prompt) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
            Source::Pipe(lines) => match lines.next() {
                Some(line) => Ok(Line::Text(line.context("cannot read standard input")?)),
                None => Ok(Line::End),
            },
        }
    }

    /// A history that cannot be written is no reason to stop.
    fn remember(&mut self, text: &str) {
        let Source::Terminal { editor, history } = &mut self.source else { return };
        editor.add_history_entry(text).ok();
        if let Some(path) = history {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).ok();
            }
            editor.append_history(path).ok();
        }
    }
}

/// Ctrl-C while an answer is written: the answer stops. A second one, before that has happened, ends the program.
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over Ctrl-C from now on.
    pub(super) fn listen() -> anyhow::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        // Handlers run in this order: the first one acts on what the second one did the last time.
        signal_hook::flag::register_conditional_shutdown(SIGINT, INTERRUPTED, flag.clone())
            .and_then(|_| signal_hook::flag::register(SIGINT, flag.clone()))
            .context("cannot listen to Ctrl-C")?;
        Ok(Self(flag))
    }

    /// Forgets an earlier one.
    pub(super) fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

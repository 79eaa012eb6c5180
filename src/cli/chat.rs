//! `zmlx chat`

use std::fs::File;
use std::io::Write;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::Value;
use zmlx::lm::config::ModelConfig;

use super::kv::KvOptions;
use super::lines::{Interrupt, Line, Lines};
use super::options::{ComputeOptions, ModelOptions, OutputOptions};
use super::patching::PatchingOptions;
use super::prompts::{Prompter, message};
use super::render::{Answer, Closed, Ui, rate};
use super::sampling::{SamplingOptions, StoppingOptions};
use super::session::{Expected, Reply, Session, finish_reason};
use super::{CommandArgs, Examples, Exit, place};

/// Arguments of `zmlx chat`.
#[derive(Debug, clap::Args)]
pub(super) struct Chat {
    #[command(flatten)]
    pub(super) model: ModelOptions,
    /// What the model is to keep in mind
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub(super) system: Option<String>,
    #[command(flatten)]
    pub(super) sampling: SamplingOptions,
    #[command(flatten)]
    pub(super) stopping: StoppingOptions,
    #[command(flatten)]
    pub(super) kv: KvOptions,
    #[command(flatten)]
    pub(super) patching: PatchingOptions,
    #[command(flatten)]
    pub(super) compute: ComputeOptions,
    #[command(flatten)]
    pub(super) output: OutputOptions,
}

/// What can be typed besides messages.
const COMMANDS: &[(&str, &str)] = &[
    ("/help", "list these"),
    ("/reset", "forget the conversation, not the system message"),
    ("/system TEXT", "what the model is to keep in mind; without TEXT nothing"),
    ("/save FILE", "write the conversation to a new file, as JSON"),
    ("/exit", "leave, as Ctrl-D does"),
];

/// One line, understood.
#[derive(Debug, PartialEq, Eq)]
enum Request<'a> {
    Nothing,
    Say(&'a str),
    Help,
    Reset,
    System(&'a str),
    Save(&'a str),
    Exit,
    Unknown(&'a str),
}

impl<'a> Request<'a> {
    /// A line is a command when its first word is a slash and letters: `/etc/passwd` is none.
    fn of(line: &'a str) -> Self {
        let text = line.trim();
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let name = line.strip_prefix('/').map(|_| &word[1..]);
        if !name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_alphabetic())) {
            return if text.is_empty() { Self::Nothing } else { Self::Say(text) };
        }
        match word {
            "/help" => Self::Help,
            "/reset" => Self::Reset,
            "/system" => Self::System(rest.trim()),
            "/save" => Self::Save(rest.trim()),
            "/exit" => Self::Exit,
            other => Self::Unknown(other),
        }
    }
}

/// One answer, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Turn {
    turn: usize,
    token_ids: Vec<u32>,
    text: String,
    prompt_tokens: usize,
    /// Of these, how many the cache held already.
    cached_tokens: usize,
    generated_tokens: usize,
    decode_tok_per_s: Option<f64>,
    ttft_ms: f64,
    finish_reason: &'static str,
}

/// The whole of it.
#[derive(Debug, Default, Serialize)]
struct Summary {
    turns: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    generated_tokens: usize,
    patched_modules: usize,
    precision: &'static str,
}

impl CommandArgs for Chat {
    const ABOUT: &'static str = "Talk to a model, turn by turn";
    const EXAMPLES: Examples = &[
        ("Talk, and leave with Ctrl-D", "zmlx chat mlx-community/Qwen3-30B-A3B-4bit"),
        (
            "With something to keep in mind",
            "zmlx chat /models/qwen3 --system \"Answer in one sentence.\" --temp 0.7",
        ),
        ("One message per line of a file", "zmlx chat /models/qwen3 --json < messages.txt"),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let device = self.compute.apply()?;
        let folder = self.model.folder(ui)?;
        ModelConfig::load(&folder)?;
        let prompter = Prompter::load(&folder, true)?;
        ensure!(
            prompter.tokenizer.is_some(),
            "the model has no tokenizer.json, so it cannot chat; see zmlx generate --prompt-tokens"
        );
        // refuses a model without a template before its weights are read
        prompter.conversation(&[message("user", "?")])?;
        let expected = Expected { prompt: None, cache: self.kv.options() };
        let session =
            Session::load(&folder, prompter, expected, &self.patching, &self.compute, device, ui)?;
        ui.begin("chat", &session.begin())?;
        let lines = Lines::open(place::chat_history())?;
        let interrupt = if lines.is_terminal() { Some(Interrupt::listen()?) } else { None };
        if lines.is_terminal() {
            ui.note("Ctrl-C stops an answer, Ctrl-D leaves, /help lists what else there is");
        }
        let summary = Summary {
            patched_modules: session.patch.patched_modules(),
            precision: session.precision(),
            ..Summary::default()
        };
        let mut conversation = Conversation {
            system: self.system,
            messages: Vec::new(),
            sampling: self.sampling,
            stopping: self.stopping,
            session,
            interrupt,
            summary,
        };
        conversation.run(lines, ui)?;
        ui.finish(&conversation.summary)?;
        Ok(Exit::Done)
    }
}

struct Conversation {
    system: Option<String>,
    /// Turn by turn, without the system message.
    messages: Vec<Value>,
    sampling: SamplingOptions,
    stopping: StoppingOptions,
    session: Session,
    /// `None` when nobody sits there.
    interrupt: Option<Interrupt>,
    summary: Summary,
}

impl Conversation {
    fn run(&mut self, mut lines: Lines, ui: &mut Ui) -> anyhow::Result<()> {
        loop {
            let line = match lines.read()? {
                Line::Text(line) => line,
                Line::Interrupted => continue,
                Line::End => return Ok(()),
            };
            let result = match Request::of(&line) {
                Request::Exit => return Ok(()),
                Request::Nothing => Ok(()),
                Request::Say(text) => self.say(text, ui),
                Request::Help => {
                    for (command, what) in COMMANDS {
                        ui.note(&format!("{command:<13} {what}"));
                    }
                    Ok(())
                }
                Request::Reset => {
                    self.messages.clear();
                    Ok(())
                }
                Request::System(text) => {
                    self.system = (!text.is_empty()).then(|| text.to_owned());
                    Ok(())
                }
                Request::Save(file) => self.save(file, ui),
                Request::Unknown(word) => {
                    ui.note(&format!("{word} is no command; /help lists them"));
                    Ok(())
                }
            };
            match result {
                // who sits there can go on
                Err(error) if lines.is_terminal() && !error.is::<Closed>() => {
                    ui.error(&error);
                }
                result => result?,
            }
        }
    }

    /// The conversation as the model gets it.
    fn all(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| message("system", text));
        system.chain(self.messages.iter().cloned()).collect()
    }

    fn say(&mut self, text: &str, ui: &mut Ui) -> anyhow::Result<()> {
        self.messages.push(message("user", text));
        let reply = self.answer(ui);
        match &reply {
            Ok(Reply { generation, text: Some(text) }) if !generation.token_ids.is_empty() => {
                self.messages.push(message("assistant", text));
            }
            // as if it had not been said
            _ => {
                self.messages.pop();
            }
        }
        self.show(reply?, ui)
    }

    fn answer(&mut self, ui: &mut Ui) -> anyhow::Result<Reply> {
        let prompt = self.session.prompter.conversation(&self.all())?;
        let interrupt = self.interrupt.as_ref();
        let stopped = || interrupt.is_some_and(Interrupt::is_set);
        let reply = self.session.answer(&prompt, &self.sampling, &self.stopping, &stopped, ui);
        if let Some(interrupt) = interrupt {
            interrupt.reset();
        }
        reply
    }

    fn show(&mut self, reply: Reply, ui: &mut Ui) -> anyhow::Result<()> {
        let generation = reply.generation;
        let turn = Turn {
            turn: self.summary.turns,
            text: reply.text.unwrap_or_default(),
            prompt_tokens: generation.prompt_tokens,
            cached_tokens: generation.reused_tokens,
            generated_tokens: generation.token_ids.len(),
            decode_tok_per_s: generation.decode_tok_per_s,
            ttft_ms: generation.ttft_ms,
            finish_reason: finish_reason(generation.finish_reason),
            token_ids: generation.token_ids,
        };
        self.summary.turns += 1;
        self.summary.prompt_tokens += turn.prompt_tokens;
        self.summary.cached_tokens += turn.cached_tokens;
        self.summary.generated_tokens += turn.generated_tokens;
        ui.text("\n")?;
        if self.interrupt.is_some() {
            ui.note(&format!(
                "[{} tokens at {} tok/s; {} of {} prompt tokens were in the cache; {}]",
                turn.generated_tokens,
                rate(turn.decode_tok_per_s),
                turn.cached_tokens,
                turn.prompt_tokens,
                turn.finish_reason,
            ));
        }
        ui.event("turn", &turn)
    }

    fn save(&self, file: &str, ui: &Ui) -> anyhow::Result<()> {
        if file.is_empty() {
            ui.note("/save needs the name of a file");
            return Ok(());
        }
        let text = serde_json::to_string_pretty(&self.all())?;
        let cannot = || format!("cannot write {file}");
        // what is there already stays
        let mut out = File::create_new(file).with_context(cannot)?;
        out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).with_context(cannot)?;
        ui.note(&format!("{file}: {} messages", self.all().len()));
        Ok(())
    }
}

impl Answer for Summary {
    /// The answers have been shown.
    fn text(&self) -> String {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_or_something_to_say() {
        for (line, request) in [
            ("", Request::Nothing),
            ("  ", Request::Nothing),
            (" Why? ", Request::Say("Why?")),
            ("/help", Request::Help),
            ("/reset ", Request::Reset),
            ("/system Be  brief. ", Request::System("Be  brief.")),
            ("/system", Request::System("")),
            ("/save a b.json", Request::Save("a b.json")),
            ("/exit", Request::Exit),
            ("/what now", Request::Unknown("/what")),
            ("/", Request::Unknown("/")),
            (" /help", Request::Say("/help")),
            ("/etc/passwd is what?", Request::Say("/etc/passwd is what?")),
            ("/*", Request::Say("/*")),
        ] {
            assert_eq!(Request::of(line), request, "{line:?}");
        }
    }

    #[test]
    fn every_command_is_listed() {
        for (command, _) in COMMANDS {
            let word = command.split(' ').next().unwrap_or_default();
            assert!(!matches!(Request::of(word), Request::Unknown(_) | Request::Say(_)), "{word}");
            assert!(include_str!("../../docs/cli.md").contains(&format!("`{command}`")));
        }
    }
}

//! `zmlx generate`

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::chat::Chat;
use super::kv::{KvOptions, PromptCacheOptions};
use super::options::{ComputeOptions, ModelOptions, OutputOptions};
use super::patching::PatchingOptions;
use super::prompts::{Asked, PromptOptions, Prompter};
use super::render::{Answer, Ui, bytes, rate};
use super::sampling::{SamplingOptions, StoppingOptions};
use super::session::{Expected, Session, SessionBegin, finish_reason};
use super::{CommandArgs, Examples, Exit};

/// Arguments of `zmlx generate`.
#[derive(Debug, clap::Args)]
pub(super) struct Generate {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    prompt: PromptOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
    #[command(flatten)]
    stopping: StoppingOptions,
    #[command(flatten)]
    kv: KvOptions,
    #[command(flatten)]
    cache: PromptCacheOptions,
    #[command(flatten)]
    patching: PatchingOptions,
    #[command(flatten)]
    compute: ComputeOptions,
    /// Write what the CPU's threads did to a file that Chrome's about:tracing opens, and a table of it to stderr
    #[arg(long, value_name = "FILE", help_heading = "Compute")]
    profile: Option<PathBuf>,
    #[command(flatten)]
    output: OutputOptions,
}

/// Spans of a profile: some hundred tokens of a large model.
const PROFILE_SPANS: usize = 1 << 20;

/// What `--json` begins with.
#[derive(Debug, Serialize)]
struct Begin {
    #[serde(flatten)]
    session: SessionBegin,
    prompt_token_ids: Vec<u32>,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Summary {
    token_ids: Vec<u32>,
    /// `None` without a tokenizer.
    text: Option<String>,
    prompt_tokens: usize,
    prompt_tok_per_s: f64,
    generated_tokens: usize,
    decode_tok_per_s: Option<f64>,
    ttft_ms: f64,
    peak_memory_bytes: usize,
    patched_modules: usize,
    precision: &'static str,
    finish_reason: &'static str,
    /// Why steps were not recorded though the model is patched for it.
    not_recorded: Option<String>,
}

impl CommandArgs for Generate {
    const ABOUT: &'static str = "Generate text or tokens after a prompt";
    const EXAMPLES: Examples = &[
        ("Ask the model that comes with zmlx", "zmlx generate -p \"What does ls do?\""),
        ("Ask about a file", "zmlx generate /models/qwen3 < question.txt"),
        (
            "Draw instead of taking the likeliest, again the same with -s",
            "zmlx generate /models/qwen3 -p \"Name a colour\" --temp 0.7 --top-p 0.9 -s 1",
        ),
        ("Continue tokens, for a program", "zmlx generate --prompt-tokens 1,5,9 -n 16 --json"),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let device = self.compute.apply()?;
        let asked = self.prompt.read(self.model.is_demo(), ui)?;
        if matches!(asked, Asked::Terminal) && self.can_chat(ui) {
            return self.into_chat().run(ui);
        }
        let folder = self.model.folder(ui)?;
        let prompter = Prompter::load(&folder, !self.prompt.no_chat_template)?;
        ensure!(
            self.stopping.stop.is_empty() || prompter.tokenizer.is_some(),
            "--stop: the model has no tokenizer.json, so its answer is no text"
        );
        let system = self.prompt.system.as_deref();
        let prompt = match &asked {
            Asked::Text(text) if self.cache.prompt_cache.is_some() => {
                prompter.rest_of_text(text)?
            }
            Asked::Text(text) => prompter.text(text, system)?,
            Asked::Tokens(tokens) => prompter.tokens(tokens),
            Asked::Terminal | Asked::Nothing => prompter.defaults(&folder)?.swap_remove(0),
        };
        if let (Asked::Terminal | Asked::Nothing, Some(text)) = (&asked, &prompt.text) {
            ui.note(&format!("no --prompt given; asking: {text}"));
        }
        let expected =
            Expected { prompt: Some(prompt.token_ids.as_slice()), cache: self.kv.options() };
        let mut session =
            Session::load(&folder, prompter, expected, &self.patching, &self.compute, device, ui)?;
        if let Some(path) = &self.cache.prompt_cache {
            session.continue_file(path, &self.model.name(&folder), &self.kv)?;
        }
        let prompt_token_ids = prompt.token_ids.clone();
        ui.begin("generate", &Begin { session: session.begin(), prompt_token_ids })?;
        let never = || false;
        if self.profile.is_some() {
            mlx::profile::start(PROFILE_SPANS)?;
        }
        let reply =
            session.answer(&prompt.token_ids, &self.sampling, &self.stopping, &never, ui)?;
        let profile = self.profile.as_ref().map(|path| (path, mlx::profile::stop()));
        let generation = reply.generation;
        if let Some(reason) = &generation.not_recorded {
            ui.note(&format!("note: steps were not recorded: {reason}"));
        }
        ui.finish(&Summary {
            text: reply.text,
            prompt_tokens: generation.prompt_tokens,
            prompt_tok_per_s: generation.prompt_tok_per_s,
            generated_tokens: generation.token_ids.len(),
            decode_tok_per_s: generation.decode_tok_per_s,
            ttft_ms: generation.ttft_ms,
            peak_memory_bytes: generation.peak_memory_bytes,
            patched_modules: session.patch.patched_modules(),
            precision: session.precision(),
            finish_reason: finish_reason(generation.finish_reason),
            not_recorded: generation.not_recorded,
            token_ids: generation.token_ids,
        })?;
        if let Some((path, profile)) = profile {
            std::fs::write(path, profile.to_chrome_trace())
                .with_context(|| format!("--profile {}", path.display()))?;
            ui.note(&format!("profile:\n{profile}"));
        }
        Ok(Exit::Done)
    }
}

impl Generate {
    /// The demo model is too small to talk to, and programs do not talk.
    fn can_chat(&self, ui: &Ui) -> bool {
        self.cache.prompt_cache.is_none()
            && self.profile.is_none()
            && !self.model.is_demo()
            && !self.prompt.no_chat_template
            && !ui.is_json()
    }

    fn into_chat(self) -> Chat {
        Chat {
            model: self.model,
            system: self.prompt.system,
            sampling: self.sampling,
            stopping: self.stopping,
            kv: self.kv,
            patching: self.patching,
            compute: self.compute,
            output: self.output,
        }
    }
}

impl Answer for Summary {
    /// What is still to be printed after the tokens.
    fn text(&self) -> String {
        match self.text {
            Some(_) => "\n".to_owned(),
            None => {
                let ids: Vec<String> = self.token_ids.iter().map(u32::to_string).collect();
                format!("{}\n", ids.join(","))
            }
        }
    }

    fn remark(&self) -> Option<String> {
        let fast = if self.precision == "exact" { "" } else { ", precision fast" };
        Some(format!(
            "{} prompt tokens at {:.1} tok/s, {} tokens at {} tok/s, peak {}, \
             {} modules patched{fast}",
            self.prompt_tokens,
            self.prompt_tok_per_s,
            self.generated_tokens,
            rate(self.decode_tok_per_s),
            bytes(self.peak_memory_bytes as u64),
            self.patched_modules,
        ))
    }
}

//! `zmlx generate`

use std::ops::ControlFlow;

use serde::Serialize;
use zmlx::lm::{self, Detokenizer, GenerateOptions, Sampling};

use super::options::{ComputeOptions, ModelOptions, OutputOptions, precision_name};
use super::patching::PatchingOptions;
use super::prompts::{Asked, PromptOptions, Prompter};
use super::render::{Answer, Ui, bytes, rate};
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
    patching: PatchingOptions,
    #[command(flatten)]
    compute: ComputeOptions,
    #[command(flatten)]
    _output: OutputOptions,
}

/// How tokens are chosen.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingOptions {
    /// Randomness; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temp: f32,
    /// Keep the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Keep tokens at least this probable relative to the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Seed of the random numbers; same seed, same text
    #[arg(short, long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

/// When to stop.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Stopping")]
pub(super) struct StoppingOptions {
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256, value_parser = parse_max_tokens)]
    max_tokens: usize,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
}

/// A number of tokens to generate.
pub(super) fn parse_max_tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1 token".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("expected a whole number".to_owned()),
    }
}

/// What `--json` begins with.
#[derive(Debug, Serialize)]
struct Begin {
    model: String,
    model_type: String,
    device: String,
    precision: &'static str,
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
        let folder = self.model.folder(ui)?;
        let prompter = Prompter::load(&folder, !self.prompt.no_chat_template)?;
        let system = self.prompt.system.as_deref();
        let prompt = match &asked {
            Asked::Text(text) => prompter.text(text, system)?,
            Asked::Tokens(tokens) => prompter.tokens(tokens),
            Asked::Terminal | Asked::Nothing => prompter.defaults(&folder)?.swap_remove(0),
        };
        if let (Asked::Terminal | Asked::Nothing, Some(text)) = (&asked, &prompt.text) {
            ui.note(&format!("no --prompt given; asking: {text}"));
        }
        let mut loaded = {
            let _spinner = ui.spinner("loading");
            lm::load(&folder)?
        };
        ui.notes(&loaded.notes);
        let precision = self.compute.precision();
        let model_type = loaded.config.model_type.clone();
        let patching = self.patching.options(precision);
        let patch = lm::patch(&mut loaded, &patching)?;
        ui.begin(
            "generate",
            &Begin {
                model: folder.display().to_string(),
                model_type,
                device: device.to_string(),
                precision: precision_name(precision),
                prompt_token_ids: prompt.token_ids.clone(),
            },
        )?;
        let options = GenerateOptions {
            max_tokens: self.stopping.max_tokens,
            sampling: self.sampling.sampling(),
            eos_token_ids: prompter.eos_token_ids(&loaded.config.eos_token_ids),
            ignore_eos: self.stopping.ignore_eos,
            ..GenerateOptions::default()
        };
        let mut stream = Stream::new(&prompter, ui);
        let mut on_token = |token| stream.push(token);
        let generation =
            lm::generate(loaded.model.as_ref(), &prompt.token_ids, &options, &mut on_token)?;
        let text = stream.finish()?;
        ui.finish(&Summary {
            text: prompter.tokenizer.is_some().then_some(text),
            prompt_tokens: generation.prompt_tokens,
            prompt_tok_per_s: generation.prompt_tok_per_s,
            generated_tokens: generation.token_ids.len(),
            decode_tok_per_s: generation.decode_tok_per_s,
            ttft_ms: generation.ttft_ms,
            peak_memory_bytes: generation.peak_memory_bytes,
            patched_modules: patch.patched_modules(),
            precision: precision_name(precision),
            finish_reason: match generation.finish_reason {
                lm::FinishReason::Eos => "eos",
                _ => "length",
            },
            token_ids: generation.token_ids,
        })?;
        Ok(Exit::Done)
    }
}

impl SamplingOptions {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temp,
            top_p: self.top_p,
            min_p: self.min_p,
            top_k: self.top_k,
            seed: self.seed,
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

/// Turns tokens into text and hands both on as they come.
struct Stream<'a> {
    detokenizer: Option<Detokenizer<'a>>,
    text: String,
    ui: &'a mut Ui,
    failure: Option<anyhow::Error>,
}

impl<'a> Stream<'a> {
    fn new(prompter: &'a Prompter, ui: &'a mut Ui) -> Self {
        let detokenizer = prompter.tokenizer.as_ref().map(|tokenizer| tokenizer.detokenizer());
        Self { detokenizer, text: String::new(), ui, failure: None }
    }

    fn push(&mut self, token: lm::Token) -> ControlFlow<()> {
        match self.try_push(token) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failure = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn try_push(&mut self, token: lm::Token) -> anyhow::Result<()> {
        let text = match &mut self.detokenizer {
            Some(detokenizer) if !token.is_eos => detokenizer.push(token.id)?,
            _ => String::new(),
        };
        self.ui.token(token.index, token.id, &text)?;
        self.text.push_str(&text);
        Ok(())
    }

    /// All of the text.
    fn finish(mut self) -> anyhow::Result<String> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        if let Some(detokenizer) = self.detokenizer {
            let rest = detokenizer.finish()?;
            self.ui.text(&rest)?;
            self.text.push_str(&rest);
        }
        Ok(self.text)
    }
}

//! `zmlx generate`

use std::ops::ControlFlow;
use std::path::PathBuf;

use mlx::primitives::Precision;
use serde::Serialize;
use zmlx::lm::{self, Detokenizer, GenerateOptions, PatchOptions, Patterns, Sampling};

use super::options::{
    ComputeOptions, ModelOptions, OutputOptions, Prompter, TokenList, eos_token_ids,
    parse_patterns, parse_tokens, precision_name, read_prompt_file,
};
use super::render::{Report, Ui};
use super::{CommandArgs, Exit};

/// Arguments of `zmlx generate`.
#[derive(Debug, clap::Args)]
pub(super) struct Generate {
    #[command(flatten)]
    model: ModelOptions,
    /// Text to answer
    #[arg(long, value_name = "TEXT", group = "input")]
    prompt: Option<String>,
    /// File with the text to answer; - reads standard input
    #[arg(long, value_name = "FILE", group = "input")]
    prompt_file: Option<PathBuf>,
    /// Token ids to continue, as they are: 1,5,9
    #[arg(long, value_name = "IDS", group = "input", value_parser = parse_tokens)]
    prompt_tokens: Option<TokenList>,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = parse_max_tokens)]
    max_tokens: usize,
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
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
    /// Give the model the text as it is
    #[arg(long)]
    no_chat_template: bool,
    /// Fused patterns: auto, off, or names separated by commas
    #[arg(long, value_name = "PATTERNS", default_value = "auto", value_parser = parse_patterns)]
    patch: Patterns,
    #[command(flatten)]
    compute: ComputeOptions,
    #[command(flatten)]
    _output: OutputOptions,
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
pub(super) struct Summary {
    pub(super) token_ids: Vec<u32>,
    /// `None` without a tokenizer.
    pub(super) text: Option<String>,
    pub(super) prompt_tokens: usize,
    pub(super) prompt_tok_per_s: f64,
    pub(super) generated_tokens: usize,
    pub(super) decode_tok_per_s: Option<f64>,
    pub(super) ttft_ms: f64,
    pub(super) peak_memory_bytes: usize,
    pub(super) patched_modules: usize,
    pub(super) precision: &'static str,
    pub(super) finish_reason: &'static str,
}

impl CommandArgs for Generate {
    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let device = self.compute.apply()?;
        let given = match &self.prompt_file {
            Some(path) => Some(read_prompt_file(path)?),
            None => self.prompt.clone(),
        };
        let folder = self.model.folder(ui)?;
        let prompter = Prompter::load(&folder, !self.no_chat_template)?;
        let prompt = match (&self.prompt_tokens, &given) {
            (Some(tokens), _) => prompter.tokens(tokens),
            (None, Some(text)) => prompter.text(text)?,
            (None, None) => prompter.defaults(&folder)?.swap_remove(0),
        };
        if given.is_none()
            && let Some(text) = &prompt.text
        {
            ui.note(&format!("no --prompt given; asking: {text}"));
        }
        let mut loaded = lm::load(&folder)?;
        ui.notes(&loaded.notes);
        let precision = self.compute.precision();
        let patch = self.patch(&mut loaded, precision)?;
        ui.begin(
            "generate",
            &Begin {
                model: folder.display().to_string(),
                model_type: loaded.config.model_type.clone(),
                device: device.to_string(),
                precision: precision_name(precision),
                prompt_token_ids: prompt.token_ids.clone(),
            },
        )?;
        let options = GenerateOptions {
            max_tokens: self.max_tokens,
            sampling: self.sampling(),
            eos_token_ids: eos_token_ids(&prompter, &loaded.config.eos_token_ids),
            ignore_eos: self.ignore_eos,
            ..GenerateOptions::default()
        };
        let mut stream = Stream::new(&prompter, ui);
        let mut on_token = |token| stream.push(token);
        let generation =
            lm::generate(loaded.model.as_ref(), &prompt.token_ids, &options, &mut on_token)?;
        let text = stream.finish()?;
        let summary = Summary {
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
        };
        ui.finish(&Report::Generate(summary))?;
        Ok(Exit::Done)
    }
}

impl Generate {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temp,
            top_p: self.top_p,
            min_p: self.min_p,
            top_k: self.top_k,
            seed: self.seed,
        }
    }

    fn patch(
        &self,
        loaded: &mut lm::LoadedModel,
        precision: Precision,
    ) -> anyhow::Result<lm::PatchReport> {
        let options =
            PatchOptions { patterns: self.patch.clone(), precision, ..PatchOptions::default() };
        Ok(lm::patch(loaded, &options)?)
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

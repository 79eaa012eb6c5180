//! Options that several commands share.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use mlx::Device;
use mlx::primitives::Precision;
use zmlx::lm::config::ModelConfig;
use zmlx::lm::{ChatOptions, ChatTemplate, Patterns, Tokenizer, chat};

use super::place;
use super::render::Ui;

/// Asked when nobody asks anything; about what the demo model was trained on.
pub(super) const DEFAULT_PROMPTS: [&str; 3] = [
    "What does the command grep do?",
    "How do I list the files in an archive with tar?",
    "What is a shell?",
];

/// The same for a model without a tokenizer, reduced to its vocabulary.
const DEFAULT_PROMPT_TOKENS: [&[u32]; 3] = [
    &[1, 5, 9],
    &[17, 3, 101, 64, 7, 88, 23, 250],
    &[42, 200, 13, 77, 5, 160, 91, 6, 33, 128, 19, 54, 240, 2, 111, 70],
];

/// Which model.
#[derive(Debug, clap::Args)]
pub(super) struct ModelOptions {
    /// Hugging Face repo id or local folder [default: the demo model]
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// Branch, tag or commit of a Hugging Face repo
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
}

impl ModelOptions {
    /// The model's folder, downloaded if need be.
    pub(super) fn folder(&self, ui: &mut Ui) -> anyhow::Result<PathBuf> {
        let Some(model) = &self.model else { return place::demo_model() };
        let hub = place::hub_options(self.revision.as_deref())?;
        let mut bar = ui.bar("downloading");
        let mut listener =
            |progress: zmlx::lm::hub::Progress| bar.set(progress.bytes, progress.total_bytes);
        Ok(zmlx::lm::hub::resolve(model, &hub, Some(&mut listener))?)
    }
}

/// How to answer.
#[derive(Debug, clap::Args)]
pub(super) struct OutputOptions {
    /// Print JSON Lines
    // Looked up before parsing, which can fail and then has to say so in JSON too.
    #[arg(long = "json")]
    _json: bool,
}

/// Where and how to compute.
#[derive(Debug, clap::Args)]
pub(super) struct ComputeOptions {
    /// Where to compute; auto takes a GPU when there is one
    #[arg(long, value_enum, default_value_t, value_name = "DEVICE")]
    device: DeviceChoice,
    /// Threads of the CPU primitives [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=4096))]
    threads: Option<i32>,
    /// exact gives the bits that stock MLX gives, fast may add in another order
    #[arg(long, value_enum, default_value_t, value_name = "PRECISION")]
    precision: PrecisionChoice,
}

impl ComputeOptions {
    /// Sets up the process; returns the device.
    pub(super) fn apply(&self) -> anyhow::Result<Device> {
        if let Some(threads) = self.threads {
            mlx::set_num_threads(threads)?;
        }
        let device = match self.device {
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Auto if !Device::Gpu.is_available() => Device::Cpu,
            DeviceChoice::Auto => Device::Gpu,
            DeviceChoice::Gpu => {
                let backends = mlx::build_info().backends.join(", ");
                ensure!(
                    Device::Gpu.is_available(),
                    "--device gpu: there is no GPU that this build (backends: {backends}) can use"
                );
                Device::Gpu
            }
        };
        mlx::set_default_device(device)?;
        Ok(device)
    }

    pub(super) fn precision(&self) -> Precision {
        match self.precision {
            PrecisionChoice::Exact => Precision::Exact,
            PrecisionChoice::Fast => Precision::Fast,
        }
    }
}

/// As users and reports spell it.
pub(super) fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::Fast => "fast",
        _ => "exact",
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum DeviceChoice {
    #[default]
    Auto,
    Cpu,
    Gpu,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum PrecisionChoice {
    #[default]
    Exact,
    Fast,
}

/// `auto`, `off`, or names separated by commas. Names are checked against the table of patterns.
pub(super) fn parse_patterns(text: &str) -> Result<Patterns, String> {
    let known = zmlx::lm::patterns::names();
    match text {
        "auto" => return Ok(Patterns::Auto),
        "off" => return Ok(Patterns::Off),
        _ => {}
    }
    let names: Vec<&str> = text.split(',').map(str::trim).collect();
    match names.iter().find(|name| !known.contains(name)) {
        None => Ok(Patterns::Names(names.into_iter().map(str::to_owned).collect())),
        Some(name) => Err(format!(
            "pattern `{name}` is not known; known: auto, off, or any of {}",
            known.join(", ")
        )),
    }
}

/// Token ids separated by commas.
#[derive(Debug, Clone)]
pub(super) struct TokenList(pub(super) Vec<u32>);

pub(super) fn parse_tokens(text: &str) -> Result<TokenList, String> {
    let parse = |part: &str| {
        let part = part.trim();
        part.parse::<u32>().map_err(|_| format!("`{part}` is no token id; expected e.g. 1,5,9"))
    };
    text.split(',').map(parse).collect::<Result<_, _>>().map(TokenList)
}

/// A prompt: what was asked, and what the model gets.
#[derive(Debug, Clone)]
pub(super) struct Prompt {
    /// The text, when there is one.
    pub(super) text: Option<String>,
    pub(super) token_ids: Vec<u32>,
}

/// What turns text into a model's token ids.
pub(super) struct Prompter {
    pub(super) tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
}

impl Prompter {
    /// - `chat`: whether to use the model's chat template
    pub(super) fn load(folder: &Path, chat: bool) -> anyhow::Result<Self> {
        let tokenizer =
            if Tokenizer::exists(folder) { Some(Tokenizer::load(folder)?) } else { None };
        let template = if chat { ChatTemplate::load(folder)? } else { None };
        Ok(Self { tokenizer, template })
    }

    pub(super) fn text(&self, text: &str) -> anyhow::Result<Prompt> {
        ensure!(!text.trim().is_empty(), "the prompt is empty; expected some text");
        let Some(tokenizer) = &self.tokenizer else {
            bail!("the model has no tokenizer.json; give --prompt-tokens instead of text");
        };
        let token_ids = match &self.template {
            None => tokenizer.encode_prompt(text)?,
            Some(template) => {
                let options = ChatOptions::default();
                let rendered = template.render(&chat::user_message(text), tokenizer, &options)?;
                tokenizer.encode(&rendered, false)?
            }
        };
        ensure!(!token_ids.is_empty(), "the tokenizer makes no tokens of the prompt");
        Ok(Prompt { text: Some(text.to_owned()), token_ids })
    }

    pub(super) fn tokens(&self, tokens: &TokenList) -> Prompt {
        Prompt { text: None, token_ids: tokens.0.clone() }
    }

    /// What is run when the user gives no prompt.
    pub(super) fn defaults(&self, folder: &Path) -> anyhow::Result<Vec<Prompt>> {
        if self.tokenizer.is_some() {
            DEFAULT_PROMPTS.iter().map(|text| self.text(text)).collect()
        } else {
            let vocab_size = ModelConfig::load(folder)?.vocab_size()?;
            let reduced = |ids: &&[u32]| Prompt {
                text: None,
                token_ids: ids.iter().map(|id| id % vocab_size).collect(),
            };
            Ok(DEFAULT_PROMPT_TOKENS.iter().map(reduced).collect())
        }
    }
}

/// The text of a prompt file; `-` is standard input.
pub(super) fn read_prompt_file(path: &Path) -> anyhow::Result<String> {
    let bytes = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
        bytes
    } else {
        fs::read(path).with_context(|| format!("cannot read the prompt file {}", path.display()))?
    };
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("the prompt file {} is not UTF-8: byte {at} is no text", path.display())
    })
}

/// The model's end-of-sequence tokens.
pub(super) fn eos_token_ids(prompter: &Prompter, config: &[u32]) -> Vec<u32> {
    prompter.tokenizer.as_ref().map_or_else(|| config.to_vec(), |t| t.eos_token_ids(config))
}

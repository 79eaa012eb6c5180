//! Where prompts come from, and how they become tokens.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::{Value, json};
use zmlx::lm::chat::conversation;
use zmlx::lm::config::ModelConfig;
use zmlx::lm::{ChatOptions, ChatTemplate, Tokenizer};

use super::render::Ui;

/// Asked when nobody asks anything; about what the demo model was trained on.
const DEFAULT_PROMPTS: [&str; 3] = [
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

/// How long an open pipe may stay silent before it counts as nobody's prompt.
const PATIENCE: Duration = Duration::from_secs(3);

/// One prompt.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Prompt")]
pub(super) struct PromptOptions {
    /// Text to answer [default: what is piped in]
    #[arg(short, long, value_name = "TEXT", group = "input")]
    prompt: Option<String>,
    /// File with the text to answer; - reads standard input
    #[arg(short = 'f', long, value_name = "FILE", group = "input")]
    prompt_file: Option<PathBuf>,
    /// Token ids to continue, as they are: 1,5,9
    #[arg(long, value_name = "IDS", group = "input", value_parser = parse_tokens)]
    prompt_tokens: Option<TokenList>,
    /// What the model is to keep in mind; needs a chat template
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompt_tokens", "no_chat_template"])]
    pub(super) system: Option<String>,
    /// Give the model the text as it is
    #[arg(long)]
    pub(super) no_chat_template: bool,
}

/// What the user asks.
#[derive(Debug)]
pub(super) enum Asked {
    Text(String),
    Tokens(TokenList),
    /// Nothing, and there is a terminal to ask at.
    Terminal,
    Nothing,
}

impl PromptOptions {
    /// - `has_default`: whether the model has a question of its own, so that silence is no mistake
    pub(super) fn read(&self, has_default: bool, ui: &Ui) -> anyhow::Result<Asked> {
        if let Some(text) = &self.prompt {
            return Ok(Asked::Text(text.clone()));
        }
        if let Some(path) = &self.prompt_file {
            return read_prompt_file(path).map(Asked::Text);
        }
        if let Some(tokens) = &self.prompt_tokens {
            return Ok(Asked::Tokens(tokens.clone()));
        }
        if io::stdin().is_terminal() {
            return Ok(Asked::Terminal);
        }
        match read_piped(ui)? {
            Some(text) if text.trim().is_empty() => Ok(Asked::Nothing),
            Some(mut text) => {
                // what echo adds
                if text.ends_with('\n') {
                    text.pop();
                }
                Ok(Asked::Text(text))
            }
            None if has_default => Ok(Asked::Nothing),
            None => bail!(
                "no prompt: standard input is open and nothing came for {} s; give --prompt TEXT, \
                 or --prompt-file - to wait for it",
                PATIENCE.as_secs()
            ),
        }
    }
}

/// All of standard input; `None` when it is a pipe that nobody writes to. With a terminal on stderr somebody is
/// there to wait, or to end it.
fn read_piped(ui: &Ui) -> anyhow::Result<Option<String>> {
    let (started, has_started) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        stdin.fill_buf()?;
        started.send(()).ok();
        let mut bytes = Vec::new();
        stdin.read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    });
    if has_started.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
        if !io::stderr().is_terminal() {
            return Ok(None);
        }
        ui.note("waiting for the prompt on standard input");
    }
    let bytes = match reader.join() {
        Ok(bytes) => bytes.context("cannot read standard input")?,
        Err(_) => bail!("cannot read standard input"),
    };
    text_of(bytes, "standard input").map(Some)
}

/// The text of a prompt file; `-` is standard input.
pub(super) fn read_prompt_file(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
        return text_of(bytes, "standard input");
    }
    let what = format!("the prompt file {}", path.display());
    text_of(fs::read(path).with_context(|| format!("cannot read {what}"))?, &what)
}

fn text_of(bytes: Vec<u8>, what: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow!("{what} is not UTF-8: byte {at} is no text")
    })
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

/// One message of a conversation.
pub(super) fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
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

    /// - `system`: see [`PromptOptions::system`]
    pub(super) fn text(&self, text: &str, system: Option<&str>) -> anyhow::Result<Prompt> {
        ensure!(!text.trim().is_empty(), "the prompt is empty; expected some text");
        let token_ids = if self.template.is_some() {
            self.conversation(&conversation(system, text))?
        } else {
            ensure!(system.is_none(), "--system: the model has no chat template to put it in");
            self.tokenizer()?.encode_prompt(text)?
        };
        ensure!(!token_ids.is_empty(), "the tokenizer makes no tokens of the prompt");
        Ok(Prompt { text: Some(text.to_owned()), token_ids })
    }

    /// A prompt that another one continues: through the chat template the beginning of what the user says.
    pub(super) fn open_text(&self, text: &str, system: Option<&str>) -> anyhow::Result<Prompt> {
        // as transformers' continue_final_message
        const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
        let Some(template) = &self.template else { return self.text(text, system) };
        ensure!(!text.trim().is_empty(), "the prompt is empty; expected some text");
        let tokenizer = self.tokenizer()?;
        let options = ChatOptions { add_generation_prompt: false, ..ChatOptions::default() };
        let messages = conversation(system, &format!("{text}{TAG}"));
        let mut rendered = template.render(&messages, tokenizer, &options)?;
        let end = rendered.rfind(TAG.trim());
        let end =
            end.context("the chat template changes what the user says, so it cannot be left open")?;
        let keeps_spaces = rendered[end..].starts_with(TAG);
        rendered.truncate(end);
        let rendered = if keeps_spaces { &rendered } else { rendered.trim_end() };
        let token_ids = tokenizer.encode(rendered, false)?;
        Ok(Prompt { text: Some(text.to_owned()), token_ids })
    }

    /// What is left of a prompt whose beginning is in a cache: through the chat template the rest of what the user says.
    pub(super) fn rest_of_text(&self, text: &str) -> anyhow::Result<Prompt> {
        const MARK: &str = "<query>";
        let Some(template) = &self.template else { return self.text(text, None) };
        let tokenizer = self.tokenizer()?;
        let render = |text: &str| {
            template.render(&conversation(None, text), tokenizer, &ChatOptions::default())
        };
        let (rendered, marked) = (render(text)?, render(MARK)?);
        let rest = marked.find(MARK).and_then(|start| rendered.get(start..));
        let rest = rest
            .context("the chat template changes what the user says, so nothing can continue it")?;
        let token_ids = tokenizer.encode(rest, false)?;
        ensure!(!token_ids.is_empty(), "the tokenizer makes no tokens of the prompt");
        Ok(Prompt { text: Some(text.to_owned()), token_ids })
    }

    /// Token ids of a conversation, up to where the model answers.
    pub(super) fn conversation(&self, messages: &[Value]) -> anyhow::Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        let Some(template) = &self.template else {
            bail!("the model has no chat template; continue a text with zmlx generate --prompt");
        };
        let rendered = template.render(messages, tokenizer, &ChatOptions::default())?;
        Ok(tokenizer.encode(&rendered, false)?)
    }

    fn tokenizer(&self) -> anyhow::Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            anyhow!("the model has no tokenizer.json; give --prompt-tokens instead of text")
        })
    }

    pub(super) fn tokens(&self, tokens: &TokenList) -> Prompt {
        Prompt { text: None, token_ids: tokens.0.clone() }
    }

    /// What is run when the user gives no prompt.
    pub(super) fn defaults(&self, folder: &Path) -> anyhow::Result<Vec<Prompt>> {
        if self.tokenizer.is_some() {
            DEFAULT_PROMPTS.iter().map(|text| self.text(text, None)).collect()
        } else {
            let vocab_size = ModelConfig::load(folder)?.vocab_size()?;
            let reduced = |ids: &&[u32]| Prompt {
                text: None,
                token_ids: ids.iter().map(|id| id % vocab_size).collect(),
            };
            Ok(DEFAULT_PROMPT_TOKENS.iter().map(reduced).collect())
        }
    }

    /// The model's end-of-sequence tokens.
    ///
    /// - `config`: those that its configuration names
    pub(super) fn eos_token_ids(&self, config: &[u32]) -> Vec<u32> {
        self.tokenizer.as_ref().map_or_else(|| config.to_vec(), |t| t.eos_token_ids(config))
    }
}

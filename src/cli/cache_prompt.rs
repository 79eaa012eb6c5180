//! `zmlx cache-prompt`

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde::Serialize;
use zmlx::lm::cache;

use super::kv::KvOptions;
use super::options::{ComputeOptions, ModelOptions, OutputOptions};
use super::patching::PatchingOptions;
use super::prompts::{Asked, PromptOptions, Prompter};
use super::render::{Answer, Ui, bytes};
use super::session::{Expected, Session, SessionBegin};
use super::{CommandArgs, Examples, Exit};

/// Arguments of `zmlx cache-prompt`.
#[derive(Debug, clap::Args)]
pub(super) struct CachePrompt {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    prompt: PromptOptions,
    #[command(flatten)]
    kv: KvOptions,
    #[command(flatten)]
    patching: PatchingOptions,
    #[command(flatten)]
    compute: ComputeOptions,
    /// File to write, which must not exist
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    _output: OutputOptions,
}

/// What `--json` begins with.
#[derive(Debug, Serialize)]
struct Begin {
    #[serde(flatten)]
    session: SessionBegin,
    prompt_token_ids: Vec<u32>,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Summary {
    out: String,
    prompt_tokens: usize,
    cache_bytes: usize,
    patched_modules: usize,
    precision: &'static str,
}

impl CommandArgs for CachePrompt {
    const ABOUT: &'static str = "Read a prompt once, for other prompts to continue";
    const EXAMPLES: Examples = &[
        (
            "Read a text, then ask about it",
            "zmlx cache-prompt /models/qwen3 -f book.txt --out book.safetensors",
        ),
        (
            "The question",
            "zmlx generate /models/qwen3 --prompt-cache book.safetensors -p \" Who is the narrator?\"",
        ),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let device = self.compute.apply()?;
        let out = self.out.display().to_string();
        ensure!(!self.out.exists(), "--out: {out} exists already; choose a new file");
        let asked = self.prompt.read(false, ui)?;
        let folder = self.model.folder(ui)?;
        let prompter = Prompter::load(&folder, !self.prompt.no_chat_template)?;
        let prompt = match &asked {
            Asked::Text(text) => prompter.open_text(text, self.prompt.system.as_deref())?,
            Asked::Tokens(tokens) => prompter.tokens(tokens),
            Asked::Terminal | Asked::Nothing => {
                anyhow::bail!(
                    "no prompt: give --prompt TEXT, --prompt-file FILE or --prompt-tokens IDS"
                )
            }
        };
        let expected =
            Expected { prompt: Some(prompt.token_ids.as_slice()), cache: self.kv.options() };
        let session =
            Session::load(&folder, prompter, expected, &self.patching, &self.compute, device, ui)?;
        let prompt_token_ids = prompt.token_ids.clone();
        ui.begin("cache-prompt", &Begin { session: session.begin(), prompt_token_ids })?;
        let held = session.read_prompt(&prompt.token_ids, ui)?;
        // under another name first, so that a file that is there is whole
        let partial = self.out.with_extension("partial.safetensors");
        let write = || -> anyhow::Result<()> {
            cache::save(&partial, held.cache(), &self.model.name(&folder))?;
            Ok(fs::rename(&partial, &self.out)?)
        };
        write().with_context(|| format!("cannot write {out}"))?;
        ui.finish(&Summary {
            out,
            prompt_tokens: held.tokens().len(),
            cache_bytes: held.cache().bytes(),
            patched_modules: session.patch.patched_modules(),
            precision: session.precision(),
        })?;
        Ok(Exit::Done)
    }
}

impl Answer for Summary {
    fn text(&self) -> String {
        format!("{}: {} tokens, {}\n", self.out, self.prompt_tokens, bytes(self.cache_bytes as u64))
    }
}

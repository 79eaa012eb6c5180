//! A model in memory that answers, token by token.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx::Device;
use mlx::primitives::Precision;
use serde::Serialize;
use zmlx::lm::{self, Detokenizer, FinishReason, GenerateOptions, LoadedModel, PatchReport};

use super::options::{ComputeOptions, precision_name};
use super::patching::PatchingOptions;
use super::prompts::Prompter;
use super::render::Ui;
use super::sampling::{SamplingOptions, StoppingOptions};

/// A loaded and patched model with its tokenizer.
pub(super) struct Session {
    folder: PathBuf,
    device: Device,
    precision: Precision,
    pub(super) prompter: Prompter,
    loaded: LoadedModel,
    pub(super) patch: PatchReport,
}

/// What `--json` begins with.
#[derive(Debug, Serialize)]
pub(super) struct SessionBegin {
    model: String,
    model_type: String,
    device: String,
    precision: &'static str,
}

/// One answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) generation: lm::Generation,
    /// `None` without a tokenizer.
    pub(super) text: Option<String>,
}

/// As `--json` spells it.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Eos => "eos",
        FinishReason::Length => "length",
        FinishReason::Callback => "cancelled",
    }
}

impl Session {
    pub(super) fn load(
        folder: &Path,
        prompter: Prompter,
        patching: &PatchingOptions,
        compute: &ComputeOptions,
        device: Device,
        ui: &Ui,
    ) -> anyhow::Result<Self> {
        let spinner = ui.spinner("loading");
        let mut loaded = lm::load(folder)?;
        drop(spinner);
        ui.notes(&loaded.notes);
        let precision = compute.precision();
        let patch = lm::patch(&mut loaded, &patching.options(precision))?;
        patching.targets.explain(&patch, ui);
        Ok(Self { folder: folder.to_owned(), device, precision, prompter, loaded, patch })
    }

    pub(super) fn begin(&self) -> SessionBegin {
        SessionBegin {
            model: self.folder.display().to_string(),
            model_type: self.loaded.config.model_type.clone(),
            device: self.device.to_string(),
            precision: precision_name(self.precision),
        }
    }

    /// As users and reports spell it.
    pub(super) fn precision(&self) -> &'static str {
        precision_name(self.precision)
    }

    /// Answers `prompt` and shows the answer while it comes.
    ///
    /// - `stopped`: asked between tokens; ends the answer early
    pub(super) fn answer(
        &mut self,
        prompt: &[u32],
        sampling: &SamplingOptions,
        stopping: &StoppingOptions,
        stopped: &dyn Fn() -> bool,
        ui: &mut Ui,
    ) -> anyhow::Result<Reply> {
        let options = GenerateOptions {
            max_tokens: stopping.max_tokens,
            sampling: sampling.sampling(),
            eos_token_ids: self.prompter.eos_token_ids(&self.loaded.config.eos_token_ids),
            ignore_eos: stopping.ignore_eos,
            ..GenerateOptions::default()
        };
        let mut stream = Stream::new(&self.prompter, ui);
        let mut on_token = |token| {
            let flow = stream.push(token);
            if stopped() { ControlFlow::Break(()) } else { flow }
        };
        let generation = lm::generate(self.loaded.model.as_ref(), prompt, &options, &mut on_token)?;
        let text = stream.finish()?;
        Ok(Reply { generation, text: self.prompter.tokenizer.is_some().then_some(text) })
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

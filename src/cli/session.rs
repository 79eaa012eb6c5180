//! A model in memory that answers, token by token.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx::Device;
use mlx::primitives::Precision;
use serde::Serialize;
use zmlx::lm::{
    self, CacheOptions, Decoder, FinishReason, GenerateOptions, LoadedModel, PatchReport,
    Placement, PromptCache, TextStream,
};

use super::kv::{self, KvOptions};
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
    /// What the model remembers of the last prompt and its answer.
    cache: Option<PromptCache>,
    cache_options: CacheOptions,
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

/// Reads a model, and says what its loader noticed.
pub(super) fn load(folder: &Path, ui: &Ui) -> anyhow::Result<LoadedModel> {
    let mut bar = ui.bytes_bar("loading");
    let mut on_progress = |bytes, total| bar.set(bytes, total);
    let loaded = lm::load_with(folder, Placement::default(), &mut on_progress)?;
    drop(bar);
    ui.notes(&loaded.notes);
    Ok(loaded)
}

/// As `--json` spells it.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Eos => "eos",
        FinishReason::StopString => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}

/// What a session is loaded for.
pub(super) struct Expected<'a> {
    /// A prompt like those to come; `None` takes the questions that nobody asked.
    pub(super) prompt: Option<&'a [u32]>,
    /// How what the model remembers is kept.
    pub(super) cache: CacheOptions,
}

impl Session {
    pub(super) fn load(
        folder: &Path,
        prompter: Prompter,
        expected: Expected<'_>,
        patching: &PatchingOptions,
        compute: &ComputeOptions,
        device: Device,
        ui: &Ui,
    ) -> anyhow::Result<Self> {
        let mut loaded = load(folder, ui)?;
        let precision = compute.precision();
        let Expected { prompt, cache } = expected;
        let sample = || match prompt {
            Some(prompt) => Ok(vec![prompt.to_vec()]),
            None => Ok(prompter.defaults(folder)?.into_iter().map(|p| p.token_ids).collect()),
        };
        let patch = patching.apply(&mut loaded, precision, sample, cache, ui)?;
        Ok(Self {
            folder: folder.to_owned(),
            device,
            precision,
            prompter,
            loaded,
            patch,
            cache: None,
            cache_options: cache,
        })
    }

    /// Lets the next prompt continue what a file holds.
    ///
    /// - `name`: what the user calls the model
    pub(super) fn continue_file(
        &mut self,
        path: &Path,
        name: &str,
        kv: &KvOptions,
    ) -> anyhow::Result<()> {
        self.cache = Some(kv::load(path, self.loaded.model.as_ref(), name, kv)?);
        Ok(())
    }

    /// Reads a prompt, for others to continue.
    pub(super) fn read_prompt(&self, prompt: &[u32], ui: &mut Ui) -> anyhow::Result<PromptCache> {
        let options = GenerateOptions { cache: self.cache_options, ..GenerateOptions::default() };
        let mut decoder = Decoder::new(self.loaded.model.as_ref(), prompt, &options)?;
        let mut bar = ui.tokens_bar("reading the prompt");
        decoder.prefill(&mut |progress| {
            bar.set(progress.done as u64, progress.total as u64);
            ControlFlow::Continue(())
        })?;
        Ok(decoder.into_prompt_cache()?)
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

    /// Answers `prompt` and shows the answer while it comes. What an earlier prompt had in common with it is not read
    /// again.
    ///
    /// - `cancelled`: asked between steps; ends the answer early
    pub(super) fn answer(
        &mut self,
        prompt: &[u32],
        sampling: &SamplingOptions,
        stopping: &StoppingOptions,
        cancelled: &dyn Fn() -> bool,
        ui: &mut Ui,
    ) -> anyhow::Result<Reply> {
        let mut stream = match &self.prompter.tokenizer {
            Some(tokenizer) => Some(TextStream::new(tokenizer, &stopping.stop)?),
            None => None,
        };
        let options = GenerateOptions {
            max_tokens: stopping.max_tokens,
            sampling: sampling.sampling(),
            processing: sampling.processing(),
            eos_token_ids: self.prompter.eos_token_ids(&self.loaded.config.eos_token_ids),
            ignore_eos: stopping.ignore_eos,
            cache: self.cache_options,
            ..GenerateOptions::default()
        };
        let model = self.loaded.model.as_ref();
        let mut decoder = match self.cache.take() {
            Some(cache) => Decoder::resume(model, cache, prompt, &options)?,
            None => Decoder::new(model, prompt, &options)?,
        };
        let mut bar = ui.tokens_bar("reading the prompt");
        decoder.prefill(&mut |progress| {
            bar.set(progress.done as u64, progress.total as u64);
            if cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        drop(bar);
        let mut text = String::new();
        while let Some(token) = decoder.next().transpose()? {
            let piece = match &mut stream {
                Some(stream) => stream.push(token)?,
                None => String::new(),
            };
            ui.token(token.index, token.id, &piece)?;
            text.push_str(&piece);
            if stream.as_ref().is_some_and(|stream| stream.stopped().is_some()) {
                decoder.stop(FinishReason::StopString);
            } else if cancelled() && !token.is_eos {
                decoder.stop(FinishReason::Cancelled);
            }
        }
        let has_text = stream.is_some();
        if let Some(stream) = stream {
            let rest = stream.finish()?;
            ui.rest(&rest)?;
            text.push_str(&rest);
        }
        let (generation, cache) = decoder.finish()?;
        self.cache = Some(cache);
        Ok(Reply { generation, text: has_text.then_some(text) })
    }
}

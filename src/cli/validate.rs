//! `zmlx validate`

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::ValueEnum;
use serde::Serialize;
use zmlx::lm::{self, GenerateOptions, PatchOptions, Patterns, ValidateOptions, Validation};

use super::options::{
    ComputeOptions, ModelOptions, OutputOptions, Prompt, Prompter, TokenList, parse_patterns,
    parse_tokens, precision_name, read_prompt_file,
};
use super::render::{Report, Ui};
use super::{CommandArgs, Exit, generate::parse_max_tokens, reference};

/// Arguments of `zmlx validate`.
#[derive(Debug, clap::Args)]
pub(super) struct Validate {
    #[command(flatten)]
    model: ModelOptions,
    /// Text to answer; may be repeated [default: three about Unix]
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// File with a text to answer; - reads standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Vec<PathBuf>,
    /// Token ids to continue, as they are: 1,5,9; may be repeated
    #[arg(long, value_name = "IDS", value_parser = parse_tokens)]
    prompt_tokens: Vec<TokenList>,
    /// Tokens to generate and compare per prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = parse_max_tokens)]
    max_tokens: usize,
    /// Times to run each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Fused patterns: auto, or names separated by commas
    #[arg(long, value_name = "PATTERNS", default_value = "auto", value_parser = parse_patterns)]
    patterns: Patterns,
    /// What the patched model is compared with
    #[arg(long, value_enum, default_value_t, value_name = "REFERENCE")]
    reference: Reference,
    /// Exit with 1 when any module stays on stock ops
    #[arg(long)]
    require_fused: bool,
    #[command(flatten)]
    compute: ComputeOptions,
    #[command(flatten)]
    _output: OutputOptions,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Reference {
    /// The same weights in this process, on stock MLX
    #[default]
    Unpatched,
    /// mlx-lm in the Python that `ZMLX_PYTHON` names (python3 without)
    MlxLm,
}

/// What `--json` begins with.
#[derive(Debug, Serialize)]
struct Begin {
    model: String,
    model_type: String,
    device: String,
    precision: &'static str,
    reference: String,
    prompts: Vec<PromptBegin>,
    runs: u32,
    max_tokens: usize,
}

#[derive(Debug, Serialize)]
struct PromptBegin {
    text: Option<String>,
    prompt_token_ids: Vec<u32>,
}

/// What came out.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) identical: bool,
    pub(super) tokens_compared: usize,
    pub(super) first_divergence: Option<Divergence>,
    pub(super) baseline_decode_tok_per_s: Option<f64>,
    pub(super) patched_decode_tok_per_s: Option<f64>,
    pub(super) speedup: Option<f64>,
    pub(super) patched_modules: usize,
    pub(super) fallbacks: Vec<Fallback>,
    /// Modules that could be patched: the model's mixtures of experts.
    pub(super) moe_modules: usize,
    pub(super) patterns: Vec<&'static str>,
    pub(super) precision: &'static str,
    pub(super) reference: String,
    /// What "stock" means here: the MLX that is linked.
    pub(super) stock: String,
    pub(super) prompts: usize,
    pub(super) runs: u32,
    #[serde(skip)]
    pub(super) require_fused: bool,
}

impl Summary {
    /// Whether the answer is yes.
    pub(super) fn is_good(&self) -> bool {
        self.identical && (!self.require_fused || self.is_fused())
    }

    pub(super) fn is_fused(&self) -> bool {
        self.fallbacks.is_empty() && self.patched_modules > 0
    }
}

/// The first token that differs.
#[derive(Debug, Serialize)]
pub(super) struct Divergence {
    pub(super) run: usize,
    pub(super) prompt: usize,
    pub(super) index: usize,
    pub(super) expected: Option<u32>,
    pub(super) got: Option<u32>,
    pub(super) logit_margin: Option<f32>,
    pub(super) expected_text: Option<String>,
    pub(super) got_text: Option<String>,
}

/// A module on stock ops.
#[derive(Debug, Serialize)]
pub(super) struct Fallback {
    pub(super) module: String,
    pub(super) pattern: &'static str,
    pub(super) reason: String,
}

impl CommandArgs for Validate {
    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        if self.patterns == Patterns::Off {
            bail!("--patterns off leaves nothing to validate; name patterns, or take auto");
        }
        let device = self.compute.apply()?;
        let folder = self.model.folder(ui)?;
        let prompter = Prompter::load(&folder, true)?;
        let prompts = self.prompts(&prompter, &folder)?;
        let token_ids: Vec<Vec<u32>> = prompts.iter().map(|p| p.token_ids.clone()).collect();
        let mut loaded = lm::load(&folder)?;
        ui.notes(&loaded.notes);
        let reference = match self.reference {
            Reference::Unpatched => None,
            Reference::MlxLm => {
                ui.note("running mlx-lm");
                Some(reference::mlx_lm(&folder, &token_ids, self.max_tokens)?)
            }
        };
        let reference_name =
            reference.as_ref().map_or_else(|| "unpatched".to_owned(), |r| r.name.clone());
        let precision = self.compute.precision();
        ui.begin(
            "validate",
            &Begin {
                model: folder.display().to_string(),
                model_type: loaded.config.model_type.clone(),
                device: device.to_string(),
                precision: precision_name(precision),
                reference: reference_name.clone(),
                prompts: prompts
                    .iter()
                    .map(|prompt| PromptBegin {
                        text: prompt.text.clone(),
                        prompt_token_ids: prompt.token_ids.clone(),
                    })
                    .collect(),
                runs: self.runs,
                max_tokens: self.max_tokens,
            },
        )?;
        let options = ValidateOptions {
            generate: GenerateOptions {
                max_tokens: self.max_tokens,
                // Every prompt yields all its tokens, whatever the model would stop at.
                ignore_eos: true,
                ..GenerateOptions::default()
            },
            runs: self.runs as usize,
            patch: PatchOptions {
                patterns: self.patterns.clone(),
                precision,
                ..PatchOptions::default()
            },
        };
        let all = self.runs as usize * prompts.len();
        let mut done = 0;
        let mut on_run = |run: &lm::validate::RunReport| {
            done += 1;
            ui.note(&format!(
                "run {done} of {all}: {} of {} tokens agree",
                run.agreeing,
                run.reference.len().max(run.patched.len())
            ));
        };
        let expected = reference.as_ref().map(|reference| reference.token_ids.as_slice());
        let validation = lm::validate(&mut loaded, &token_ids, expected, &options, &mut on_run)?;
        let summary = self.summary(&validation, &prompter, reference_name, prompts.len());
        let exit = if summary.is_good() { Exit::Done } else { Exit::No };
        ui.finish(&Report::Validate(summary))?;
        Ok(exit)
    }
}

impl Validate {
    fn prompts(&self, prompter: &Prompter, folder: &Path) -> anyhow::Result<Vec<Prompt>> {
        let mut prompts = Vec::new();
        for text in &self.prompt {
            prompts.push(prompter.text(text)?);
        }
        for path in &self.prompt_file {
            prompts.push(prompter.text(&read_prompt_file(path)?)?);
        }
        prompts.extend(self.prompt_tokens.iter().map(|tokens| prompter.tokens(tokens)));
        if prompts.is_empty() {
            prompts = prompter.defaults(folder)?;
        }
        Ok(prompts)
    }

    fn summary(
        &self,
        validation: &Validation,
        prompter: &Prompter,
        reference: String,
        prompts: usize,
    ) -> Summary {
        let text = |id: Option<u32>| prompter.tokenizer.as_ref()?.decode(&[id?]).ok();
        let patch = &validation.patch;
        Summary {
            identical: validation.identical(),
            tokens_compared: validation.tokens_compared,
            first_divergence: validation.first_divergence.as_ref().map(|d| Divergence {
                run: d.run,
                prompt: d.prompt,
                index: d.index,
                expected: d.expected,
                got: d.got,
                logit_margin: d.logit_margin,
                expected_text: text(d.expected),
                got_text: text(d.got),
            }),
            baseline_decode_tok_per_s: validation.baseline_decode_tok_per_s,
            patched_decode_tok_per_s: validation.patched_decode_tok_per_s,
            speedup: validation.speedup(),
            patched_modules: patch.patched_modules(),
            fallbacks: patch
                .fallbacks()
                .map(|(row, reason)| Fallback {
                    module: row.module.clone(),
                    pattern: row.pattern,
                    reason: reason.to_owned(),
                })
                .collect(),
            moe_modules: patch.num_moe_modules,
            patterns: patch.patterns.clone(),
            precision: precision_name(patch.precision),
            reference,
            stock: mlx::build_info().stock(),
            prompts,
            runs: self.runs,
            require_fused: self.require_fused,
        }
    }
}

//! `zmlx validate`

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use serde::Serialize;
use zmlx::bench::hash;
use zmlx::lm::{self, GenerateOptions, Patterns, ValidateOptions, Validation};

use super::fold::fold;
use super::kv::KvOptions;
use super::logits::{self, Logits};
use super::options::{ComputeOptions, ModelOptions, OutputOptions, precision_name};
use super::patching::{PatchTargets, parse_patterns};
use super::prompts::{Prompt, Prompter, TokenList, parse_tokens, read_prompt_file};
use super::render::{Answer, Rows, Ui, list, rate};
use super::sampling::parse_count;
use super::{CommandArgs, Examples, Exit, reference, session};

/// Arguments of `zmlx validate`.
#[derive(Debug, clap::Args)]
pub(super) struct Validate {
    #[command(flatten)]
    model: ModelOptions,
    /// Text to answer; may be repeated [default: three about Unix]
    #[arg(short, long, value_name = "TEXT", help_heading = "Prompt")]
    prompt: Vec<String>,
    /// File with a text to answer; - reads standard input; may be repeated
    #[arg(short = 'f', long, value_name = "FILE", help_heading = "Prompt")]
    prompt_file: Vec<PathBuf>,
    /// Token ids to continue, as they are: 1,5,9; may be repeated
    #[arg(long, value_name = "IDS", value_parser = parse_tokens, help_heading = "Prompt")]
    prompt_tokens: Vec<TokenList>,
    /// Tokens to generate and compare per prompt
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 128,
        value_parser = parse_count,
        help_heading = "Comparison"
    )]
    max_tokens: usize,
    /// Times to run each prompt
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Comparison"
    )]
    runs: u32,
    /// What the patched model is compared with: unpatched, the same weights on stock MLX; mlx-lm, in the Python that
    /// ZMLX_PYTHON names; or a capsule of zmlx bench, perhaps from another machine
    #[arg(
        long,
        default_value = "unpatched",
        value_parser = parse_reference,
        value_name = "unpatched|mlx-lm|CAPSULE",
        help_heading = "Comparison"
    )]
    reference: Reference,
    /// Compare the logits with those of stock MLX too
    #[arg(long, help_heading = "Comparison")]
    logits: bool,
    /// Exit with 1 when any module stays on stock ops
    #[arg(long, help_heading = "Comparison")]
    require_fused: bool,
    /// Fused patterns: auto, or names separated by commas
    #[arg(
        long,
        value_name = "PATTERNS",
        default_value = "auto",
        value_parser = parse_patterns,
        help_heading = "Patching"
    )]
    patterns: Patterns,
    #[command(flatten)]
    targets: PatchTargets,
    #[command(flatten)]
    kv: KvOptions,
    #[command(flatten)]
    compute: ComputeOptions,
    #[command(flatten)]
    _output: OutputOptions,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reference {
    Unpatched,
    MlxLm,
    Capsule(PathBuf),
}

fn parse_reference(text: &str) -> Result<Reference, String> {
    match text {
        "unpatched" => Ok(Reference::Unpatched),
        "mlx-lm" => Ok(Reference::MlxLm),
        path if Path::new(path).is_file() => Ok(Reference::Capsule(path.into())),
        other => Err(format!("`{other}`: expected unpatched, mlx-lm or the file of a capsule")),
    }
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
struct Summary {
    identical: bool,
    tokens_compared: usize,
    first_divergence: Option<Divergence>,
    repeatability: Option<Repeatability>,
    baseline_decode_tok_per_s: Option<f64>,
    patched_decode_tok_per_s: Option<f64>,
    speedup: Option<f64>,
    patched_modules: usize,
    fallbacks: Vec<Fallback>,
    /// Modules that could be patched: the model's mixtures of experts.
    moe_modules: usize,
    patterns: Vec<&'static str>,
    precision: &'static str,
    reference: String,
    /// What "stock" means here: the MLX that is linked.
    stock: String,
    prompts: usize,
    runs: u32,
    /// SHA-256 of the first run's tokens.
    tokens_sha256: TokenHashes,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<Logits>,
    #[serde(skip)]
    require_fused: bool,
}

/// What two people can compare.
#[derive(Debug, Serialize)]
struct TokenHashes {
    reference: String,
    patched: String,
}

impl Summary {
    /// Whether the answer is yes.
    fn is_good(&self) -> bool {
        self.identical && (!self.require_fused || self.is_fused())
    }

    fn is_fused(&self) -> bool {
        self.fallbacks.iter().all(|f| f.left_out) && self.patched_modules > 0
    }
}

/// The first token that differs.
#[derive(Debug, Serialize)]
struct Divergence {
    run: usize,
    prompt: usize,
    index: usize,
    expected: Option<u32>,
    got: Option<u32>,
    logit_margin: Option<f32>,
    expected_text: Option<String>,
    got_text: Option<String>,
}

/// What the reference said when it was asked once more, after a difference.
#[derive(Debug, Serialize)]
struct Repeatability {
    runs: usize,
    disagreements: usize,
}

/// A module on stock ops.
#[derive(Debug, Serialize)]
struct Fallback {
    module: String,
    pattern: &'static str,
    reason: String,
    /// Whether the user wants it there.
    left_out: bool,
}

impl CommandArgs for Validate {
    const ABOUT: &'static str = "Compare the patched model with stock MLX, token by token";
    const EXAMPLES: Examples = &[
        ("The demo model", "zmlx validate"),
        ("A model of yours, on a prompt of yours", "zmlx validate /models/qwen3 -p \"Why?\" -n 64"),
        ("In a script: fail when anything is not fused", "zmlx validate --require-fused --json"),
        ("How close logits are", "zmlx validate --precision fast --logits"),
        ("Against mlx-lm", "ZMLX_PYTHON=~/venv/bin/python zmlx validate --reference mlx-lm"),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        if self.patterns == Patterns::Off {
            bail!("--patterns off leaves nothing to validate; name patterns, or take auto");
        }
        let device = self.compute.apply()?;
        let folder = self.model.folder(ui)?;
        let prompter = Prompter::load(&folder, true)?;
        let mut loaded = session::load(&folder, ui)?;
        let mut max_tokens = self.max_tokens;
        let (prompts, reference) = match &self.reference {
            Reference::Capsule(path) => {
                ensure!(!self.has_prompts(), "--reference: a capsule has prompts of its own");
                let told = reference::capsule(path, &loaded, &prompter, max_tokens)?;
                max_tokens = told.max_tokens;
                (told.prompts, Some(told.reference))
            }
            Reference::Unpatched => (self.prompts(&prompter, &folder)?, None),
            Reference::MlxLm => {
                let prompts = self.prompts(&prompter, &folder)?;
                let tokens: Vec<_> = prompts.iter().map(|p| p.token_ids.clone()).collect();
                ui.note("running mlx-lm");
                let kv = self.kv.quantization();
                let told = reference::mlx_lm(&folder, &tokens, max_tokens, kv)?;
                (prompts, Some(told))
            }
        };
        let token_ids: Vec<Vec<u32>> = prompts.iter().map(|p| p.token_ids.clone()).collect();
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
                max_tokens,
            },
        )?;
        let options = ValidateOptions {
            generate: GenerateOptions {
                max_tokens,
                // Every prompt yields all its tokens, whatever the model would stop at.
                ignore_eos: true,
                cache: self.kv.options(),
                ..GenerateOptions::default()
            },
            runs: self.runs as usize,
            patch: self.targets.options(&self.patterns, precision),
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
        self.targets.explain(&validation.patch, ui);
        let mut summary = self.summary(&validation, &prompter, reference_name, prompts.len());
        if self.logits {
            ui.note("comparing logits");
            summary.logits = Some(logits::compare(&mut loaded, &validation, &token_ids, &options)?);
        }
        let exit = if summary.is_good() { Exit::Done } else { Exit::No };
        ui.finish(&summary)?;
        Ok(exit)
    }
}

impl Validate {
    fn has_prompts(&self) -> bool {
        !(self.prompt.is_empty() && self.prompt_file.is_empty() && self.prompt_tokens.is_empty())
    }

    fn prompts(&self, prompter: &Prompter, folder: &Path) -> anyhow::Result<Vec<Prompt>> {
        let mut prompts = Vec::new();
        for text in &self.prompt {
            prompts.push(prompter.text(text, None)?);
        }
        for path in &self.prompt_file {
            prompts.push(prompter.text(&read_prompt_file(path)?, None)?);
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
            repeatability: validation
                .repeatability
                .map(|r| Repeatability { runs: r.runs, disagreements: r.disagreements }),
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
                    left_out: row.left_out,
                })
                .collect(),
            moe_modules: patch.num_moe_modules,
            patterns: patch.patterns.clone(),
            precision: precision_name(patch.precision),
            reference,
            stock: mlx::build_info().stock(),
            prompts,
            runs: self.runs,
            tokens_sha256: {
                let first = || validation.runs.iter().take(prompts);
                let all = |of: fn(&lm::validate::RunReport) -> &Vec<u32>| {
                    hash::tokens(&first().map(|run| of(run).clone()).collect::<Vec<_>>())
                };
                TokenHashes {
                    reference: all(|run| &run.reference),
                    patched: all(|run| &run.patched),
                }
            },
            logits: None,
            require_fused: self.require_fused,
        }
    }
}

impl Answer for Summary {
    fn text(&self) -> String {
        let mut rows = Rows::new(10);
        rows.row("reference", &self.reference);
        rows.row("stock", &self.stock);
        let precision = if self.precision == "exact" { "" } else { ", precision fast" };
        rows.row(
            "fused",
            format!(
                "{} of {} MoE modules ({}{precision})",
                self.patched_modules,
                self.moe_modules,
                list(&self.patterns, "no pattern"),
            ),
        );
        let fallbacks = self.fallbacks.iter().filter(|f| !f.left_out);
        let fallbacks = fallbacks.map(|f| (f.module.as_str(), (f.pattern, &f.reason)));
        for (modules, (pattern, reason)) in fold(fallbacks) {
            rows.row("fallback", format!("{modules} {pattern}: {reason}"));
        }
        let left_out = self.fallbacks.iter().filter(|f| f.left_out).count();
        if left_out > 0 {
            rows.row("left out", format!("{left_out} places, as --exclude and --layers say"));
        }
        let runs = if self.runs == 1 { String::new() } else { format!(", {} runs", self.runs) };
        let prompts = if self.prompts == 1 { "prompt" } else { "prompts" };
        rows.row(
            "compared",
            format!("{} tokens: {} {prompts}{runs}", self.tokens_compared, self.prompts),
        );
        if let Some(divergence) = &self.first_divergence {
            rows.row("differs", divergence);
        }
        if let Some(Repeatability { runs, disagreements: disagreements @ 1.. }) = self.repeatability
        {
            let text = format!(
                "the reference disagrees with itself: {disagreements} of {runs}; what differs says nothing about the patch"
            );
            rows.row("unstable", text);
        }
        let TokenHashes { reference, patched } = &self.tokens_sha256;
        let mut tokens = hash::short(patched);
        if reference != patched {
            tokens.push_str(&format!(", reference {}", hash::short(reference)));
        }
        rows.row("tokens", tokens);
        if let Some(logits) = &self.logits {
            rows.row("logits", logits);
        }
        rows.row("baseline", format!("{} tok/s", rate(self.baseline_decode_tok_per_s)));
        rows.row("patched", format!("{} tok/s", rate(self.patched_decode_tok_per_s)));
        let speedup = self.speedup.map_or_else(|| "-".to_owned(), |x| format!("{x:.2}x"));
        rows.row("speedup", speedup);
        if self.require_fused && !self.is_fused() {
            rows.row("required", "all fused, which is not so: see the fallbacks");
        }
        rows.line(&format!("identical: {}", if self.identical { "yes" } else { "no" }));
        rows.into_text()
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = |id: Option<u32>, text: &Option<String>| match (id, text) {
            (Some(id), Some(text)) => format!("{id} {text:?}"),
            (Some(id), None) => id.to_string(),
            (None, _) => "the end".to_owned(),
        };
        let expected = token(self.expected, &self.expected_text);
        let got = token(self.got, &self.got_text);
        let Self { run, prompt, index, .. } = self;
        write!(f, "run {run}, prompt {prompt}, token {index}: expected {expected}, got {got}")?;
        match self.logit_margin {
            Some(margin) => write!(f, ", logit margin {margin}"),
            None => Ok(()),
        }
    }
}

//! `zmlx bench`

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure};
use serde::Serialize;
use zmlx::bench::engine::{Engines, Here, LlamaBench, Worker, serve};
use zmlx::bench::{VariantSpec, Work, hash, machine, model, prompts};
use zmlx::capsule::{Capsule, Case, EngineKind, Protocol, SCHEMA, VERSION, report};
use zmlx::lm::LoadedModel;

use super::bench_run::{self, Extras};
use super::options::{ComputeOptions, ModelOptions, OutputOptions, precision_name};
use super::prompts::Prompter;
use super::render::{Answer, Ui};
use super::sampling::parse_count;
use super::{CommandArgs, Examples, Exit, place, session};

/// Arguments of `zmlx bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Bench {
    #[command(flatten)]
    model: ModelOptions,
    /// A way to run the model, NAME=WORD,...: patterns (auto, smart, off, names), exact or fast, kv-bits=N, kv-group-size=N,
    /// quantized-kv-start=N, threads=N, cap=N, delay-us=N, lossy, mlx-lm, llama-bench; may be repeated, the first is the
    /// reference [default: stock=off and zmlx=auto]
    #[arg(long, value_name = "VARIANT", help_heading = "Variants", value_parser = parse_variant)]
    variant: Vec<VariantSpec>,
    /// llama.cpp's llama-bench, for a variant of that name
    #[arg(long, value_name = "FILE", requires = "gguf", help_heading = "Variants")]
    llama_bench: Option<PathBuf>,
    /// Model of the same shape for llama-bench
    #[arg(long, value_name = "FILE", requires = "llama_bench", help_heading = "Variants")]
    gguf: Option<PathBuf>,
    /// Give each variant a process of its own
    #[arg(long, help_heading = "Variants")]
    isolate: bool,
    /// Prompts by name [default: all: english_technical, chinese, code, math_reasoning, creative]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        value_parser = parse_prompt,
        help_heading = "Work"
    )]
    prompts: Vec<String>,
    /// Tokens to generate after each prompt [default: 256,1024,2048]
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        value_parser = parse_count,
        help_heading = "Work"
    )]
    lengths: Vec<usize>,
    /// Read so many tokens; in place of the prompts, unless these are named
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        value_parser = parse_count,
        help_heading = "Work"
    )]
    pp: Vec<usize>,
    /// Decode so many tokens; likewise
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        value_parser = parse_count,
        help_heading = "Work"
    )]
    tg: Vec<usize>,
    /// Tokens in the cache before, for --pp and --tg [default: 0]
    #[arg(long, value_name = "N,...", value_delimiter = ',', help_heading = "Work")]
    depth: Vec<usize>,
    /// Sequences at once, for --tg [default: 1]
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        value_parser = parse_count,
        help_heading = "Work"
    )]
    batch: Vec<usize>,
    /// Timed runs of each case and variant
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        help_heading = "Protocol"
    )]
    runs: u32,
    /// Runs of each variant before the first timed one
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Protocol")]
    warmup: u32,
    /// Milliseconds between two runs
    #[arg(long, value_name = "MS", default_value_t = 100, help_heading = "Protocol")]
    cooldown: u64,
    /// Go on with what this capsule lacks; it says what is measured
    #[arg(
        long,
        value_name = "CAPSULE",
        help_heading = "Protocol",
        conflicts_with_all = [
            "variant", "isolate", "prompts", "lengths", "pp", "tg", "depth", "batch", "runs", "warmup", "cooldown", "out"
        ]
    )]
    resume: Option<PathBuf>,
    /// Compare logits with the reference's at so many positions of each case
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "Findings")]
    logits: Option<usize>,
    /// Count which experts are chosen while decoding
    #[arg(long, help_heading = "Findings")]
    routing_histogram: bool,
    #[command(flatten)]
    compute: ComputeOptions,
    /// The capsule, a new file [default: zmlx-<model>-<time>.json]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Serve requests of another bench; what --isolate starts
    #[arg(long, hide = true, help_heading = "Output")]
    worker: bool,
    #[command(flatten)]
    _output: OutputOptions,
}

/// What `--json` begins with.
#[derive(Debug, Serialize)]
struct Begin {
    model: String,
    capsule: String,
    variants: Vec<String>,
    cases: Vec<String>,
    runs: usize,
}

/// What came out.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    capsule: String,
    /// Whether every variant that is not lossy says what the reference says.
    identical: bool,
    interrupted: bool,
    samples: usize,
    variants: Vec<VariantSummary>,
    #[serde(skip)]
    report: String,
}

#[derive(Debug, Serialize)]
struct VariantSummary {
    name: String,
    decode_tok_per_s: Option<f64>,
    prompt_tok_per_s: Option<f64>,
    decode_speedup: Option<f64>,
    identical: Option<bool>,
    first_divergence: Option<DivergenceSummary>,
    tokens: Option<String>,
}

#[derive(Debug, Serialize)]
struct DivergenceSummary {
    case: String,
    run: usize,
    row: usize,
    index: usize,
    expected: Option<u32>,
    got: Option<u32>,
}

impl CommandArgs for Bench {
    const ABOUT: &'static str = "Measure variants of a model in turns, into one file";
    const EXAMPLES: Examples = &[
        (
            "Stock MLX against everything fused, a reduced matrix",
            "zmlx bench --prompts code --lengths 64 --runs 3",
        ),
        (
            "Fast against stock, which is slow here and so does less",
            "zmlx bench --variant stock=off,cap=4 --variant fast=auto,fast,lossy --pp 128 --tg 64",
        ),
        (
            "What a packed cache costs and changes",
            "zmlx bench --variant auto --variant kv4=kv-bits=4,quantized-kv-start=0,lossy --logits 64",
        ),
        (
            "Beside mlx-lm",
            "ZMLX_PYTHON=~/venv/bin/python zmlx bench --variant zmlx=auto --variant mlx-lm",
        ),
        (
            "What --patch smart would choose, against stock",
            "zmlx bench --variant stock=off --variant chosen=smart --tg 32 --out x.json",
        ),
        ("Go on after Ctrl-C", "zmlx bench --resume zmlx-demo.json"),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        self.compute.apply()?;
        let folder = self.model.folder(ui)?;
        let mut loaded = session::load(&folder, ui)?;
        if self.worker {
            serve(&mut Here::new(&mut loaded), io::stdin().lock(), io::stdout())?;
            return Ok(Exit::Done);
        }
        let (mut capsule, specs, work, path) = match &self.resume {
            Some(path) => self.resumed(path, &loaded, &folder)?,
            None => self.fresh(&mut loaded, &folder, ui)?,
        };
        ui.begin(
            "bench",
            &Begin {
                model: folder.display().to_string(),
                capsule: path.display().to_string(),
                variants: specs.iter().map(|spec| spec.name.clone()).collect(),
                cases: work.iter().map(|work| work.case.name.clone()).collect(),
                runs: capsule.protocol.runs,
            },
        )?;
        let python = place::python();
        let extras = Extras { logits: self.logits, routing: self.routing_histogram };
        let mut others: Vec<(EngineKind, Box<dyn zmlx::bench::Engine>)> =
            vec![(EngineKind::MlxLm, Box::new(Worker::mlx_lm(&python, &folder)))];
        if let (Some(program), Some(gguf)) = (&self.llama_bench, &self.gguf) {
            let engine = LlamaBench::new(program.clone(), gguf.clone());
            others.push((EngineKind::LlamaBench, Box::new(engine)));
        }
        let result = if capsule.protocol.isolate {
            let own = Box::new(Worker::new(Box::new(|spec| self.worker_command(spec, &folder))));
            bench_run::run(&mut Engines { own, others }, &mut capsule, &specs, &work, &path, ui)
        } else {
            let own = Box::new(Here::new(&mut loaded));
            bench_run::run(&mut Engines { own, others }, &mut capsule, &specs, &work, &path, ui)
        };
        result?;
        extras.add(&mut loaded, &mut capsule, &specs, &work, ui)?;
        capsule.write(&path)?;
        let summary = summary(&capsule, &path);
        let exit = match (capsule.is_faithful(), capsule.interrupted) {
            (false, _) => Exit::No,
            (true, true) => Exit::Failed,
            (true, false) => Exit::Done,
        };
        ui.finish(&summary)?;
        if capsule.interrupted {
            ui.note(&format!("stopped; go on with: zmlx bench --resume {}", path.display()));
        }
        Ok(exit)
    }
}

type Prepared = (Capsule, Vec<VariantSpec>, Vec<Work>, PathBuf);

impl Bench {
    fn fresh(&self, loaded: &mut LoadedModel, folder: &Path, ui: &Ui) -> anyhow::Result<Prepared> {
        let mut specs = self.specs()?;
        let work = self.work(loaded, folder)?;
        let name = self.model.repo(folder);
        let model = model::describe(loaded, name.as_deref())?;
        let created = machine::now();
        let path = match &self.out {
            Some(path) => path.clone(),
            None => {
                let name = model.name.replace(['/', ' '], "-");
                let time: String = created.chars().filter(char::is_ascii_alphanumeric).collect();
                PathBuf::from(format!("zmlx-{name}-{time}.json"))
            }
        };
        ensure!(
            !path.exists(),
            "--out: {} is there already; name another file, or --resume it",
            path.display()
        );
        let mut notes = notes(loaded, &work);
        for spec in specs.iter_mut().filter(|spec| spec.smart) {
            notes.push(bench_run::settle(loaded, spec, &work, ui)?);
        }
        let capsule = Capsule {
            schema: SCHEMA.to_owned(),
            version: VERSION,
            created,
            program: "bench".to_owned(),
            zmlx: place::software(),
            mlx: machine::mlx_build(),
            machine: machine::machine(),
            notes,
            model: Some(model),
            protocol: Protocol {
                runs: self.runs as usize,
                warmup: self.warmup as usize,
                cooldown_ms: self.cooldown,
                order: "abba".to_owned(),
                isolate: self.isolate,
            },
            variants: specs.iter().map(VariantSpec::describe).collect(),
            cases: work.iter().map(|work| work.case.clone()).collect(),
            samples: Vec::new(),
            outputs: Vec::new(),
            fidelity: Vec::new(),
            logits: Vec::new(),
            routing: Vec::new(),
            bandwidth: Vec::new(),
            interrupted: true,
        };
        Ok((capsule, specs, work, path))
    }

    /// What a capsule lacks can be measured by the same program on the same machine only.
    fn resumed(
        &self,
        path: &Path,
        loaded: &LoadedModel,
        folder: &Path,
    ) -> anyhow::Result<Prepared> {
        let capsule = Capsule::read(path)?;
        let shown = path.display();
        let Some(model) = &capsule.model else { bail!("--resume: {shown} is of no model") };
        let here = machine::machine();
        let was = &capsule.machine;
        for (what, was, is) in [
            ("checkpoint", model.fingerprint.clone(), hash::checkpoint(loaded)?),
            ("zmlx", capsule.zmlx.commit.clone(), place::software().commit),
            ("MLX", format!("{:?}", capsule.mlx), format!("{:?}", machine::mlx_build())),
            ("processor", was.cpu.clone(), here.cpu),
            ("device", was.device.clone(), here.device),
            ("number of threads", was.threads.to_string(), here.threads.to_string()),
        ] {
            ensure!(was == is, "--resume: {shown} was begun with another {what}: {was}, now {is}");
        }
        let specs: Vec<VariantSpec> =
            capsule.variants.iter().map(VariantSpec::of).collect::<Result<_, _>>()?;
        let prompter = Prompter::load(folder, true)?;
        let mut work = Vec::new();
        for case in &capsule.cases {
            let again = work_of(case, &prompter, loaded)?;
            ensure!(
                again.case == *case,
                "--resume: {shown}: the tokens of {} are others now",
                case.name
            );
            work.push(again);
        }
        Ok((capsule, specs, work, path.to_owned()))
    }

    fn specs(&self) -> anyhow::Result<Vec<VariantSpec>> {
        let mut specs = self.variant.clone();
        if specs.is_empty() {
            let precision = precision_name(self.compute.precision());
            let lossy = if precision == "fast" { ",lossy" } else { "" };
            specs = vec![
                VariantSpec::stock(),
                VariantSpec::parse(&format!("zmlx=auto,{precision}{lossy}"))?,
            ];
        }
        let has = |kind: EngineKind| specs.iter().any(|spec| spec.engine == kind);
        match (has(EngineKind::LlamaBench), &self.llama_bench) {
            (true, None) => bail!("--variant llama-bench needs --llama-bench FILE and --gguf FILE"),
            (false, Some(_)) => specs.push(VariantSpec::parse("llama.cpp=llama-bench")?),
            _ => {}
        }
        for (i, spec) in specs.iter().enumerate() {
            ensure!(
                specs[..i].iter().all(|other| other.name != spec.name),
                "--variant: two are called {}",
                spec.name
            );
        }
        ensure!(
            specs[0].engine != EngineKind::LlamaBench,
            "--variant: the first one is the reference, and llama-bench tells no tokens"
        );
        Ok(specs)
    }

    fn work(&self, loaded: &LoadedModel, folder: &Path) -> anyhow::Result<Vec<Work>> {
        let vocab_size = loaded.model.vocab_size();
        let sweep = !self.pp.is_empty() || !self.tg.is_empty();
        if !sweep {
            ensure!(
                self.depth.is_empty() && self.batch.is_empty(),
                "--depth and --batch are for --pp and --tg"
            );
        }
        let or = |list: &[usize], default: &[usize]| {
            if list.is_empty() { default.to_vec() } else { list.to_vec() }
        };
        let mut work = Vec::new();
        if !sweep || !self.prompts.is_empty() || !self.lengths.is_empty() {
            let prompter = Prompter::load(folder, true)?;
            let all = || prompts::PROMPTS.iter().map(|(name, _)| (*name).to_owned()).collect();
            let names = if self.prompts.is_empty() { all() } else { self.prompts.clone() };
            for name in &names {
                let tokens = prompt_tokens(name, &prompter, loaded)?;
                for length in or(&self.lengths, &[256, 1024, 2048]) {
                    work.push(Work::generate(name, tokens.clone(), length));
                }
            }
        }
        for depth in or(&self.depth, &[0]) {
            for tokens in &self.pp {
                work.push(Work::prefill(*tokens, depth, vocab_size));
            }
            for tokens in &self.tg {
                for batch in or(&self.batch, &[1]) {
                    work.push(Work::decode(*tokens, depth, batch, vocab_size));
                }
            }
        }
        Ok(work)
    }

    /// This program again, for one variant.
    fn worker_command(&self, spec: &VariantSpec, folder: &Path) -> Command {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("zmlx"));
        let mut command = Command::new(program);
        command.arg("bench").arg(folder).arg("--worker");
        command.args(["--device", &mlx::default_device().to_string()]);
        let threads = spec.threads.unwrap_or_else(mlx::num_threads);
        command.args(["--threads", &threads.to_string()]);
        command
    }
}

fn notes(loaded: &LoadedModel, work: &[Work]) -> Vec<String> {
    let limit = loaded.config.get("max_position_embeddings").and_then(serde_json::Value::as_u64);
    let longest = work.iter().map(|work| {
        let case = &work.case;
        case.depth + case.prompt_tokens + case.generate_tokens
    });
    match (limit, longest.max()) {
        (Some(limit), Some(longest)) if longest as u64 > limit => {
            vec![format!("the longest case has {longest} tokens, the model was made for {limit}")]
        }
        _ => Vec::new(),
    }
}

/// The tokens of a case that a capsule describes, as they are here.
pub(super) fn work_of(
    case: &Case,
    prompter: &Prompter,
    loaded: &LoadedModel,
) -> anyhow::Result<Work> {
    let vocab_size = loaded.model.vocab_size();
    Ok(match (&case.prompt, case.prompt_tokens) {
        (Some(prompt), _) => {
            let tokens = prompt_tokens(prompt, prompter, loaded)?;
            Work::generate(prompt, tokens, case.generate_tokens)
        }
        (None, 0) => Work::decode(case.generate_tokens, case.depth, case.batch, vocab_size),
        (None, tokens) => Work::prefill(tokens, case.depth, vocab_size),
    })
}

fn prompt_tokens(
    name: &str,
    prompter: &Prompter,
    loaded: &LoadedModel,
) -> anyhow::Result<Vec<u32>> {
    match prompts::text(name) {
        Some(text) if prompter.tokenizer.is_some() => Ok(prompter.text(text, None)?.token_ids),
        _ => Ok(prompts::tokens(name, loaded.model.vocab_size())),
    }
}

fn parse_variant(text: &str) -> Result<VariantSpec, String> {
    VariantSpec::parse(text).map_err(|error| error.to_string())
}

fn parse_prompt(name: &str) -> Result<String, String> {
    let names: Vec<&str> = prompts::PROMPTS.iter().map(|(name, _)| *name).collect();
    match names.contains(&name) {
        true => Ok(name.to_owned()),
        false => Err(format!("there is no prompt `{name}`; there are {}", names.join(", "))),
    }
}

fn summary(capsule: &Capsule, path: &Path) -> Summary {
    use zmlx::capsule::{Metric, stats};
    let of = |variant: usize, metric: Metric| {
        let all = (0..capsule.cases.len()).flat_map(|case| capsule.values(variant, case, metric));
        stats::median(&all.collect::<Vec<_>>())
    };
    let variant = |(i, variant): (usize, &zmlx::capsule::Variant)| {
        let compared: Vec<_> = capsule.fidelity.iter().filter(|f| f.variant == i).collect();
        let first = compared.iter().find_map(|f| Some((f.case, f.first_divergence.as_ref()?)));
        VariantSummary {
            name: variant.name.clone(),
            decode_tok_per_s: of(i, Metric::DecodeTokPerS),
            prompt_tok_per_s: of(i, Metric::PromptTokPerS),
            decode_speedup: match i {
                0 => None,
                _ => capsule.speedup(i, Metric::DecodeTokPerS).map(|change| change.ratio),
            },
            identical: (!compared.is_empty()).then_some(first.is_none()),
            first_divergence: first.map(|(case, d)| DivergenceSummary {
                case: capsule.cases[case].name.clone(),
                run: d.run,
                row: d.row,
                index: d.index,
                expected: d.expected,
                got: d.got,
            }),
            tokens: tokens_line(capsule, i),
        }
    };
    Summary {
        capsule: path.display().to_string(),
        identical: capsule.is_faithful(),
        interrupted: capsule.interrupted,
        samples: capsule.samples.len(),
        variants: capsule.variants.iter().enumerate().map(variant).collect(),
        report: report::terminal(&report::report(capsule)),
    }
}

/// One hash over all cases' tokens, which two people can compare by eye; `None` where a case has none.
fn tokens_line(capsule: &Capsule, variant: usize) -> Option<String> {
    let of = |case| {
        let sample = capsule.samples_of(variant, case).min_by_key(|sample| sample.run)?;
        sample.tokens_sha256.clone()
    };
    let all: Vec<String> = (0..capsule.cases.len()).map(of).collect::<Option<_>>()?;
    Some(hash::short(&hash::text(&all.concat())))
}

impl Answer for Summary {
    fn text(&self) -> String {
        let mut text = self.report.clone();
        text.push('\n');
        for variant in &self.variants {
            if let Some(tokens) = &variant.tokens {
                text.push_str(&format!("tokens {tokens}  {}\n", variant.name));
            }
        }
        text.push_str(&format!("capsule: {}\n", self.capsule));
        text.push_str(if self.identical { "identical: yes\n" } else { "identical: no\n" });
        text
    }
}

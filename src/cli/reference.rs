//! References from elsewhere: mlx-lm, in a Python that has it, and capsules.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use zmlx::bench::{hash, prompts};
use zmlx::capsule::{Capsule, CaseKind};
use zmlx::lm::{KvQuantization, LoadedModel};

use super::prompts::{Prompt, Prompter};
use super::{bench, place};

/// Loads the folder with mlx-lm, decodes greedily, prints one JSON object.
const SCRIPT: &str = include_str!("mlx_lm_reference.py");

/// What a reference generated.
#[derive(Debug, Deserialize)]
pub(super) struct Reference {
    /// Versions, for the report.
    pub(super) name: String,
    /// One sequence per prompt.
    pub(super) token_ids: Vec<Vec<u32>>,
}

/// What a capsule says is to come out.
pub(super) struct Told {
    pub(super) prompts: Vec<Prompt>,
    pub(super) reference: Reference,
    /// Tokens that every case of it has.
    pub(super) max_tokens: usize,
}

/// The prompts of a capsule and what its reference said after them.
pub(super) fn capsule(
    path: &Path,
    loaded: &LoadedModel,
    prompter: &Prompter,
    max_tokens: usize,
) -> anyhow::Result<Told> {
    let capsule = Capsule::read(path)?;
    let shown = path.display();
    let Some(model) = &capsule.model else { bail!("--reference: {shown} is of no model") };
    let here = hash::checkpoint(loaded)?;
    ensure!(
        model.fingerprint == here,
        "--reference: {shown} is of another checkpoint, {} ({}); this one is {}",
        model.name,
        hash::short(&model.fingerprint),
        hash::short(&here)
    );
    let mut told: Vec<(Prompt, Vec<u32>)> = Vec::new();
    for output in capsule.outputs.iter().filter(|output| output.variant == 0) {
        let case = &capsule.cases[output.case];
        if !matches!(case.kind, CaseKind::Generate | CaseKind::Decode) {
            continue;
        }
        let work = bench::work_of(case, prompter, loaded)?;
        ensure!(
            work.case.prompt_sha256 == case.prompt_sha256,
            "--reference: {shown}: the tokens of {} are others here",
            case.name
        );
        for (prompt, tokens) in work.rows.iter().zip(&output.rows) {
            let text = case.prompt.as_deref().and_then(prompts::text).map(str::to_owned);
            let prompt = Prompt { text, token_ids: prompt.clone() };
            // of one prompt at several lengths the longest says it all
            match told.iter_mut().find(|(known, _)| known.token_ids == prompt.token_ids) {
                Some((_, known)) if known.len() < tokens.len() => known.clone_from(tokens),
                Some(_) => {}
                None => told.push((prompt, tokens.clone())),
            }
        }
    }
    let Some(least) = told.iter().map(|(_, tokens)| tokens.len()).min() else {
        bail!("--reference: {shown} holds no tokens");
    };
    let max_tokens = max_tokens.min(least);
    let (prompts, mut token_ids): (Vec<_>, Vec<_>) = told.into_iter().unzip();
    token_ids.iter_mut().for_each(|tokens| tokens.truncate(max_tokens));
    let machine = &capsule.machine;
    let name = format!(
        "{} of {} on {}, MLX {} ({})",
        capsule.variants[0].name,
        capsule.created,
        machine.device_name.as_ref().unwrap_or(&machine.cpu),
        capsule.mlx.version,
        capsule.mlx.mode
    );
    Ok(Told { prompts, reference: Reference { name, token_ids }, max_tokens })
}

/// Greedy tokens of mlx-lm, on its own device and with its own MLX.
pub(super) fn mlx_lm(
    folder: &Path,
    prompts: &[Vec<u32>],
    max_tokens: usize,
    kv: Option<KvQuantization>,
) -> anyhow::Result<Reference> {
    let python = place::python();
    let device = mlx::default_device().to_string();
    let request = json!({
        "model": folder, "prompts": prompts, "max_tokens": max_tokens, "device": device,
        "kv": kv.map(|kv| json!({
            "kv_bits": kv.bits, "kv_group_size": kv.group_size, "quantized_kv_start": kv.start,
        })),
    });
    let mut child = Command::new(&python)
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!("cannot start {python}; set ZMLX_PYTHON to a Python that has mlx-lm")
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A script that stops early says why on stderr.
        stdin.write_all(request.to_string().as_bytes()).ok();
    }
    let output = child.wait_with_output().with_context(|| format!("cannot read from {python}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let reason = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let build = mlx::build_info();
        bail!(
            "mlx-lm in {python} failed: {}; it takes mlx-lm {} on MLX {}",
            reason.trim(),
            build.mlx_lm_version,
            build.compiled_version
        );
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let answer = stdout.lines().last().unwrap_or_default();
    let answer: Reference = serde_json::from_str(answer)
        .with_context(|| format!("{python} did not answer with JSON"))?;
    if answer.token_ids.len() != prompts.len() {
        bail!("mlx-lm answered {} of {} prompts", answer.token_ids.len(), prompts.len());
    }
    Ok(answer)
}

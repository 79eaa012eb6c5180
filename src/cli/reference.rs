//! mlx-lm as the reference: the same prompts through a Python that has it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::json;
use zmlx::lm::KvQuantization;

use super::place;

/// Loads the folder with mlx-lm, decodes greedily, prints one JSON object.
const SCRIPT: &str = include_str!("mlx_lm_reference.py");

/// What mlx-lm generated.
#[derive(Debug, Deserialize)]
pub(super) struct MlxLm {
    /// Versions, for the report.
    pub(super) name: String,
    /// One sequence per prompt.
    pub(super) token_ids: Vec<Vec<u32>>,
}

/// Greedy tokens of mlx-lm, on its own device and with its own MLX.
pub(super) fn mlx_lm(
    folder: &Path,
    prompts: &[Vec<u32>],
    max_tokens: usize,
    kv: Option<KvQuantization>,
) -> anyhow::Result<MlxLm> {
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
    let answer: MlxLm = serde_json::from_str(answer)
        .with_context(|| format!("{python} did not answer with JSON"))?;
    if answer.token_ids.len() != prompts.len() {
        bail!("mlx-lm answered {} of {} prompts", answer.token_ids.len(), prompts.len());
    }
    Ok(answer)
}

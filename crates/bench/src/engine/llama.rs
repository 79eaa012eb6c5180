//! llama.cpp's `llama-bench`: speeds without tokens, on a model of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use zmlx_capsule::{CaseKind, Metric, Variant, rounded};

use super::{Engine, Outcome};
use crate::case::Work;
use crate::measure::Cancelled;
use crate::variant::VariantSpec;
use crate::{Error, Result};

/// A `llama-bench` and its model.
pub struct LlamaBench {
    program: PathBuf,
    gguf: PathBuf,
}

impl LlamaBench {
    /// - `program`: `llama-bench`
    /// - `gguf`: the model
    pub fn new(program: PathBuf, gguf: PathBuf) -> Self {
        Self { program, gguf }
    }

    /// One test: `llama-bench` prints a JSON object for each, prompts first.
    fn test(
        &self,
        spec: &VariantSpec,
        prompt: usize,
        generate: usize,
        depth: usize,
    ) -> Result<Vec<Value>> {
        let failed = |reason: String| Error::program(self.program.display(), reason);
        let threads = spec.threads.unwrap_or_else(mlx::num_threads);
        let mut command = Command::new(&self.program);
        command.arg("-m").arg(&self.gguf).args(["-r", "1", "-o", "jsonl"]);
        for (flag, value) in [("-t", threads as usize), ("-p", prompt), ("-n", generate)] {
            command.args([flag, &value.to_string()]);
        }
        // older ones do not know it
        if depth > 0 {
            command.args(["-d", &depth.to_string()]);
        }
        let output = command.stdin(Stdio::null()).output().map_err(|e| failed(e.to_string()))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let last =
                stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no word");
            return Err(failed(format!("{}: {last}", output.status)));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let rows = text.lines().filter(|line| line.starts_with('{')).map(serde_json::from_str);
        rows.collect::<std::result::Result<_, _>>().map_err(|error| failed(error.to_string()))
    }
}

impl Engine for LlamaBench {
    fn describe(&mut self, spec: &VariantSpec, variant: &mut Variant) -> Result<()> {
        let rows = self.test(spec, 1, 0, 0)?;
        let text = |key: &str| Some(rows.first()?.get(key)?.as_str()?.to_owned());
        let build = text("build_commit").unwrap_or_else(|| "unknown".to_owned());
        let model = text("model_type").unwrap_or_default();
        variant.engine_version =
            Some(format!("llama.cpp {build}, {model}").trim_end_matches(", ").to_owned());
        Ok(())
    }

    fn refusal(&self, _spec: &VariantSpec, work: &Work) -> Option<String> {
        let batch = work.case.batch;
        (batch > 1).then(|| format!("llama-bench decodes one sequence, not {batch} at once"))
    }

    fn run(
        &mut self,
        spec: &VariantSpec,
        work: &Work,
        cancelled: Cancelled<'_>,
    ) -> Result<Option<Outcome>> {
        if cancelled() {
            return Ok(None);
        }
        let case = &work.case;
        let (prompt, generate) = match case.kind {
            CaseKind::Decode => (0, spec.capped(case.generate_tokens)),
            _ => (spec.capped(case.prompt_tokens), spec.capped(case.generate_tokens)),
        };
        let rows = match self.test(spec, prompt, generate, case.depth) {
            // Ctrl-C reaches it too
            Err(_) if cancelled() => return Ok(None),
            rows => rows?,
        };
        let mut metrics = BTreeMap::new();
        for row in &rows {
            let number = |key: &str| row.get(key).and_then(Value::as_f64);
            let metric = match number("n_gen") {
                Some(n) if n > 0.0 => Metric::DecodeTokPerS,
                _ => Metric::PromptTokPerS,
            };
            let speed = number("avg_ts")
                .ok_or_else(|| Error::program(self.program.display(), "printed no avg_ts"))?;
            metrics.insert(metric, rounded(speed));
        }
        if metrics.is_empty() {
            return Err(Error::program(self.program.display(), "printed no result"));
        }
        Ok(Some(Outcome { metrics, rows: None }))
    }
}

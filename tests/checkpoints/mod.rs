//! Models on disk through the binary: a good one, and many bad ones.

mod good;
mod hostile;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mlx::quantization::Quantization;
use mlx::{Array, Dtype};
use serde_json::{Value, json};
use zmlx::lm::synth::Draft;

/// `config.json` of the tiny checkpoint: two layers, four experts.
pub(crate) fn config() -> Value {
    json!({
        "model_type": "qwen3_moe",
        "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "moe_intermediate_size": 64, "rms_norm_eps": 1e-6,
        "vocab_size": 97, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "max_position_embeddings": 512, "norm_topk_prob": true,
        "quantization": { "group_size": 64, "bits": 4, "mode": "affine" },
    })
}

/// Every tensor of the tiny checkpoint by name.
pub(crate) fn tensors() -> Vec<(String, Array)> {
    let draft = Draft::new(config(), Dtype::Bf16, 7).unwrap();
    let draft = draft.quantized(Quantization::affine(64, 4)).unwrap();
    draft.weights.into_iter().collect()
}

/// A folder with the tiny checkpoint.
pub(crate) struct Tiny {
    folder: tempfile::TempDir,
}

impl Tiny {
    pub(crate) fn new() -> Self {
        let tiny = Self { folder: tempfile::tempdir().unwrap() };
        tiny.write_config(&config());
        tiny.write_weights("model.safetensors", &tensors());
        tiny
    }

    /// Nothing quantised, in the one type that stock MLX gathers unquantised experts in on a CPU.
    pub(crate) fn dense() -> Self {
        let tiny = Self { folder: tempfile::tempdir().unwrap() };
        let mut config = config();
        config.as_object_mut().unwrap().remove("quantization");
        Draft::new(config, Dtype::F32, 7).unwrap().write(tiny.path()).unwrap();
        tiny
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write_config(&self, config: &Value) {
        std::fs::write(self.file("config.json"), config.to_string()).unwrap();
    }

    pub(crate) fn write_weights(&self, name: &str, tensors: &[(String, Array)]) {
        let arrays = tensors.iter().map(|(n, a)| (n.as_str(), a));
        mlx::io::save_safetensors(&self.file(name), arrays, [("format", "mlx")]).unwrap();
    }

    /// `model-0000i-of-0000n.safetensors` and their index instead of one file.
    pub(crate) fn shard(&self, num_shards: usize) {
        std::fs::remove_file(self.file("model.safetensors")).unwrap();
        let weights = tensors().into_iter().collect();
        Draft::of(config(), weights).write_shards(self.path(), num_shards).unwrap();
    }
}

/// Runs the binary; it must not read anybody's cache or reach a network.
pub(crate) fn zmlx(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_zmlx"))
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", home.path())
        .output()
        .unwrap()
}

/// `zmlx generate FOLDER` with five tokens of prompt and eight to generate.
pub(crate) fn generate(folder: &Path, more: &[&str]) -> Output {
    let folder = folder.to_str().unwrap();
    let mut arguments = vec!["generate", folder, "--prompt-tokens", "1,5,9,2,3"];
    arguments.extend(["--max-tokens", "8", "--ignore-eos", "--no-chat-template", "--json"]);
    arguments.extend(more);
    zmlx(&arguments)
}

/// The last line of `--json`.
pub(crate) fn summary(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{error}", output.status);
    let last = text.lines().last().unwrap_or_default();
    let value: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"));
    assert_eq!(value["type"], "summary", "{last}");
    value
}

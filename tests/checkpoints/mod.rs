//! Models on disk through the binary: a good one, and many bad ones.

mod good;
mod hostile;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, Dtype};
use serde_json::{Value, json};

use crate::support::data::Rng;

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
    tensors_of(Some(Quantization::affine(64, 4)), Dtype::Bf16)
}

fn tensors_of(quantization: Option<Quantization>, dtype: Dtype) -> Vec<(String, Array)> {
    let mut rng = Rng::new(7);
    let mut out = Vec::new();
    let norm = |rng: &mut Rng, name: String, size: i32, out: &mut Vec<(String, Array)>| {
        let noise = rng.array(&[size], dtype, 0.1);
        let one = Array::scalar_like(1.0, &noise).unwrap();
        out.push((format!("{name}.weight"), mlx::ops::add(&noise, &one).unwrap()));
    };
    let linear = |rng: &mut Rng, name: String, shape: &[i32], out: &mut Vec<(String, Array)>| {
        let k = shape[shape.len() - 1] as f32;
        let w = rng.array(shape, dtype, 1.0 / k.sqrt());
        let Some(quantization) = quantization else {
            out.push((format!("{name}.weight"), w));
            return;
        };
        let q = QuantizedWeight::quantize(&w, quantization).unwrap();
        out.push((format!("{name}.weight"), q.w));
        out.push((format!("{name}.scales"), q.scales));
        out.push((format!("{name}.biases"), q.biases.unwrap()));
    };
    linear(&mut rng, "model.embed_tokens".into(), &[97, 64], &mut out);
    linear(&mut rng, "lm_head".into(), &[97, 64], &mut out);
    norm(&mut rng, "model.norm".into(), 64, &mut out);
    for layer in 0..2 {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        for (part, size) in [
            ("input_layernorm", 64),
            ("post_attention_layernorm", 64),
            ("self_attn.q_norm", 32),
            ("self_attn.k_norm", 32),
        ] {
            norm(&mut rng, name(part), size, &mut out);
        }
        for (part, rows) in [("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)] {
            linear(&mut rng, name(&format!("self_attn.{part}")), &[rows, 64], &mut out);
        }
        linear(&mut rng, name("mlp.gate"), &[4, 64], &mut out);
        for part in ["gate_proj", "up_proj", "down_proj"] {
            linear(&mut rng, name(&format!("mlp.switch_mlp.{part}")), &[4, 64, 64], &mut out);
        }
    }
    out
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
        tiny.write_config(&config);
        tiny.write_weights("model.safetensors", &tensors_of(None, Dtype::F32));
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
        let mut map = serde_json::Map::new();
        let all = tensors();
        for (i, part) in all.chunks(all.len().div_ceil(num_shards)).enumerate() {
            let name = format!("model-{:05}-of-{num_shards:05}.safetensors", i + 1);
            self.write_weights(&name, part);
            map.extend(part.iter().map(|(n, _)| (n.clone(), json!(name))));
        }
        let index = json!({ "metadata": {}, "weight_map": map });
        std::fs::write(self.file("model.safetensors.index.json"), index.to_string()).unwrap();
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

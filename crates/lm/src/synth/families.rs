//! What can be imitated: one row per model with its configuration.

mod hybrid;

use serde_json::{Map, Value, json};

/// A model that [`super::synthesize`] can imitate.
pub(super) struct Family {
    /// As `--like` takes it.
    pub(super) name: &'static str,
    /// Decoder layers of the original.
    pub(super) num_layers: usize,
    /// `config.json`, but for the number of layers and the quantisation.
    pub(super) config: fn() -> Map<String, Value>,
}

/// Every model there is.
pub(super) const FAMILIES: &[Family] = &[
    Family { name: "lfm2-24b-a2b", num_layers: 40, config: hybrid::lfm2_24b_a2b },
    Family { name: "lfm2-8b-a1b", num_layers: 24, config: hybrid::lfm2_8b_a1b },
    Family { name: "qwen3-next-80b-a3b", num_layers: 48, config: hybrid::qwen3_next_80b_a3b },
    Family { name: "qwen3.5-35b-a3b", num_layers: 40, config: hybrid::qwen3_5_35b_a3b },
    Family { name: "qwen3-30b-a3b", num_layers: 48, config: || QWEN3_30B_A3B.config() },
    Family { name: "qwen3-moe-tiny", num_layers: 2, config: || QWEN3_MOE_TINY.config() },
];

/// The public configuration of Qwen/Qwen3-30B-A3B.
const QWEN3_30B_A3B: Qwen3Moe = Qwen3Moe {
    hidden: 2048,
    heads: 32,
    kv_heads: 4,
    head_dim: 128,
    experts: 128,
    top_k: 8,
    moe_intermediate: 768,
    intermediate: 6144,
    vocab: 151_936,
    bos: 151_643,
    eos: 151_645,
    max_positions: 40_960,
};

/// The same architecture in half a megabyte, for tests.
const QWEN3_MOE_TINY: Qwen3Moe = Qwen3Moe {
    hidden: 128,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    experts: 16,
    top_k: 4,
    moe_intermediate: 64,
    intermediate: 256,
    vocab: 1024,
    bos: 1,
    eos: 2,
    max_positions: 4096,
};

struct Qwen3Moe {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    experts: usize,
    top_k: usize,
    moe_intermediate: usize,
    intermediate: usize,
    vocab: usize,
    bos: u32,
    eos: u32,
    max_positions: usize,
}

impl Qwen3Moe {
    fn config(&self) -> Map<String, Value> {
        let config = json!({
            "architectures": ["Qwen3MoeForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos,
            "decoder_sparse_step": 1,
            "eos_token_id": self.eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.max_positions,
            "max_window_layers": 48,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": self.moe_intermediate,
            "norm_topk_prob": true,
            "num_attention_heads": self.heads,
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "num_hidden_layers": 0,
            "num_key_value_heads": self.kv_heads,
            "output_router_logits": false,
            "rms_norm_eps": 1e-6,
            "rope_scaling": null,
            "rope_theta": 1_000_000.0,
            "router_aux_loss_coef": 0.001,
            "sliding_window": null,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": self.vocab,
        });
        match config {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }
}

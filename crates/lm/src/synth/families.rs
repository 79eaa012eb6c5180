//! What can be imitated: one row per model with its configuration.

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
    Family { name: "gemma4-26b-a4b", num_layers: 30, config: gemma4_26b_a4b },
    Family { name: "gpt-oss-20b", num_layers: 24, config: gpt_oss_20b },
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
        object(json!({
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
        }))
    }
}

/// The public configuration of google/gemma-4-26B-A4B, the text part.
fn gemma4_26b_a4b() -> Map<String, Value> {
    let pattern = [vec!["sliding_attention"; 5], vec!["full_attention"]].concat();
    object(json!({
        "architectures": ["Gemma4ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "model_type": "gemma4",
        "text_config": {
            "attention_bias": false,
            "attention_dropout": 0.0,
            "attention_k_eq_v": true,
            "bos_token_id": 2,
            "enable_moe_block": true,
            "eos_token_id": 1,
            "final_logit_softcapping": 30.0,
            "global_head_dim": 512,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2816,
            "hidden_size_per_layer_input": 0,
            "initializer_range": 0.02,
            "intermediate_size": 2112,
            "layer_types": pattern.repeat(5),
            "max_position_embeddings": 262_144,
            "model_type": "gemma4_text",
            "moe_intermediate_size": 704,
            "num_attention_heads": 16,
            "num_experts": 128,
            "num_global_key_value_heads": 2,
            "num_hidden_layers": 0,
            "num_key_value_heads": 8,
            "num_kv_shared_layers": 0,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "full_attention": {
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1_000_000.0,
                    "rope_type": "proportional",
                },
                "sliding_attention": { "rope_theta": 10_000.0, "rope_type": "default" },
            },
            "sliding_window": 1024,
            "tie_word_embeddings": true,
            "top_k_experts": 8,
            "use_bidirectional_attention": "vision",
            "use_cache": true,
            "use_double_wide_mlp": false,
            "vocab_size": 262_144,
            "vocab_size_per_layer_input": 262_144,
        },
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "vocab_size": 262_144,
    }))
}

/// The public configuration of openai/gpt-oss-20b.
fn gpt_oss_20b() -> Map<String, Value> {
    let layer_types = ["sliding_attention", "full_attention"].repeat(12);
    object(json!({
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": true,
        "attention_dropout": 0.0,
        "eos_token_id": 200_002,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 2880,
        "layer_types": layer_types,
        "max_position_embeddings": 131_072,
        "model_type": "gpt_oss",
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 0,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "output_router_logits": false,
        "pad_token_id": 199_999,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": false,
        },
        "rope_theta": 150_000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": 201_088,
    }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

//! Models with recurrent layers.

use serde_json::{Map, Value, json};

/// Of `"full_attention"` at every `step`-th place from `first`, `other` elsewhere.
fn layer_types(count: usize, first: usize, step: usize, other: &str) -> Vec<String> {
    let is_attention = |i: usize| i >= first && (i - first).is_multiple_of(step);
    let kind = |i| if is_attention(i) { "full_attention" } else { other };
    (0..count).map(|i| kind(i).to_owned()).collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

struct Lfm2Moe {
    layer_types: Vec<String>,
    experts: usize,
    intermediate: usize,
    moe_intermediate: usize,
}

/// The public configuration of LiquidAI/LFM2-8B-A1B.
pub(super) fn lfm2_8b_a1b() -> Map<String, Value> {
    let mut layer_types = layer_types(24, 2, 4, "conv");
    layer_types.swap(21, 22);
    lfm2_moe(Lfm2Moe { layer_types, experts: 32, intermediate: 7168, moe_intermediate: 1792 })
}

/// The public configuration of LiquidAI/LFM2-24B-A2B.
pub(super) fn lfm2_24b_a2b() -> Map<String, Value> {
    let layer_types = layer_types(40, 2, 4, "conv");
    lfm2_moe(Lfm2Moe { layer_types, experts: 64, intermediate: 11_776, moe_intermediate: 1536 })
}

fn lfm2_moe(model: Lfm2Moe) -> Map<String, Value> {
    object(json!({
        "architectures": ["Lfm2MoeForCausalLM"],
        "bos_token_id": 1,
        "conv_L_cache": 3,
        "conv_bias": false,
        "dtype": "bfloat16",
        "eos_token_id": 7,
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": model.intermediate,
        "layer_types": model.layer_types,
        "max_position_embeddings": 128_000,
        "model_type": "lfm2_moe",
        "moe_intermediate_size": model.moe_intermediate,
        "norm_eps": 1e-5,
        "norm_topk_prob": true,
        "num_attention_heads": 32,
        "num_dense_layers": 2,
        "num_experts": model.experts,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 0,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "rope_theta": 1_000_000.0,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": true,
        "use_cache": true,
        "use_expert_bias": true,
        "vocab_size": 65_536,
    }))
}

/// The public configuration of Qwen/Qwen3-Next-80B-A3B-Instruct.
pub(super) fn qwen3_next_80b_a3b() -> Map<String, Value> {
    object(json!({
        "architectures": ["Qwen3NextForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 151_643,
        "decoder_sparse_step": 1,
        "eos_token_id": 151_645,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 5120,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 262_144,
        "mlp_only_layers": [],
        "model_type": "qwen3_next",
        "moe_intermediate_size": 512,
        "norm_topk_prob": true,
        "num_attention_heads": 16,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 0,
        "num_key_value_heads": 2,
        "output_router_logits": false,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-6,
        "rope_scaling": null,
        "rope_theta": 10_000_000,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 512,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": 151_936,
    }))
}

/// The public configuration of Qwen/Qwen3.5-35B-A3B, the text model.
pub(super) fn qwen3_5_35b_a3b() -> Map<String, Value> {
    object(json!({
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": {
            "attention_bias": false,
            "attention_dropout": 0.0,
            "attn_output_gate": true,
            "bos_token_id": 248_044,
            "dtype": "bfloat16",
            "eos_token_id": 248_044,
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "layer_types": layer_types(40, 3, 4, "linear_attention"),
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_value_head_dim": 128,
            "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 262_144,
            "model_type": "qwen3_5_moe_text",
            "moe_intermediate_size": 512,
            "mtp_num_hidden_layers": 0,
            "num_attention_heads": 16,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 0,
            "num_key_value_heads": 2,
            "output_router_logits": false,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "mrope_interleaved": true,
                "mrope_section": [11, 11, 10],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10_000_000,
                "rope_type": "default",
            },
            "router_aux_loss_coef": 0.001,
            "shared_expert_intermediate_size": 512,
            "tie_word_embeddings": false,
            "use_cache": true,
            "vocab_size": 248_320,
        },
        "tie_word_embeddings": false,
    }))
}

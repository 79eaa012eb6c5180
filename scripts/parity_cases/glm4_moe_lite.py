"""Cases of glm4_moe_lite: queries with and without latents, groups, dense layers, yarn."""

from parity_case import Case
from parity_latent import YARN, hugging_face, wide_latent

BASE_CONFIG = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 64,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.8,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "attention_bias": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 1,
    "vocab_size": 512,
}

# mlx-lm packs no latents
KV_PACKED = False

GOLDEN = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "vocab_size": 96,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
}

CASES = [
    Case(name="glm4-lite-bf16-4bit-published", published=hugging_face, seed=50),
    Case(
        name="glm4-lite-f32-odd-sizes",
        dtype="f32",
        bits=None,
        config={
            "hidden_size": 90,
            "num_hidden_layers": 4,
            "intermediate_size": 70,
            "moe_intermediate_size": 33,
            "q_lora_rank": None,
            "kv_lora_rank": 37,
            "qk_nope_head_dim": 19,
            "qk_rope_head_dim": 14,
            "v_head_dim": 21,
            "n_routed_experts": 12,
            "n_shared_experts": 2,
            "n_group": 4,
            "topk_group": 2,
            "moe_layer_freq": 2,
            "attention_bias": True,
            "rope_scaling": YARN,
            "vocab_size": 401,
        },
        prompts=[1, 2, 30, 250],  # 250 + 48 tokens cross the cache's growth step of 256
        max_tokens=48,
        seed=51,
    ),
]

wide = wide_latent

"""Cases of deepseek_v3: groups of experts, stretched rotations, layers without experts."""

from parity_case import Case
from parity_latent import YARN, hugging_face, hugging_face_fp8, wide_latent

BASE_CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": YARN,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 1,
    "vocab_size": 600,
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
    "q_lora_rank": 64,
    "kv_lora_rank": 32,
    "n_shared_experts": 2,
}

CASES = [
    Case(
        name="deepseek-v3-f16-6bit-published",
        dtype="f16",
        bits=6,
        group_size=32,
        published=hugging_face,
        seed=60,
    ),
    Case(
        name="deepseek-v3-bf16-no-experts",
        bits=None,
        config={
            "n_routed_experts": None,
            "q_lora_rank": None,
            "num_attention_heads": 3,
            "v_head_dim": 21,
        },
        max_tokens=40,
        seed=61,
    ),
    Case(
        name="deepseek-v3-fp8-blocks",
        bits=None,
        config={"n_routed_experts": None, "hidden_size": 160},
        published=hugging_face_fp8,
        max_tokens=24,
        seed=62,
    ),
]

wide = wide_latent

"""Cases of kimi_k25: the text model of deepseek_v3 inside another."""

from parity_case import Case
from parity_cases import deepseek_v3
from parity_latent import hugging_face, hugging_face_int4, wide_latent

BASE_CONFIG = {**deepseek_v3.BASE_CONFIG, "n_group": 1, "topk_group": 1, "rope_theta": 50000.0}


def wrap(config):
    text = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    return {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "text_config": {**text, "model_type": "kimi_k2"},
        "vision_config": {"vt_num_hidden_layers": 2},
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
    "attention_bias": True,
}

CASES = [
    Case(
        name="kimi-k25-bf16-4bit-mixed",
        group_size=32,
        overrides={
            "layers.1.mlp.switch_mlp.down_proj": {"group_size": 64, "bits": 3},
            "o_proj": False,
        },
        published=hugging_face,
        max_tokens=40,
        seed=80,
    ),
    Case(
        name="kimi-k25-int4-around-zero",
        bits=None,
        published=hugging_face_int4,
        prompts=[1, 30],
        max_tokens=24,
        seed=81,
    ),
]

wide = wide_latent

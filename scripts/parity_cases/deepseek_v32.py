"""Cases of deepseek_v32: prompts below, at and above what the indexer chooses."""

from parity_case import Case
from parity_cases import deepseek_v3
from parity_latent import hugging_face, wide_latent

BASE_CONFIG = {
    **deepseek_v3.BASE_CONFIG,
    "architectures": ["DeepseekV32ForCausalLM"],
    "index_n_heads": 3,
    "index_head_dim": 32,
    "index_topk": 10,
    "vocab_size": 500,
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
}

CASES = [
    Case(
        name="deepseek-v32-bf16-4bit",
        group_size=32,
        published=hugging_face,
        prompts=[1, 2, 9, 11, 12, 60],
        max_tokens=40,
        seed=70,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    config = wide_latent(rng, step)
    return {
        **config,
        "q_lora_rank": config["q_lora_rank"] or step,
        "index_n_heads": rng.choice([1, 2, 5]),
        "index_head_dim": max(step, config["qk_rope_head_dim"]),
        "index_topk": rng.choice([1, 3, 16, 40]),
        "indexer_rope_interleave": rng.random() < 0.5,
    }

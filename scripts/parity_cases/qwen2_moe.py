"""Cases of qwen2_moe: a shared expert with its gate, and keys that the reference reads past."""

from parity_case import Case, wide_dense, wide_experts

BASE_CONFIG = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 160,
    "rms_norm_eps": 1e-6,
    "vocab_size": 512,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "norm_topk_prob": False,
}

GOLDEN = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts": 6,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 96,
    "vocab_size": 96,
}

CASES = [
    Case(
        name="qwen2_moe-bf16-4bit",
        group_size=32,
        config={"num_experts": 12, "num_experts_per_tok": 4},
        seed=91,
    ),
    Case(
        name="qwen2_moe-tied-f32-dense",
        dtype="f32",
        bits=None,
        config={
            "hidden_size": 96,
            "num_attention_heads": 3,
            "num_key_value_heads": None,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "tie_word_embeddings": True,
            "rope_traditional": True,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "vocab_size": 333,
        },
        prompts=[1, 3, 40],
        seed=92,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    return {
        **wide_dense(rng, step, head_dim=False),
        **wide_experts(rng, step),
        "shared_expert_intermediate_size": step * rng.randint(1, 3),
        "rope_traditional": rng.random() < 0.3,
    }

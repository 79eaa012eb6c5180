"""Cases of olmoe: norms over all heads, biases everywhere, experts normalised or not."""

from parity_case import Case, wide_dense, wide_experts, wide_rope_scaling

BASE_CONFIG = {
    "architectures": ["OlmoeForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-5,
    "vocab_size": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}

GOLDEN = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "attention_bias": True,
    "vocab_size": 96,
}

CASES = [
    Case(name="olmoe-bf16-4bit", seed=101),
    Case(
        name="olmoe-tied-biases-f32-8bit",
        dtype="f32",
        bits=8,
        group_size=32,
        config={
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "vocab_size": 333,
        },
        seed=102,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    experts = wide_experts(rng, step)
    return {
        **wide_dense(rng, step, head_dim=rng.random() < 0.6),
        **experts,
        "intermediate_size": experts["moe_intermediate_size"],
        "attention_bias": rng.random() < 0.3,
        "mlp_bias": rng.random() < 0.3,
        "rope_scaling": wide_rope_scaling(rng),
        "rope_traditional": rng.random() < 0.3,
    }

"""Cases of mixtral: weights of experts by softmax over the chosen ones."""

from parity_case import Case, wide_dense, wide_experts

BASE_CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 512,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}

GOLDEN = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 6,
    "vocab_size": 96,
}

CASES = [
    Case(name="mixtral-bf16-4bit", group_size=32, seed=111),
    Case(
        name="mixtral-tied-f16-mxfp4",
        dtype="f16",
        mode="mxfp4",
        group_size=32,
        config={
            "hidden_size": 96,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": True,
            "rope_traditional": True,
            "vocab_size": 333,
        },
        prompts=[1, 3, 24],
        seed=112,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    experts = wide_experts(rng, step, count="num_local_experts")
    return {
        **wide_dense(rng, step, head_dim=False),
        **experts,
        "intermediate_size": experts["moe_intermediate_size"],
        "rope_traditional": rng.random() < 0.3,
    }

"""Cases of qwen2, the dense family: tied and untied, with and without stretched rotations."""

from parity_case import YARN, Case, wide_dense, wide_rope_scaling

BASE_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 512,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}

GOLDEN = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "rope_scaling": YARN,
    "vocab_size": 96,
}

CASES = [
    Case(
        name="qwen2-tied-bf16-4bit-yarn",
        config={"tie_word_embeddings": True, "rope_scaling": YARN, "num_hidden_layers": 4},
        seed=81,
    ),
    Case(
        name="qwen2-f32-3bit",
        dtype="f32",
        bits=3,
        group_size=32,
        config={
            "hidden_size": 160,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "rope_traditional": True,
            "vocab_size": 333,
        },
        seed=82,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    config = wide_dense(rng, step, head_dim=False)
    return {**config, "rope_scaling": wide_rope_scaling(rng), "rope_traditional": rng.random() < 0.3}

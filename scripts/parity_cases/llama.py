"""Cases of llama and what is built like it: biases, windows in some layers, every kind of rotation."""

from parity_case import Case, wide_dense, wide_layer_types, wide_rope_scaling

BASE_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}

LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}

GOLDEN = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "attention_bias": True,
    "mlp_bias": True,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "sliding_window": 12,
    "rope_scaling": LLAMA3,
    "vocab_size": 96,
}

CASES = [
    Case(
        name="llama-tied-bf16-4bit-llama3",
        config={"rope_scaling": LLAMA3, "tie_word_embeddings": True, "rope_theta": 500000.0},
        seed=51,
    ),
    Case(
        name="llama-biases-windows-f32-5bit",
        dtype="f32",
        bits=5,
        group_size=32,
        config={
            "model_type": "mistral",
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": None,
            "head_dim": 64,
            "attention_bias": True,
            "mlp_bias": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 24,
            "rope_traditional": True,
            "vocab_size": 777,
        },
        prompts=[1, 5, 30],
        seed=52,
    ),
    Case(name="llama-mixed-3-6", recipe="mixed_3_6", group_size=32, config={"num_hidden_layers": 5}, seed=86),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    config = wide_dense(rng, step, head_dim=rng.random() < 0.7)
    config |= {
        "rope_scaling": wide_rope_scaling(rng),
        "rope_traditional": rng.random() < 0.3,
        "attention_bias": rng.random() < 0.4,
        "mlp_bias": rng.random() < 0.4,
    }
    if rng.random() < 0.5:
        types = wide_layer_types(rng, config["num_hidden_layers"])
        config |= {"layer_types": types, "sliding_window": rng.randint(4, 40)}
    return config

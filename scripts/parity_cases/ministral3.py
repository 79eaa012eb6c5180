"""Cases of ministral3: prompts past the length from which queries are scaled, windows in some layers."""

from parity_case import Case, wide_dense, wide_layer_types

BASE_CONFIG = {
    "architectures": ["Ministral3ForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 512,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
    "sliding_window": None,
}


def rope(length, beta, theta=1000000.0, factor=16.0):
    return {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": factor,
        "llama_4_scaling_beta": beta,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": length,
        "rope_theta": theta,
        "rope_type": "yarn",
    }


GOLDEN = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 12,
    "rope_parameters": rope(7, 0.5),
    "vocab_size": 96,
}

CASES = [
    Case(
        name="ministral3-bf16-4bit",
        config={"rope_parameters": rope(16, 0.6)},
        seed=61,
    ),
    Case(
        name="ministral3-tied-windows-f16-6bit",
        dtype="f16",
        bits=6,
        group_size=32,
        config={
            "hidden_size": 96,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 9,
            "rope_parameters": rope(7, 0.3, theta=10000.0),
            "vocab_size": 301,
        },
        prompts=[1, 6, 20],
        max_tokens=64,
        seed=62,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    config = wide_dense(rng, step)
    theta = config.pop("rope_theta")
    config["rope_parameters"] = rope(rng.randint(4, 60), rng.choice([0.1, 0.5]), theta)
    if rng.random() < 0.5:
        types = wide_layer_types(rng, config["num_hidden_layers"])
        config |= {"layer_types": types, "sliding_window": rng.randint(4, 40)}
    return config

"""Cases of qwen3, the dense family: tied and untied, with and without stretched rotations."""

from parity_case import Case

BASE_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": 512,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}

CASES = [
    Case(
        name="dense-tied-bf16-4bit-yarn",
        config={"tie_word_embeddings": True, "rope_scaling": YARN},
        max_tokens=48,
        seed=44,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    heads, kv_heads = rng.choice([(4, 2), (3, 1), (5, 5), (8, 2)])
    head_dim = rng.choice([32, 64])
    while (heads * head_dim) % step:
        head_dim *= 2
    scaling = rng.choice([None, YARN, {"rope_type": "linear", "factor": 2.0}])
    nested = scaling is not None and rng.random() < 0.5
    theta = rng.choice([1e4, 5e5, 1e6, 1e7])
    rope = {"rope_theta": theta, "rope_scaling": scaling}
    if nested:
        rope = {"rope_theta": None, "rope_parameters": {**scaling, "rope_theta": theta}}
    return {
        "hidden_size": step * rng.randint(1, 3 if step > 64 else 5),
        "num_hidden_layers": rng.randint(1, 4),
        "intermediate_size": step * rng.randint(1, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "tie_word_embeddings": rng.random() < 0.5,
        "vocab_size": rng.randint(100, 1500),
        "rms_norm_eps": rng.choice([1e-5, 1e-6]),
        **rope,
    }

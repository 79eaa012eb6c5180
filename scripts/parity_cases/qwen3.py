"""Cases of qwen3, the dense family: tied and untied, with and without stretched rotations."""

from parity_case import YARN, Case, wide_dense, wide_rope_scaling

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

GOLDEN = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "rope_scaling": YARN,
    "vocab_size": 96,
}

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
    config = wide_dense(rng, step)
    scaling = wide_rope_scaling(rng)
    if scaling is None or rng.random() < 0.5:
        return {**config, "rope_scaling": scaling}
    nested = {**scaling, "rope_theta": config["rope_theta"]}
    return {**config, "rope_theta": None, "rope_parameters": nested}

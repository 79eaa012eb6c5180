"""What a random checkpoint of scripts/parity is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field

# Prompt lengths: one token (decode only), a few, past the 64 routed entries where mlx-lm sorts
# tokens by expert.
DEFAULT_PROMPTS = [1, 3, 11, 40]


@dataclass
class Case:
    """One random checkpoint and the prompts it is asked about."""

    name: str
    dtype: str = "bf16"
    bits: int | None = 4  # None: leave the weights unquantised
    group_size: int = 64
    mode: str = "affine"
    overrides: dict = field(default_factory=dict)  # path suffix -> quantisation, or False
    recipe: str | None = None  # a mixed one of mlx_lm.convert, by name
    config: dict = field(default_factory=dict)
    prompts: list = field(default_factory=lambda: list(DEFAULT_PROMPTS))
    max_tokens: int = 64
    shard_bytes: int | None = None
    published: Callable | None = None  # weights, config -> weights as others than mlx-lm publish them
    seed: int = 0


def wide_dense(rng, step, head_dim=True):
    """Sizes that nearly every family has, drawn for a sweep; widths are multiples of `step`.

    Without `head_dim` heads share the hidden size evenly."""
    heads, kv_heads = rng.choice([(4, 2), (3, 1), (5, 5), (8, 2)])
    width = rng.choice([32, 64])
    while (heads * width) % step:
        width *= 2
    hidden = step * rng.randint(1, 3 if step > 64 else 5) if head_dim else heads * width
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": rng.randint(1, 4),
        "intermediate_size": step * rng.randint(1, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": rng.random() < 0.5,
        "vocab_size": rng.randint(100, 1500),
        "rope_theta": rng.choice([1e4, 5e5, 1e6, 1e7]),
        "rms_norm_eps": rng.choice([1e-5, 1e-6]),
    }
    return {**sizes, "head_dim": width} if head_dim else sizes


def wide_experts(rng, step, count="num_experts"):
    """Sizes of a mixture of experts, drawn for a sweep; `count` is the family's word for how many."""
    experts = rng.choice([3, 8, 20, 64])
    return {
        count: experts,
        "num_experts_per_tok": rng.randint(1, min(8, experts)),
        "moe_intermediate_size": step * rng.randint(1, 3),
        "norm_topk_prob": rng.random() < 0.5,
    }


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def wide_rope_scaling(rng):
    """One of the stretched rotations, or none."""
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    dynamic = {"type": "dynamic", "factor": 2.0}
    linear = {"rope_type": "linear", "factor": 2.0}
    return rng.choice([None, YARN, linear, llama3, dynamic])


def wide_layer_types(rng, layers):
    """Attention over everything or over a window for each layer, at least one of the former."""
    types = [rng.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    types[rng.randrange(layers)] = "full_attention"
    return types

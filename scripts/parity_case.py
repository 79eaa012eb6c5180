"""What a random checkpoint of scripts/parity is made of."""

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
    config: dict = field(default_factory=dict)
    prompts: list = field(default_factory=lambda: list(DEFAULT_PROMPTS))
    max_tokens: int = 64
    shard_bytes: int | None = None
    seed: int = 0

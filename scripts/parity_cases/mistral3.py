"""Cases of mistral3, which wraps one of two text models in `text_config`."""

from parity_case import Case
from parity_cases import llama, ministral3

BASE_CONFIG = {"architectures": ["Mistral3ForConditionalGeneration"]}

CONVERT = None


def wrap(config):
    """Everything but what stands at the top goes into `text_config`."""
    top = ("model_type", "architectures")
    text = {key: value for key, value in config.items() if key not in top}
    text["model_type"] = text.pop("text_type")
    return {**{key: config[key] for key in top}, "text_config": text}


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


LLAMA = {**without(llama.BASE_CONFIG, "architectures"), "text_type": "mistral"}
MINISTRAL = {**without(ministral3.BASE_CONFIG, "architectures"), "text_type": "ministral3"}

GOLDEN = {**LLAMA, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 96}

CASES = [
    Case(
        name="mistral3-untied-bf16-mixed-bits",
        # nothing says whether the head is tied: it is not
        config={**without(LLAMA, "tie_word_embeddings"), "head_dim": 64, "rope_theta": 1e9},
        overrides={"lm_head": {"group_size": 64, "bits": 8}, "layers.1.mlp.down_proj": False},
        seed=71,
    ),
    Case(
        name="mistral3-ministral3-mxfp8",
        bits=8,
        group_size=32,
        mode="mxfp8",
        config={**MINISTRAL, "rope_parameters": ministral3.rope(16, 0.6)},
        seed=72,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    base, family = rng.choice([(LLAMA, llama), (MINISTRAL, ministral3)])
    return {**base, **family.wide(rng, step)}

"""Cases of qwen3_5, the dense family, and what it shares with qwen3_5_moe."""

import mlx.core as mx
from parity_case import Case, wide_dense
from parity_cases.qwen3_next import PROMPTS, layout, lively, wide_delta

BASE_CONFIG = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 48,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "rms_norm_eps": 1e-6,
    "vocab_size": 512,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
        "rope_theta": 1000000.0,
        "partial_rotary_factor": 0.5,
    },
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}

GOLDEN = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 16,
    "full_attention_interval": 3,
    "vocab_size": 96,
    "tie_word_embeddings": True,
}

__all__ = ["lively"]


def hugging_face(weights, config):
    """Qwen's checkpoints: a vision model beside the text model, a layer that predicts further tokens."""
    out = {}
    for path, value in weights.items():
        path, value = path.removeprefix("language_model."), layout(path, value)
        out[path.replace("model.", "model.language_model.", 1) if path.startswith("model.") else path] = value
    out["mtp.layers.0.input_layernorm.weight"] = mx.ones(config["text_config"]["hidden_size"])
    out["model.visual.patch_embed.proj.weight"] = mx.ones((3, 5))
    return out


CASES = [
    Case(name="dense35-tied-bf16-4bit", config={"tie_word_embeddings": True}, prompts=PROMPTS, seed=66),
    Case(
        name="dense35-hf-bf16",
        bits=None,
        published=hugging_face,
        config={
            "tie_word_embeddings": True,
            "full_attention_interval": 2,
            "num_hidden_layers": 3,
            "attention_bias": True,
            "head_dim": None,
        },
        prompts=PROMPTS,
        seed=67,
    ),
]


def wrap(config):
    """The text model inside a configuration that has a vision model beside it."""
    outer = ("model_type", "architectures")
    text = {k: v for k, v in config.items() if k not in outer and v is not None}
    text["model_type"] = config["model_type"] + "_text"
    return {**{k: config[k] for k in outer}, "text_config": text, "tie_word_embeddings": True}


def wide_hybrid(rng, step):
    """Sizes of a configuration without its feed-forwards."""
    config = {**wide_dense(rng, step), **wide_delta(rng, step)}
    theta = config.pop("rope_theta")
    rope = {"rope_theta": theta, "partial_rotary_factor": rng.choice([0.25, 0.5, 1.0])}
    return {
        **config,
        "num_hidden_layers": max(config["num_hidden_layers"], config["full_attention_interval"]),
        "rope_parameters": rng.choice([None, {"rope_type": "default", **rope}, {"type": "default"}]),
        "attention_bias": rng.random() < 0.3,
    }


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    return wide_hybrid(rng, step)

"""Cases of lfm2, the dense family: convolutions and attention in any order."""

import mlx.core as mx
from parity_case import Case, wide_dense
from parity_cases.lfm2_moe import PROMPTS, wide_operators

BASE_CONFIG = {
    "architectures": ["Lfm2ForCausalLM"],
    "hidden_size": 128,
    "block_dim": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_multiple_of": 64,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
    "block_ff_dim": 300,
    "full_attn_idxs": [2],
    "vocab_size": 512,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 4096,
}

GOLDEN = {
    "hidden_size": 64,
    "block_dim": 64,
    "num_hidden_layers": 3,
    "block_multiple_of": 32,
    "block_ff_dim": 130,
    "conv_bias": True,
    "conv_L_cache": 4,
    "full_attn_idxs": [1],
    "vocab_size": 96,
}


def hugging_face(weights, config):
    """LiquidAI's layout: convolutions as in PyTorch."""
    out = {}
    for path, value in weights.items():
        is_conv = path.endswith("conv.conv.weight")
        out[path] = mx.contiguous(value.transpose(0, 2, 1)) if is_conv else value
    return out


CASES = [
    Case(name="lfm2-bf16-mxfp8", bits=8, group_size=32, mode="mxfp8", prompts=PROMPTS, seed=56),
    Case(
        name="lfm2-hf-bf16",
        bits=None,
        published=hugging_face,
        config={
            "conv_bias": True,
            "conv_L_cache": 4,
            "block_auto_adjust_ff_dim": False,
            "block_ff_dim": None,
            "intermediate_size": 130,
            "full_attn_idxs": None,
            "layer_types": ["full_attention", "conv", "conv"],
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
        },
        prompts=PROMPTS,
        seed=57,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    config = wide_dense(rng, step, head_dim=False)
    return {
        **config,
        **wide_operators(rng, config),
        "block_dim": config["hidden_size"],
        "block_ff_dim": rng.choice([None, 200, 500]),
        "block_multiple_of": step,
        "block_ffn_dim_multiplier": rng.choice([None, 1.0, 1.3]),
        "block_auto_adjust_ff_dim": True,
    }

"""Cases of lfm2_moe: convolutions and attention in any order, with and without biases."""

import mlx.core as mx
from parity_case import Case, wide_dense, wide_experts

BASE_CONFIG = {
    "architectures": ["Lfm2MoeForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_dense_layers": 1,
    "norm_topk_prob": True,
    "use_expert_bias": True,
    "routed_scaling_factor": 1.0,
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "vocab_size": 512,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}

GOLDEN = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "vocab_size": 96,
}

# shorter than the convolution, as long, longer
PROMPTS = [1, 2, 3, 4, 40]


def hugging_face(weights, config):
    """LiquidAI's names: w1, w2, w3, an expert at a time, convolutions as in PyTorch."""
    names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    out = {}
    for path, value in weights.items():
        if path.endswith("conv.conv.weight"):
            value = mx.contiguous(value.transpose(0, 2, 1))
        for ours, theirs in names.items():
            if ".feed_forward." in path:
                path = path.replace(f".{ours}.", f".{theirs}.")
        if ".switch_mlp." not in path:
            out[path] = value
            continue
        for e in range(value.shape[0]):
            out[path.replace(".switch_mlp.", f".experts.{e}.")] = mx.contiguous(value[e])
    return out


CASES = [
    Case(name="lfm2moe-bf16-4bit", prompts=PROMPTS, seed=51),
    Case(
        name="lfm2moe-f16-biased-attention-first",
        dtype="f16",
        bits=8,
        group_size=32,
        overrides={
            "layers.1.conv.in_proj": {"group_size": 32, "bits": 5},
            "layers.0.self_attn.out_proj": False,
            "layers.2.feed_forward.gate": False,
        },
        config={
            "conv_bias": True,
            "conv_L_cache": 5,
            "layer_types": None,
            "full_attn_idxs": [0, 3],
            "num_hidden_layers": 5,
            "num_dense_layers": 2,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "hidden_size": 160,
            "intermediate_size": 96,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.75,
            "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
            "vocab_size": 401,
        },
        prompts=[1, 2, 4, 17],
        max_tokens=40,
        seed=52,
    ),
    Case(
        name="lfm2moe-hf-f32",
        dtype="f32",
        bits=None,
        published=hugging_face,
        config={"num_experts": 5, "num_experts_per_tok": 3},
        prompts=PROMPTS,
        seed=53,
    ),
]


def wide_operators(rng, config):
    """Which layers have attention, by either field, and the others' convolutions. The reference needs both kinds."""
    layers = max(2, config["num_hidden_layers"])
    attention = sorted(rng.sample(range(layers), rng.randint(1, layers - 1)))
    types = ["full_attention" if i in attention else "conv" for i in range(layers)]
    by_type = rng.random() < 0.5
    return {
        "num_hidden_layers": layers,
        "layer_types": types if by_type else None,
        "full_attn_idxs": None if by_type else attention,
        "conv_bias": rng.random() < 0.5,
        "conv_L_cache": rng.choice([2, 3, 3, 4, 6]),
        "norm_eps": config["rms_norm_eps"],
    }


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    config = {**wide_dense(rng, step, head_dim=False), **wide_experts(rng, step)}
    return {
        **config,
        **wide_operators(rng, config),
        "num_dense_layers": rng.randint(0, config["num_hidden_layers"] - 1),
        "use_expert_bias": rng.random() < 0.7,
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
    }

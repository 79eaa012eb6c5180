"""Cases of qwen3_next: the gated delta rule and gated attention, experts in all or some layers."""

import mlx.core as mx
from parity_case import Case, wide_dense, wide_experts

BASE_CONFIG = {
    "architectures": ["Qwen3NextForCausalLM"],
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
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 128,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "vocab_size": 512,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}

GOLDEN = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 16,
    "full_attention_interval": 2,
    "num_experts": 6,
    "decoder_sparse_step": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    "vocab_size": 96,
}

# shorter than the convolution, as long, longer
PROMPTS = [1, 2, 3, 4, 5, 40]

SHIFTED_NORMS = (
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
)


def layout(path, value):
    """One weight as Qwen stores it: norms as what they differ from one by, convolutions as in PyTorch."""
    if path.endswith("conv1d.weight"):
        return mx.contiguous(value.transpose(0, 2, 1))
    return value - 1.0 if path.endswith(SHIFTED_NORMS) else value


def hugging_face(weights, config):
    """Qwen's checkpoints: an expert at a time, an unused head, a layer that predicts further tokens."""
    out = {}
    for path, value in weights.items():
        value = layout(path, value)
        if ".switch_mlp." not in path:
            out[path] = value
            continue
        for e in range(value.shape[0]):
            out[path.replace(".switch_mlp.", f".experts.{e}.")] = mx.contiguous(value[e])
    out["mtp.layers.0.input_layernorm.weight"] = mx.ones(config["hidden_size"])
    if config["tie_word_embeddings"]:
        out["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2.0
    return out


CASES = [
    Case(name="next-bf16-4bit", prompts=PROMPTS, seed=61),
    Case(
        name="next-f16-biased-some-dense",
        dtype="f16",
        mode="nvfp4",
        group_size=16,
        config={
            "attention_bias": True,
            "full_attention_interval": 2,
            "num_hidden_layers": 5,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "linear_num_value_heads": 3,
            "linear_num_key_heads": 3,
            "linear_key_head_dim": 48,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 2,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
            "partial_rotary_factor": 1.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "vocab_size": 403,
        },
        prompts=[1, 2, 3, 19],
        max_tokens=40,
        seed=62,
    ),
    Case(
        name="next-hf-f32",
        dtype="f32",
        bits=None,
        published=hugging_face,
        config={"num_experts": 5, "num_experts_per_tok": 3, "tie_word_embeddings": True},
        prompts=PROMPTS,
        seed=63,
    ),
]


def lively(path, noise):
    """Decays between quick and slow, and a memory that is read."""
    if path.endswith("A_log"):
        return 0.7 * noise - 1.0
    if path.endswith("dt_bias"):
        return noise - 1.0
    if path.endswith("conv1d.weight"):
        return 0.7 * noise
    return None


def wide_delta(rng, step):
    """Sizes of the layers without attention; the value heads' width is a multiple of `step`."""
    key_heads = rng.choice([1, 2, 3])
    value_heads = key_heads * rng.choice([1, 2, 3])
    width = rng.choice([16, 32, 40])
    while value_heads * width % step:
        width += 8
    return {
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": rng.choice([16, 24, 64, 192]),
        "linear_value_head_dim": width,
        "linear_conv_kernel_dim": rng.choice([2, 4, 4, 5]),
        "full_attention_interval": rng.choice([2, 3, 4]),  # the reference needs both kinds
    }


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    config = {**wide_dense(rng, step), **wide_experts(rng, step), **wide_delta(rng, step)}
    layers = max(config["num_hidden_layers"], config["full_attention_interval"])
    return {
        **config,
        "num_hidden_layers": layers,
        "decoder_sparse_step": rng.choice([1, 1, 2]),
        "mlp_only_layers": rng.sample(range(layers), rng.randint(0, layers - 1)),
        "shared_expert_intermediate_size": step * rng.randint(1, 2),
        "partial_rotary_factor": rng.choice([0.25, 0.5, 1.0]),
        "attention_bias": rng.random() < 0.3,
    }

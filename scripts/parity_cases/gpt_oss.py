"""Cases of gpt_oss: windows shorter than the prompt, in which the ring wraps while it decodes,
sinks, biased experts and routers, stretched rotations, as shipped and in other formats."""

from parity_case import Case, wide_dense, wide_layer_types

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 256,
    "truncate": False,
}

BASE_CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 9,
    "num_experts_per_tok": 4,
    "sliding_window": 16,
    "attention_bias": True,
    "swiglu_limit": 7.0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000,
    "rope_scaling": YARN,
    "vocab_size": 613,
    "max_position_embeddings": 4096,
}

# mlx-lm packs no windows
KV_PACKED = False

# its router has groups of 64 whatever the recipe
CONVERT = {"hidden_size": 128}

GOLDEN = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "vocab_size": 96,
}

# As shipped: experts in mxfp4, the rest in bf16.
SHIPPED = {"self_attn.q_proj": False, "self_attn.k_proj": False, "self_attn.v_proj": False}
SHIPPED |= {"self_attn.o_proj": False, "router": False, "embed_tokens": False, "lm_head": False}
# As mlx-community ships it: those in affine 8 bits.
REST = {"group_size": 32, "bits": 8}

CASES = [
    Case(
        name="gpt-oss-shipped-bf16-mxfp4",
        mode="mxfp4",
        group_size=32,
        overrides=SHIPPED,
        prompts=[1, 5, 15, 40],
        seed=51,
    ),
    Case(
        name="gpt-oss-mxfp4-q8-odd-layers",
        mode="mxfp4",
        group_size=32,
        overrides={path: REST for path in SHIPPED},
        config={
            "num_hidden_layers": 5,
            "layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2 + ["full_attention"],
            "sliding_window": 7,
            "rope_scaling": None,
        },
        prompts=[1, 7, 30],
        seed=52,
    ),
    Case(
        name="gpt-oss-dense-f32",
        dtype="f32",
        bits=None,
        config={"num_local_experts": 33, "sliding_window": 128},
        prompts=[2, 131],
        seed=53,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    config = wide_dense(rng, step)
    del config["tie_word_embeddings"]
    layers = max(2, config["num_hidden_layers"])
    types = wide_layer_types(rng, layers)
    if "sliding_attention" not in types:  # mlx-lm wants one of both
        types[types.index("full_attention")] = "sliding_attention"
    experts = rng.choice([3, 8, 20, 64])
    return {
        **config,
        "num_hidden_layers": layers,
        "layer_types": types,
        "sliding_window": rng.choice([1, 2, 5, 16, 33, 128]),
        "num_local_experts": experts,
        "num_experts_per_tok": rng.randint(1, min(6, experts)),
        "rope_scaling": rng.choice([None, YARN, {**YARN, "factor": 4.0}]),
    }


def lively(path, noise):
    """Sinks that matter, gates that the clamp reaches."""
    if path.endswith("sinks"):
        return noise
    if path.endswith("experts.gate_proj.weight") or path.endswith("experts.up_proj.weight"):
        return 3.0 * noise / noise.shape[-1] ** 0.5
    return None

"""Cases of gemma4: experts beside the dense feed-forward, keys that are values, layers that use the
keys and values of earlier ones, inputs of each layer's own, windows that wrap while it decodes."""

from parity_case import Case, wide_dense, wide_layer_types

ROPE = {
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1000000.0,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}

# The fields of the text part; `wrap` puts them where they belong.
BASE_CONFIG = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "num_global_key_value_heads": None,
    "attention_k_eq_v": False,
    "rms_norm_eps": 1e-6,
    "vocab_size": 613,
    "sliding_window": 16,
    "layer_types": None,
    "sliding_window_pattern": 3,
    "rope_parameters": ROPE,
    "final_logit_softcapping": 7.0,
    "tie_word_embeddings": True,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 613,
    "enable_moe_block": False,
    "max_position_embeddings": 4096,
}

EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 9,
    "top_k_experts": 4,
    "moe_intermediate_size": 64,
}

# mlx-lm packs no windows
KV_PACKED = False

GOLDEN = {
    **EXPERTS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "num_experts": 5,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
    "num_kv_shared_layers": 1,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 32,
    "vocab_size": 96,
    "vocab_size_per_layer_input": 96,
    "tie_word_embeddings": False,  # random ones would repeat the last token
}

CASES = [
    Case(
        name="gemma4-moe-bf16-4bit",  # as 26B-A4B
        group_size=32,
        config={
            **EXPERTS,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "num_hidden_layers": 4,
        },
        prompts=[1, 15, 40],
        seed=61,
    ),
    Case(
        name="gemma4-per-layer-shared-kv-f16-mxfp8",  # as E2B
        dtype="f16",
        bits=8,
        mode="mxfp8",
        group_size=32,
        config={
            "hidden_size_per_layer_input": 32,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "sliding_window": 5,
        },
        prompts=[1, 12],
        max_tokens=32,
        seed=62,
    ),
    Case(
        name="gemma4-everything-dense-f32",
        dtype="f32",
        bits=None,
        config={
            **EXPERTS,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 24,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "layer_types": ["full_attention"] + ["sliding_attention"] * 4 + ["full_attention"],
            "final_logit_softcapping": None,
            "global_head_dim": None,
            "tie_word_embeddings": False,
            "rope_parameters": None,
            "rope_traditional": True,
        },
        prompts=[2, 33],
        seed=63,
    ),
]


def wrap(config):
    """As published: the text model's fields under text_config, but for the size of the vocabulary,
    which counts at the top and nowhere else."""
    outer = {key: config.pop(key) for key in ("model_type", "architectures")}
    text = {**config, "model_type": "gemma4_text", "vocab_size": 7}
    return {**outer, "vocab_size": config["vocab_size"], "text_config": text}


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    config = wide_dense(rng, step)
    theta = config.pop("rope_theta")
    layers = rng.randint(2, 6)
    types = wide_layer_types(rng, layers)
    # every kind has to be among those that have keys and values
    shared = layers - rng.randint(max(types.index(kind) + 1 for kind in set(types)), layers)
    full = {**ROPE["full_attention"], "partial_rotary_factor": rng.choice([0.25, 0.5, 1.0])}
    experts = {
        "enable_moe_block": True,
        "num_experts": rng.choice([3, 8, 20]),
        "top_k_experts": rng.randint(1, 3),
        "moe_intermediate_size": step * rng.randint(1, 2),
    }
    return {
        **config,
        **(experts if rng.random() < 0.6 else {}),
        "num_hidden_layers": layers,
        "layer_types": types,
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": rng.random() < 0.5,
        "hidden_size_per_layer_input": rng.choice([0, step]),
        "vocab_size_per_layer_input": config["vocab_size"],
        "sliding_window": rng.choice([1, 2, 5, 16, 33, 128]),
        "attention_k_eq_v": rng.random() < 0.5,
        "num_global_key_value_heads": rng.choice([None, 1]),
        "global_head_dim": rng.choice([0, 64, 128]),
        "final_logit_softcapping": rng.choice([None, 5.0, 30.0]),
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        },
    }


def lively(path, noise):
    """Embeddings that the layers outweigh, as the head is tied to them; queries that do not see one
    key alone where nothing divides their products; routers whose input has size one; factors around
    one."""
    if path.endswith("embed_tokens.weight"):
        return 0.25 * noise / noise.shape[-1] ** 0.5
    if path.endswith("model.norm.weight"):
        return 8.0 * (1.0 + 0.2 * noise)
    if path.endswith("q_norm.weight"):
        return 0.35 * (1.0 + 0.2 * noise)
    if path.endswith("router.scale"):
        return noise.shape[-1] ** 0.5 * (1.0 + 0.2 * noise)
    if path.endswith(("per_expert_scale", "layer_scalar")):
        return 1.0 + 0.2 * noise
    if path.endswith("router.proj.weight"):
        return 1.5 * noise / noise.shape[-1] ** 0.5
    if path.endswith("embed_tokens_per_layer.weight"):
        return noise
    return None

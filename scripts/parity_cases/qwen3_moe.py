"""Cases of qwen3_moe: experts in all or some layers, tied and untied, mixed quantisations."""

from parity_case import Case, wide_dense, wide_experts

BASE_CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "norm_topk_prob": True,
}

GOLDEN = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_experts": 6,
    "moe_intermediate_size": 64,
    "mlp_only_layers": [1],
    "vocab_size": 96,
}

CASES = [
    Case(
        name="tied-bf16-4bit",
        config={"tie_word_embeddings": True, "num_experts": 16, "num_experts_per_tok": 4},
        seed=11,
    ),
    Case(
        name="untied-f16-mixed-bits",
        dtype="f16",
        bits=4,
        group_size=32,
        overrides={
            "lm_head": {"group_size": 64, "bits": 6},
            "model.embed_tokens": {"group_size": 64, "bits": 8},
            "layers.1.mlp.switch_mlp.gate_proj": {"group_size": 32, "bits": 3},
            "layers.1.mlp.switch_mlp.up_proj": {"group_size": 32, "bits": 3},
            "layers.1.mlp.switch_mlp.down_proj": {"group_size": 32, "bits": 5},
            "layers.3.mlp.switch_mlp.up_proj": {"group_size": 64, "bits": 2},
            "layers.3.mlp.switch_mlp.down_proj": {"group_size": 32, "bits": 8},
            "layers.2.self_attn.o_proj": False,
            "layers.5.mlp.gate": False,
        },
        config={
            "hidden_size": 192,
            "num_hidden_layers": 6,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [5, 0],
            "intermediate_size": 224,
            "moe_intermediate_size": 96,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "vocab_size": 777,
            "rope_theta": 1000000.0,
        },
        prompts=[1, 4, 24],  # f16 is the slowest type in stock MLX on x86
        max_tokens=40,
        seed=22,
    ),
    Case(
        name="many-experts-f32-mxfp4",
        dtype="f32",
        mode="mxfp4",
        group_size=32,
        config={
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 32,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "vocab_size": 1001,
        },
        prompts=[2, 9, 243],  # 243 + 48 tokens cross the cache's growth step of 256
        max_tokens=48,
        seed=33,
    ),
    Case(name="qwen3-moe-mixed-2-6", recipe="mixed_2_6", group_size=32, config={"num_hidden_layers": 5}, seed=44),
]


def hugging_face(weights, config):
    """The names of the published checkpoints: experts one by one."""
    out = {}
    for name, value in weights.items():
        if "switch_mlp" in name:
            out |= {name.replace("switch_mlp", f"experts.{e}"): one for e, one in enumerate(value)}
        else:
            out[name] = value
    return out


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    config = {**wide_dense(rng, step), **wide_experts(rng, step)}
    layers = config["num_hidden_layers"]
    return {
        **config,
        "decoder_sparse_step": rng.choice([1, 1, 2]),
        "mlp_only_layers": rng.sample(range(layers), rng.randint(0, layers - 1)),
    }

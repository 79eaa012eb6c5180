"""Cases of minimax: a router in float32, norms over all heads, part of a head turned."""

from parity_case import Case, wide_dense, wide_experts
from parity_latent import fp8_blocks

BASE_CONFIG = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "shared_intermediate_size": 0,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rotary_dim": 16,
    "use_qk_norm": True,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "scoring_func": "sigmoid",
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 512,
}

GOLDEN = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 6,
    "vocab_size": 96,
}

NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def hugging_face(weights, config):
    """The names of the published checkpoints: experts one by one, by number."""
    out = {}
    for name, value in weights.items():
        if "switch_mlp" in name:
            head, module, part = name.rsplit(".", 2)
            head = head.removesuffix("switch_mlp") + "experts"
            out |= {f"{head}.{e}.{NAMES[module]}.{part}": one for e, one in enumerate(value)}
        else:
            out[name] = value
    return out


def attention_fp8(weights, config):
    """Attention as it is published, in 8 bits and a scale for each 128 by 128; stock multiplies dense
    stacks of experts in bf16 nowhere, so these stay as they are."""
    out = {}
    for name, value in weights.items():
        out[name] = value
        if ".self_attn." in name and name.endswith("_proj.weight"):
            out[name], out[f"{name}_scale_inv"] = fp8_blocks(value)
    return out


CASES = [
    Case(name="minimax-bf16-4bit", group_size=32, seed=131),
    Case(
        name="minimax-fp8-attention",
        group_size=32,
        overrides={"self_attn.q_proj": False, "k_proj": False, "v_proj": False, "o_proj": False},
        published=attention_fp8,
        config={
            "hidden_size": 160,
            "num_hidden_layers": 2,
            "intermediate_size": 160,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "rotary_dim": 32,
        },
        prompts=[1, 3, 11],
        max_tokens=32,
        seed=132,
    ),
    Case(
        name="minimax-tied-f16-mixed",
        dtype="f16",
        group_size=32,
        overrides={
            "block_sparse_moe.gate": False,
            "layers.1.block_sparse_moe.switch_mlp.down_proj": {"group_size": 64, "bits": 6},
        },
        config={
            "hidden_size": 192,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": None,
            "rotary_dim": 24,
            "use_qk_norm": False,
            "num_local_experts": 7,
            "tie_word_embeddings": True,
            "vocab_size": 333,
        },
        prompts=[1, 3, 12],  # f16 is the slowest type in stock MLX on x86
        max_tokens=32,
        seed=133,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    experts = wide_experts(rng, step, count="num_local_experts")
    dense = wide_dense(rng, step)
    return {
        **dense,
        **experts,
        "intermediate_size": experts["moe_intermediate_size"],
        "rotary_dim": dense["head_dim"] // rng.choice([1, 2, 4]),
        "use_qk_norm": rng.random() < 0.7,
    }

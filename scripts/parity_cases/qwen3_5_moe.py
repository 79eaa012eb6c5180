"""Cases of qwen3_5_moe: wrapped and not, experts in every layer."""

import mlx.core as mx
from parity_case import Case, wide_experts
from parity_cases import qwen3_5
from parity_cases.qwen3_5 import lively, wide_hybrid, wrap
from parity_cases.qwen3_next import PROMPTS

BASE_CONFIG = {
    **qwen3_5.BASE_CONFIG,
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "intermediate_size": None,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 128,
}

GOLDEN = {
    **qwen3_5.GOLDEN,
    "intermediate_size": None,
    "num_experts": 6,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    "tie_word_embeddings": False,
}

__all__ = ["lively", "wrap"]


def hugging_face(weights, config):
    """As of qwen3_5, with the gate and up projections of all experts in one."""
    weights = qwen3_5.hugging_face(weights, config)
    out = {}
    for path, value in weights.items():
        experts, _, name = path.partition(".switch_mlp.")
        if name == "gate_proj.weight":
            both = [value, weights[f"{experts}.switch_mlp.up_proj.weight"]]
            out[f"{experts}.experts.gate_up_proj"] = mx.concatenate(both, axis=-2)
        elif name == "down_proj.weight":
            out[f"{experts}.experts.down_proj"] = value
        elif not name:
            out[path] = value
    return out


CASES = [
    Case(name="moe35-bf16-4bit", prompts=PROMPTS, seed=71),
    Case(
        name="moe35-f16-mixed-bits",
        dtype="f16",
        bits=6,
        group_size=32,
        overrides={
            "lm_head": {"group_size": 64, "bits": 8},
            "layers.0.linear_attn.in_proj_a": False,
            "layers.1.linear_attn.in_proj_z": {"group_size": 32, "bits": 3},
            "layers.3.self_attn.q_proj": {"group_size": 64, "bits": 2},
            "layers.2.mlp.switch_mlp.down_proj": {"group_size": 32, "bits": 5},
            "layers.2.mlp.shared_expert_gate": False,
        },
        config={
            "linear_num_value_heads": 6,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 32,
            "norm_topk_prob": False,
            "rope_parameters": {"type": "mrope", "mrope_section": [4, 2, 2], "rope_theta": 5000.0},
            "vocab_size": 405,
        },
        prompts=[1, 2, 3, 19],
        max_tokens=40,
        seed=72,
    ),
    Case(
        name="moe35-hf-f32",
        dtype="f32",
        bits=None,
        published=hugging_face,
        config={"num_experts": 5, "num_experts_per_tok": 3, "rope_parameters": None},
        prompts=PROMPTS,
        seed=73,
    ),
    Case(name="moe35-mxfp4", mode="mxfp4", group_size=32, prompts=PROMPTS, seed=74),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    return {
        **wide_hybrid(rng, step),
        **wide_experts(rng, step),
        "shared_expert_intermediate_size": step * rng.randint(1, 2),
    }

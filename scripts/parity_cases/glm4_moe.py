"""Cases of glm4_moe: part of a head turned, norms and biases of queries and keys."""

from parity_case import Case, wide_dense
from parity_latent import hugging_face, wide_latent

BASE_CONFIG = {
    "architectures": ["Glm4MoeForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "partial_rotary_factor": 0.5,
    "use_qk_norm": True,
    "attention_bias": True,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 1,
    "vocab_size": 512,
}

GOLDEN = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "vocab_size": 96,
    "num_key_value_heads": 1,
    "n_group": 2,
}

CASES = [
    Case(
        name="glm4-moe-bf16-4bit-published",
        group_size=32,
        published=hugging_face,
        max_tokens=40,
        seed=90,
    ),
]


def wide(rng, step):
    """A configuration that the fixed cases do not reach; widths are multiples of `step`."""
    latent = wide_latent(rng, step)
    shared = {key: value for key, value in latent.items() if key in BASE_CONFIG}
    heads = wide_dense(rng, step)
    return {
        **shared,
        **{key: heads[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")},
        "partial_rotary_factor": rng.choice([0.25, 0.5, 1.0]),
        "use_qk_norm": rng.random() < 0.5,
        "rope_scaling": None,
    }

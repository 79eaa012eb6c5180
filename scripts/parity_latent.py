"""What the families of latent attention and grouped experts share: sizes for a sweep, and the
names and numbers that their checkpoints are published with."""

import mlx.core as mx

YARN = {
    "type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 16,
    "beta_slow": 1,
    "mscale": 0.8,
    "mscale_all_dim": 1.3,
}


def wide_latent(rng, step):
    """A configuration drawn for a sweep; widths that may be quantised are multiples of `step`."""
    layers = rng.randint(1, 4)
    groups = rng.choice([1, 1, 2, 4])
    experts = groups * rng.choice([2, 3, 8, 16])
    rope = rng.choice([16, 32, 64])
    return {
        "hidden_size": step * rng.randint(1, 3),
        "num_hidden_layers": layers,
        "intermediate_size": step * rng.randint(1, 3),
        "moe_intermediate_size": step * rng.randint(1, 2),
        "num_attention_heads": rng.choice([1, 3, 4]),
        "q_lora_rank": rng.choice([None, step, 2 * step]),
        "kv_lora_rank": step * rng.randint(1, 2),
        "qk_nope_head_dim": step * rng.randint(1, 2),
        "qk_rope_head_dim": rope,
        "v_head_dim": step * rng.randint(1, 2),
        "n_routed_experts": rng.choice([None] + 5 * [experts]),
        "n_shared_experts": rng.choice([None, 1, 2]),
        "num_experts_per_tok": rng.randint(1, min(8, experts)),
        "n_group": groups,
        "topk_group": rng.randint(1, groups),
        "first_k_dense_replace": rng.randint(0, layers),
        "moe_layer_freq": rng.choice([1, 1, 2]),
        "norm_topk_prob": rng.random() < 0.7,
        "routed_scaling_factor": rng.choice([1.0, 1.8, 2.5]),
        "rope_scaling": rng.choice([None, YARN, {**YARN, "mscale_all_dim": 0}]),
        "rope_theta": rng.choice([1e4, 5e4, 1e6]),
        "rms_norm_eps": rng.choice([1e-5, 1e-6]),
        "attention_bias": rng.random() < 0.3,
        "vocab_size": rng.randint(100, 1500),
    }


def hugging_face(weights, config):
    """mlx-lm's weights under their published names: `kv_b_proj` in one, experts one by one, a layer
    that predicts tokens further ahead and, around a text model, what is there for images."""
    root = "language_model." if "text_config" in config else ""
    text = config.get("text_config", config)
    out = single_experts(weights)
    for layer in range(text["num_hidden_layers"]) if "kv_lora_rank" in text else ():
        at = f"{root}model.layers.{layer}.self_attn"
        keys, packing = take_dense(out, f"{at}.embed_q", text["qk_nope_head_dim"])
        values, _ = take_dense(out, f"{at}.unembed_out", text["kv_lora_rank"])
        both = mx.concatenate([keys.swapaxes(-1, -2), values], axis=1).flatten(0, 1)
        parts = [both] if packing is None else mx.quantize(both, *packing)
        for part, array in zip(("weight", "scales", "biases"), parts):
            out[f"{at}.kv_b_proj.{part}"] = array
    # mlx-lm knows the number of that layer for some families and counts for others
    known = 61 if config["model_type"] in ("deepseek_v3", "kimi_k25") else text["num_hidden_layers"]
    ahead = f"{root}model.layers.{known}"
    out[f"{ahead}.eh_proj.weight"] = mx.ones((4, 8))
    out[f"{ahead}.mlp.experts.0.up_proj.weight"] = mx.ones((4, 32))
    if root:
        out["vision_tower.patch_embed.proj.weight"] = mx.ones((4, 8))
        out["mm_projector.linear_1.bias"] = mx.ones((4,))
    return out


def hugging_face_fp8(weights, config):
    """The same with matrices in 8 bits and a scale for each 128 by 128, as DeepSeek has them."""
    out = {}
    for name, value in hugging_face(weights, config).items():
        out[name] = value
        if value.ndim == 2 and name.endswith("_proj.weight"):
            out[name], out[f"{name}_scale_inv"] = fp8_blocks(value)
    sizes = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    config["quantization_config"] = sizes
    return out


BLOCK = 128


def fp8_blocks(value):
    """A matrix in 8 bits, and the scales of its blocks."""
    rows, columns = value.shape
    pad = mx.pad(value.astype(mx.float32), ((0, -rows % BLOCK), (0, -columns % BLOCK)))
    blocks = pad.reshape(pad.shape[0] // BLOCK, BLOCK, pad.shape[1] // BLOCK, BLOCK)
    scale = mx.abs(blocks).max(axis=(1, 3)) / 448
    codes = mx.to_fp8((blocks / scale[:, None, :, None]).reshape(pad.shape))
    return codes[:rows, :columns], scale


def hugging_face_int4(weights, config):
    """The same with experts in 4 bits around zero, as Kimi has them."""
    out = {}
    for name, value in hugging_face(weights, config).items():
        module, is_expert, _ = name.partition(".weight")
        if not (is_expert and ".experts." in name and value.ndim == 2):
            out[name] = value
            continue
        rows, columns = value.shape
        groups = value.reshape(rows, columns // 32, 32).astype(mx.float32)
        scale = (mx.abs(groups).max(axis=-1) / 7).astype(mx.bfloat16)
        codes = mx.clip(mx.round(groups / scale[..., None].astype(mx.float32)), -8, 7) + 8
        codes = codes.astype(mx.uint32).reshape(rows, columns // 8, 8)
        words = (codes << mx.arange(0, 32, 4, dtype=mx.uint32)).sum(axis=-1)
        out[f"{module}.weight_packed"] = words.astype(mx.uint32).view(mx.int32)
        out[f"{module}.weight_scale"] = scale
        out[f"{module}.weight_shape"] = mx.array([rows, columns])
    method = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config.get("text_config", config)["quantization_config"] = method
    return out


def single_experts(weights):
    """Stacks of experts taken apart."""
    out = {}
    for name, value in weights.items():
        prefix, stack, rest = name.partition(".switch_mlp.")
        if stack:
            out |= {f"{prefix}.experts.{e}.{rest}": one for e, one in enumerate(value)}
        else:
            out[name] = value
    return out


def take_dense(weights, module, columns):
    """A matrix, unpacked, and the group size and bits that it was packed with, if it was."""
    weight, scales = weights.pop(f"{module}.weight"), weights.pop(f"{module}.scales", None)
    if scales is None:
        return weight, None
    packing = (columns // scales.shape[-1], weight.shape[-1] * 32 // columns)
    return mx.dequantize(weight, scales, weights.pop(f"{module}.biases"), *packing), packing

#!/usr/bin/env python3
"""Writes a GGUF file of the shape in a config.json, with random weights, so that llama.cpp can be timed on the shape
that zmlx is timed on: matrices in Q4_1, the experts of gpt-oss in MXFP4 as published. Needs `pip install gguf numpy`.

usage: make_gguf.py CONFIG_JSON OUT.gguf
"""

import json
import sys

import gguf
import numpy as np


class Gguf:
    """A file under way: `matrix`, `ones` and `floats` add a tensor each, of the shape [outputs, inputs]."""

    def __init__(self, path: str, arch: str, c: dict) -> None:
        self.writer = gguf.GGUFWriter(path, arch)
        self.rng = np.random.default_rng(0)
        self.noise = self.rng.integers(0, 256, (1 << 26) - 1, dtype=np.uint8)
        self.made = {}
        w = self.writer
        w.add_block_count(c["num_hidden_layers"])
        w.add_context_length(8192)
        w.add_embedding_length(c["hidden_size"])
        w.add_feed_forward_length(c.get("intermediate_size") or c["moe_intermediate_size"])
        w.add_head_count(c["num_attention_heads"])
        w.add_layer_norm_rms_eps(c.get("rms_norm_eps") or c["norm_eps"])
        w.add_rope_freq_base(c.get("rope_theta") or c["rope_parameters"]["rope_theta"])
        w.add_expert_count(c.get("num_experts") or c.get("n_routed_experts") or c["num_local_experts"])
        w.add_expert_used_count(c["num_experts_per_tok"])
        w.add_vocab_size(c["vocab_size"])
        w.add_tokenizer_model("none")

    def matrix(self, name: str, *shape: int) -> None:
        # a block is f16 scale, f16 minimum, 32 codes of 4 bits
        scale = 1 / np.sqrt(shape[-1]) / 4
        head = np.array([scale, -7.5 * scale], dtype=np.float16).view(np.uint8)
        self.packed(name, head, shape, 20, gguf.GGMLQuantizationType.Q4_1)

    def mxfp4(self, name: str, *shape: int) -> None:
        # a block is the exponent of its scale and 32 codes of 4 bits
        head = np.array([127 - 2 - int(np.log2(np.sqrt(shape[-1])))], dtype=np.uint8)
        self.packed(name, head, shape, 17, gguf.GGMLQuantizationType.MXFP4)

    def packed(self, name: str, head, shape, block: int, kind) -> None:
        # the same bytes in all matrices of a shape: 20 GB of random numbers of their own take minutes
        if (shape, kind) not in self.made:
            data = np.resize(self.noise, (int(np.prod(shape)) // 32, block))
            data[:, : len(head)] = head
            self.made[shape, kind] = data.reshape(*shape[:-1], shape[-1] // 32 * block)
        self.writer.add_tensor(name, self.made[shape, kind], raw_dtype=kind)

    def ones(self, name: str, *shape: int) -> None:
        self.writer.add_tensor(name, np.ones(shape, dtype=np.float32))

    def floats(self, name: str, *shape: int) -> None:
        values = self.rng.standard_normal(shape) / np.sqrt(shape[-1])
        self.writer.add_tensor(name, values.astype(np.float32))

    def ends(self, c: dict, norm: str = "output_norm.weight") -> None:
        self.matrix("token_embd.weight", c["vocab_size"], c["hidden_size"])
        if not c.get("tie_word_embeddings"):
            self.matrix("output.weight", c["vocab_size"], c["hidden_size"])
        self.ones(norm, c["hidden_size"])

    def mlp(self, p: str, hidden: int, inner: int, end: str = "") -> None:
        self.matrix(f"{p}ffn_gate{end}.weight", inner, hidden)
        self.matrix(f"{p}ffn_up{end}.weight", inner, hidden)
        self.matrix(f"{p}ffn_down{end}.weight", hidden, inner)

    def experts(self, p: str, hidden: int, experts: int, inner: int, pack=None) -> None:
        pack = pack or self.matrix
        self.floats(p + "ffn_gate_inp.weight", experts, hidden)
        pack(p + "ffn_gate_exps.weight", experts, inner, hidden)
        pack(p + "ffn_up_exps.weight", experts, inner, hidden)
        pack(p + "ffn_down_exps.weight", experts, hidden, inner)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def attention(g: Gguf, p: str, c: dict, dim: int, queries: int = 1) -> None:
    hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    g.matrix(p + "attn_q.weight", queries * heads * dim, hidden)
    g.matrix(p + "attn_k.weight", kv * dim, hidden)
    g.matrix(p + "attn_v.weight", kv * dim, hidden)
    g.matrix(p + "attn_output.weight", hidden, heads * dim)


def head_norms(g: Gguf, p: str, dim: int) -> None:
    g.ones(p + "attn_q_norm.weight", dim)
    g.ones(p + "attn_k_norm.weight", dim)


def qwen3_moe(path: str, c: dict) -> Gguf:
    g, hidden, dim = Gguf(path, "qwen3moe", c), c["hidden_size"], c["head_dim"]
    g.writer.add_head_count_kv(c["num_key_value_heads"])
    g.writer.add_key_length(dim)
    g.writer.add_value_length(dim)
    g.writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    g.ends(c)
    for i in range(c["num_hidden_layers"]):
        p = f"blk.{i}."
        g.ones(p + "attn_norm.weight", hidden)
        g.ones(p + "ffn_norm.weight", hidden)
        head_norms(g, p, dim)
        attention(g, p, c, dim)
        g.experts(p, hidden, c["num_experts"], c["moe_intermediate_size"])
    return g


def gpt_oss(path: str, c: dict) -> Gguf:
    g, hidden, dim = Gguf(path, "gpt-oss", c), c["hidden_size"], c["head_dim"]
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    experts, inner = c["num_local_experts"], c["intermediate_size"]
    w = g.writer
    w.add_head_count_kv(kv)
    w.add_key_length(dim)
    w.add_value_length(dim)
    w.add_expert_feed_forward_length(inner)
    w.add_sliding_window(c["sliding_window"])
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(c["rope_scaling"]["factor"])
    w.add_rope_scaling_orig_ctx_len(c["rope_scaling"]["original_max_position_embeddings"])
    g.ends(c)
    for i in range(c["num_hidden_layers"]):
        p = f"blk.{i}."
        g.ones(p + "attn_norm.weight", hidden)
        g.ones(p + "post_attention_norm.weight", hidden)
        attention(g, p, c, dim)
        for name, size in [("q", heads * dim), ("k", kv * dim), ("v", kv * dim), ("output", hidden)]:
            g.floats(f"{p}attn_{name}.bias", size)
        g.floats(p + "attn_sinks.weight", heads)
        g.experts(p, hidden, experts, inner, g.mxfp4)
        g.floats(p + "ffn_gate_inp.bias", experts)
        g.floats(p + "ffn_gate_exps.bias", experts, inner)
        g.floats(p + "ffn_up_exps.bias", experts, inner)
        g.floats(p + "ffn_down_exps.bias", experts, hidden)
    return g


def lfm2_moe(path: str, c: dict) -> Gguf:
    g, hidden = Gguf(path, "lfm2moe", c), c["hidden_size"]
    dim = hidden // c["num_attention_heads"]
    is_attention = [kind == "full_attention" for kind in c["layer_types"][: c["num_hidden_layers"]]]
    w = g.writer
    w.add_head_count_kv([c["num_key_value_heads"] if a else 0 for a in is_attention])
    w.add_shortconv_l_cache(c["conv_L_cache"])
    w.add_leading_dense_block_count(c["num_dense_layers"])
    w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    g.ends(c, "token_embd_norm.weight")
    for i in range(c["num_hidden_layers"]):
        p = f"blk.{i}."
        g.ones(p + "attn_norm.weight", hidden)
        g.ones(p + "ffn_norm.weight", hidden)
        if is_attention[i]:
            head_norms(g, p, dim)
            attention(g, p, c, dim)
        else:
            g.floats(p + "shortconv.conv.weight", hidden, c["conv_L_cache"])
            g.matrix(p + "shortconv.in_proj.weight", 3 * hidden, hidden)
            g.matrix(p + "shortconv.out_proj.weight", hidden, hidden)
        if i < c["num_dense_layers"]:
            g.mlp(p, hidden, c["intermediate_size"])
        else:
            g.experts(p, hidden, c["num_experts"], c["moe_intermediate_size"])
            g.floats(p + "exp_probs_b.bias", c["num_experts"])
    return g


def glm4_moe_lite(path: str, c: dict) -> Gguf:
    g, hidden, heads = Gguf(path, "deepseek2", c), c["hidden_size"], c["num_attention_heads"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    rank, q_rank, inner = c["kv_lora_rank"], c["q_lora_rank"], c["moe_intermediate_size"]
    w = g.writer
    w.add_head_count_kv(1)
    w.add_key_length(rank + rope)
    w.add_value_length(rank)
    w.add_key_length_mla(nope + rope)
    w.add_value_length_mla(value)
    w.add_rope_dimension_count(rope)
    w.add_q_lora_rank(q_rank)
    w.add_kv_lora_rank(rank)
    w.add_leading_dense_block_count(c["first_k_dense_replace"])
    w.add_expert_feed_forward_length(inner)
    w.add_expert_shared_count(c["n_shared_experts"])
    w.add_expert_weights_scale(c["routed_scaling_factor"])
    w.add_expert_weights_norm(True)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    g.ends(c)
    for i in range(c["num_hidden_layers"]):
        p = f"blk.{i}."
        g.ones(p + "attn_norm.weight", hidden)
        g.ones(p + "ffn_norm.weight", hidden)
        g.ones(p + "attn_q_a_norm.weight", q_rank)
        g.ones(p + "attn_kv_a_norm.weight", rank)
        g.matrix(p + "attn_q_a.weight", q_rank, hidden)
        g.matrix(p + "attn_q_b.weight", heads * (nope + rope), q_rank)
        g.matrix(p + "attn_kv_a_mqa.weight", rank + rope, hidden)
        g.matrix(p + "attn_k_b.weight", heads, rank, nope)
        g.matrix(p + "attn_v_b.weight", heads, value, rank)
        g.matrix(p + "attn_output.weight", hidden, heads * value)
        if i < c["first_k_dense_replace"]:
            g.mlp(p, hidden, c["intermediate_size"])
        else:
            g.experts(p, hidden, c["n_routed_experts"], inner)
            g.floats(p + "exp_probs_b.bias", c["n_routed_experts"])
            g.mlp(p, hidden, inner * c["n_shared_experts"], "_shexp")
    return g


def qwen3_5_moe(path: str, c: dict) -> Gguf:
    g, hidden, dim = Gguf(path, "qwen35moe", c), c["hidden_size"], c["head_dim"]
    key_heads, value_heads = c["linear_num_key_heads"], c["linear_num_value_heads"]
    keys = key_heads * c["linear_key_head_dim"]
    values = value_heads * c["linear_value_head_dim"]
    rope = c["rope_parameters"]
    w = g.writer
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_key_length(dim)
    w.add_value_length(dim)
    w.add_rope_dimension_count(int(dim * rope["partial_rotary_factor"]))
    w.add_rope_dimension_sections([*rope["mrope_section"], 0])
    w.add_full_attention_interval(c["full_attention_interval"])
    w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    w.add_expert_shared_feed_forward_length(c["shared_expert_intermediate_size"])
    w.add_ssm_conv_kernel(c["linear_conv_kernel_dim"])
    w.add_ssm_inner_size(values)
    w.add_ssm_state_size(c["linear_key_head_dim"])
    w.add_ssm_time_step_rank(value_heads)
    w.add_ssm_group_count(key_heads)
    g.ends(c)
    for i in range(c["num_hidden_layers"]):
        p = f"blk.{i}."
        g.ones(p + "attn_norm.weight", hidden)
        g.ones(p + "post_attention_norm.weight", hidden)
        if c["layer_types"][i] == "full_attention":
            head_norms(g, p, dim)
            attention(g, p, c, dim, queries=2)
        else:
            g.matrix(p + "attn_qkv.weight", 2 * keys + values, hidden)
            g.matrix(p + "attn_gate.weight", values, hidden)
            g.floats(p + "ssm_conv1d.weight", 2 * keys + values, c["linear_conv_kernel_dim"])
            g.ones(p + "ssm_dt.bias", value_heads)
            g.writer.add_tensor(p + "ssm_a", -np.ones(value_heads, dtype=np.float32))
            g.matrix(p + "ssm_beta.weight", value_heads, hidden)
            g.matrix(p + "ssm_alpha.weight", value_heads, hidden)
            g.ones(p + "ssm_norm.weight", c["linear_value_head_dim"])
            g.matrix(p + "ssm_out.weight", hidden, values)
        g.experts(p, hidden, c["num_experts"], c["moe_intermediate_size"])
        g.floats(p + "ffn_gate_inp_shexp.weight", hidden)
        g.mlp(p, hidden, c["shared_expert_intermediate_size"], "_shexp")
    return g


FAMILIES = {f.__name__: f for f in [glm4_moe_lite, gpt_oss, lfm2_moe, qwen3_5_moe, qwen3_moe]}


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1]) as f:
        config = json.load(f)
    family = FAMILIES.get(config["model_type"])
    if family is None:
        sys.exit(f"make_gguf.py: no shape for {config['model_type']}; known: {', '.join(FAMILIES)}")
    family(sys.argv[2], config | config.get("text_config", {})).close()


if __name__ == "__main__":
    main()

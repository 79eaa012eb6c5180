#!/usr/bin/env python3
"""Writes a Qwen3-MoE GGUF file of the shape in a config.json, with random Q4_1 weights, so that
llama.cpp can be timed on the shape that zmlx is timed on. Needs `pip install gguf numpy`.

usage: make_gguf.py CONFIG_JSON OUT.gguf
"""
import json
import sys

import gguf
import numpy as np


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1]) as f:
        c = json.load(f)
    writer = gguf.GGUFWriter(sys.argv[2], "qwen3moe")
    hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    dim, experts, inner = c["head_dim"], c["num_experts"], c["moe_intermediate_size"]
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_expert_count(experts)
    writer.add_expert_used_count(c["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(inner)
    writer.add_vocab_size(c["vocab_size"])
    writer.add_tokenizer_model("none")

    rng = np.random.default_rng(0)

    def q4_1(name: str, *shape: int) -> None:
        # A block is f16 scale, f16 minimum, 32 codes of 4 bits.
        blocks = int(np.prod(shape)) // 32
        data = rng.integers(0, 256, (blocks, 20), dtype=np.uint8)
        scale = 1 / np.sqrt(shape[-1]) / 4
        head = np.array([scale, -7.5 * scale], dtype=np.float16).view(np.uint8)
        data[:, :4] = head
        data = data.reshape(*shape[:-1], shape[-1] // 32 * 20)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_1)

    def ones(name: str, n: int) -> None:
        writer.add_tensor(name, np.ones(n, dtype=np.float32))

    q4_1("token_embd.weight", c["vocab_size"], hidden)
    q4_1("output.weight", c["vocab_size"], hidden)
    ones("output_norm.weight", hidden)
    for i in range(c["num_hidden_layers"]):
        p = f"blk.{i}."
        ones(p + "attn_norm.weight", hidden)
        ones(p + "ffn_norm.weight", hidden)
        ones(p + "attn_q_norm.weight", dim)
        ones(p + "attn_k_norm.weight", dim)
        q4_1(p + "attn_q.weight", heads * dim, hidden)
        q4_1(p + "attn_k.weight", kv * dim, hidden)
        q4_1(p + "attn_v.weight", kv * dim, hidden)
        q4_1(p + "attn_output.weight", hidden, heads * dim)
        router = rng.standard_normal((experts, hidden)) / np.sqrt(hidden)
        writer.add_tensor(p + "ffn_gate_inp.weight", router.astype(np.float32))
        q4_1(p + "ffn_gate_exps.weight", experts, inner, hidden)
        q4_1(p + "ffn_up_exps.weight", experts, inner, hidden)
        q4_1(p + "ffn_down_exps.weight", experts, hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()

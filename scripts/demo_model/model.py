"""Qwen3-MoE for training: same function as transformers' Qwen3MoeForCausalLM, few large products.

Every token meets every expert as one wide product and the routing weight, zero for the experts a token is not
sent to, is applied before the down projection. That is num_experts / top_k times the arithmetic of routing the
tokens, but no sorting and no small products: on a GPU, at these sizes, it is the faster way, and exact.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

GROUP_SIZE = 64
WEIGHT_BITS, ROUTER_BITS = 4, 8  # what convert.py's quantisation gives the weights


@dataclass
class Config:
    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 8
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 64
    num_experts: int = 16
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 128
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def to_hf(self):
        return {
            "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None,
            "decoder_sparse_step": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02,
            "intermediate_size": 4 * self.moe_intermediate_size, "mlp_only_layers": [], "model_type": "qwen3_moe",
            "norm_topk_prob": True, "output_router_logits": False, "pad_token_id": 0, "rope_scaling": None,
            "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
            "use_cache": True, "use_sliding_window": False, **asdict(self),
        }


def fake_quantize(weight, bits):
    """MLX's affine quantisation of rows in groups of 64, and back; the gradient passes straight through."""
    w = weight.detach().to(torch.bfloat16).float().unflatten(-1, (-1, GROUP_SIZE))
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-7)
    from_low = low.abs() > high.abs()
    scale = torch.where(from_low, scale, -scale)
    edge = torch.where(from_low, low, high)
    steps = torch.round(edge / scale)
    at_zero = steps == 0
    scale = torch.where(at_zero, scale, edge / torch.where(at_zero, 1.0, steps))
    bias = torch.where(at_zero, 0.0, edge)
    q = torch.round((w - bias) / scale).clamp(0, 2**bits - 1)
    back = q * scale.to(torch.bfloat16).float() + bias.to(torch.bfloat16).float()
    return weight + (back.flatten(-2) - weight.detach())


def prepared(weight, dtype, quantized, bits=WEIGHT_BITS):
    return (fake_quantize(weight, bits) if quantized else weight).to(dtype)


def rms_norm(x, weight, eps):
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * weight.float()).to(x.dtype)


def rope_tables(config, length, device):
    frequency = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim)
    angle = torch.outer(torch.arange(length, device=device).float(), frequency)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()  # [L, head_dim]


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return (x.float() * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


def linear_weight(rows, columns, gain=1.0):
    return nn.Parameter(torch.randn(rows, columns) * gain / math.sqrt(columns))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = c = config
        out_gain = 1.0 / math.sqrt(2 * c.num_hidden_layers)
        q_size, kv_size = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.input_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.q_proj = linear_weight(q_size, c.hidden_size)
        self.k_proj = linear_weight(kv_size, c.hidden_size)
        self.v_proj = linear_weight(kv_size, c.hidden_size)
        self.o_proj = linear_weight(c.hidden_size, q_size, out_gain)
        self.q_norm = nn.Parameter(torch.ones(c.head_dim))
        self.k_norm = nn.Parameter(torch.ones(c.head_dim))
        self.post_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.router = linear_weight(c.num_experts, c.hidden_size)
        E, H, D = c.num_experts, c.moe_intermediate_size, c.hidden_size
        self.gate_proj = nn.Parameter(torch.randn(E, H, D) / math.sqrt(D))
        self.up_proj = nn.Parameter(torch.randn(E, H, D) / math.sqrt(D))
        self.down_proj = nn.Parameter(torch.randn(E, D, H) * out_gain / math.sqrt(H))

    def forward(self, x, cos, sin, quantized: bool):
        """x [B, L, D] -> (x [B, L, D], balance loss, z loss, tokens per expert [E])"""
        c, (B, L, D), dtype = self.config, x.shape, x.dtype
        y = rms_norm(x, self.input_norm, c.rms_norm_eps)
        q = F.linear(y, prepared(self.q_proj, dtype, quantized)).view(B, L, -1, c.head_dim)
        k = F.linear(y, prepared(self.k_proj, dtype, quantized)).view(B, L, -1, c.head_dim)
        v = F.linear(y, prepared(self.v_proj, dtype, quantized)).view(B, L, -1, c.head_dim)
        q = rotate(rms_norm(q, self.q_norm, c.rms_norm_eps).transpose(1, 2), cos, sin)
        k = rotate(rms_norm(k, self.k_norm, c.rms_norm_eps).transpose(1, 2), cos, sin)
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, enable_gqa=True)
        x = x + F.linear(y.transpose(1, 2).reshape(B, L, -1), prepared(self.o_proj, dtype, quantized))

        y = rms_norm(x, self.post_norm, c.rms_norm_eps)
        logits = F.linear(y, prepared(self.router, dtype, quantized, ROUTER_BITS)).float()
        probabilities = logits.softmax(-1)
        top = probabilities.topk(c.num_experts_per_tok, -1)
        chosen = torch.zeros_like(probabilities).scatter(-1, top.indices, 1.0)
        weights = probabilities * chosen / top.values.sum(-1, keepdim=True)  # [B, L, E]
        gate = F.linear(y, prepared(self.gate_proj, dtype, quantized).flatten(0, 1)).unflatten(-1, (c.num_experts, -1))
        up = F.linear(y, prepared(self.up_proj, dtype, quantized).flatten(0, 1)).unflatten(-1, (c.num_experts, -1))
        hidden = F.silu(gate) * up * weights.unsqueeze(-1).to(dtype)  # [B, L, E, H]
        down = prepared(self.down_proj, dtype, quantized).permute(1, 0, 2).flatten(1)  # [D, E*H]
        x = x + F.linear(hidden.flatten(-2), down)

        load = chosen.mean((0, 1))
        balance = c.num_experts / c.num_experts_per_tok * (load * probabilities.mean((0, 1))).sum()
        z = logits.logsumexp(-1).square().mean()
        return x, balance, z, load


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.02)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.quantized = False  # run every weight as the quantised checkpoint will have it
        self.dtype = torch.float32
        self.cross_entropy = cross_entropy

    def hidden(self, ids):
        cos, sin = rope_tables(self.config, ids.shape[1], ids.device)
        table = prepared(self.embedding, self.dtype, self.quantized)
        x, balance, z, loads = F.embedding(ids, table), 0.0, 0.0, []
        for layer in self.layers:
            x, layer_balance, layer_z, load = layer(x, cos, sin, self.quantized)
            balance, z = balance + layer_balance / len(self.layers), z + layer_z / len(self.layers)
            loads.append(load)
        return rms_norm(x, self.norm, self.config.rms_norm_eps), table, balance, z, torch.stack(loads)

    def logits(self, ids):
        x, table, *_ = self.hidden(ids)
        return F.linear(x, table).float()

    def forward(self, ids, targets):
        """-> (loss of each token [B, L], balance loss, z loss, tokens per expert [layers, E])"""
        x, table, balance, z, loads = self.hidden(ids)
        return self.cross_entropy(x, table, targets), balance, z, loads

    # --- transformers' names ---

    def to_hf(self):
        tensors = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        for i, layer in enumerate(self.layers):
            p = f"model.layers.{i}."
            tensors |= {p + "input_layernorm.weight": layer.input_norm, p + "post_attention_layernorm.weight": layer.post_norm,
                        p + "self_attn.q_norm.weight": layer.q_norm, p + "self_attn.k_norm.weight": layer.k_norm,
                        p + "mlp.gate.weight": layer.router}
            tensors |= {p + f"self_attn.{n}.weight": getattr(layer, n) for n in ("q_proj", "k_proj", "v_proj", "o_proj")}
            for n in ("gate_proj", "up_proj", "down_proj"):
                tensors |= {p + f"mlp.experts.{e}.{n}.weight": w for e, w in enumerate(getattr(layer, n))}
        return {name: t.detach().to(torch.bfloat16).cpu().contiguous() for name, t in tensors.items()}

    @torch.no_grad()
    def load_hf(self, tensors):
        self.embedding.copy_(tensors["model.embed_tokens.weight"])
        self.norm.copy_(tensors["model.norm.weight"])
        for i, layer in enumerate(self.layers):
            p = f"model.layers.{i}."
            for ours, theirs in (("input_norm", "input_layernorm"), ("post_norm", "post_attention_layernorm"), ("q_norm", "self_attn.q_norm"),
                                 ("k_norm", "self_attn.k_norm"), ("router", "mlp.gate"), ("q_proj", "self_attn.q_proj"),
                                 ("k_proj", "self_attn.k_proj"), ("v_proj", "self_attn.v_proj"), ("o_proj", "self_attn.o_proj")):
                getattr(layer, ours).copy_(tensors[p + theirs + ".weight"])
            for n in ("gate_proj", "up_proj", "down_proj"):
                getattr(layer, n).copy_(torch.stack([tensors[p + f"mlp.experts.{e}.{n}.weight"] for e in range(self.config.num_experts)]))


def cross_entropy(x, table, targets):
    return F.cross_entropy(F.linear(x, table).float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)

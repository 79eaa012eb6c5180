#!/usr/bin/env python3
"""Validation loss, expert load and greedy samples of a checkpoint, through mlx-lm.

    evaluate.py --model DIR [--work DIR] [--windows 64] [--samples N]

--model takes the 4-bit model or the checkpoint of train.py; --work is where prepare_data.py put val.bin.xz.
"""

import argparse
import collections
import lzma
import pathlib

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy
from mlx_lm.models.qwen3_moe import Qwen3MoeSparseMoeBlock

PLAIN = [
    "A file descriptor is", "The kernel", "To install a package on a Debian system,", "# Introduction\n\n",
    "If the file does not exist,", "The function returns", "When a process is created,", "In Python, a list",
]
CHAT = [
    "What does `ls` do?", "What is a compiler?", "What is the package gimp?", "What does the command tar do?",
    "Explain virtual memory.", "What is git?", "What does the function malloc do?", "How do I install a package?",
]


def validation_loss(model, path, num_windows, length=512):
    ids = numpy.frombuffer(lzma.open(path).read(), dtype=numpy.uint16).astype(numpy.int32)
    starts = numpy.linspace(0, len(ids) - length - 2, num_windows).astype(int)
    total = 0.0
    for start in starts:
        window = mx.array(ids[start:start + length + 1])
        logits = model(window[None, :-1]).astype(mx.float32)
        total += nn.losses.cross_entropy(logits[0], window[1:], reduction="mean").item()
    return total / num_windows


def expert_load(model, path, num_windows, length=512):
    """Share of its tokens that each layer sends to each expert (top_k of them a token)."""
    ids = numpy.frombuffer(lzma.open(path).read(), dtype=numpy.uint16).astype(numpy.int32)
    seen = collections.defaultdict(list)
    call = Qwen3MoeSparseMoeBlock.__call__

    def watched(self, x):
        chosen = mx.argpartition(mx.softmax(self.gate(x), axis=-1, precise=True), kth=-self.top_k, axis=-1)[..., -self.top_k:]
        seen[id(self)].append(numpy.array(chosen).ravel())
        return call(self, x)

    Qwen3MoeSparseMoeBlock.__call__ = watched
    for start in numpy.linspace(0, len(ids) - length - 2, num_windows).astype(int):
        mx.eval(model(mx.array(ids[start:start + length])[None]))
    Qwen3MoeSparseMoeBlock.__call__ = call
    for i, layer in enumerate(model.layers):
        chosen = numpy.concatenate(seen[id(layer.mlp)])
        share = numpy.bincount(chosen, minlength=layer.mlp.num_experts) / (len(chosen) / layer.mlp.top_k)
        print(f"layer {i}: min {share.min():.2f} max {share.max():.2f}  " + " ".join(f"{s:.2f}" for s in share))


def repeated(ids, n=8):
    """Share of n-grams that occurred before in the same text: near 1 in a loop."""
    grams = [tuple(ids[i:i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / max(1, len(grams))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--samples", type=int, default=len(PLAIN), help="greedy samples of each kind")
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()

    model, tokenizer = mlx_lm.load(options.model)
    if options.work:
        print(f"validation loss {validation_loss(model, options.work / 'val.bin.xz', options.windows):.4f}", flush=True)
        expert_load(model, options.work / "val.bin.xz", max(2, options.windows // 8))
    prompts = [tokenizer.encode(p, add_special_tokens=False) for p in PLAIN[:options.samples]]
    prompts += [tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True) for p in CHAT[:options.samples]]
    rates = []
    for prompt in prompts:
        made = [r.token for r in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=options.max_tokens)]
        rates.append(repeated(made))
        print(f"--- {len(made)} tokens, repeated 8-grams {rates[-1]:.2f}\n{tokenizer.decode(prompt)}>>>{tokenizer.decode(made)}", flush=True)
    if rates:
        print(f"=== mean share of repeated 8-grams {sum(rates) / len(rates):.3f}")


if __name__ == "__main__":
    main()

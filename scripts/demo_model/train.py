#!/usr/bin/env python3
"""Trains the demo model on the token files of prepare_data.py; writes a transformers checkpoint.

    train.py --work DIR --out DIR --minutes 8            one CUDA device, or the CPU (slowly)
    train.py --work DIR --out DIR --steps 0              random weights of the same shape
"""

import argparse
import json
import lzma
import math
import pathlib
import time

import numpy
import torch

from model import Config, Model

QUANTIZED_FROM = 0.75  # share of the run after which the weights are trained as quantised
WARMUP_STEPS = 150
BALANCE_COEFFICIENT, Z_COEFFICIENT = 0.01, 1e-4
END_OF_TEXT, END_OF_TURN = 0, 2


class Tokens:
    """A token file on the device. Windows come in a new order each pass; half of them start where a text starts."""

    def __init__(self, path, device, seed=0):
        flat = numpy.frombuffer(lzma.open(path).read(), dtype=numpy.uint16).astype(numpy.int16)
        self.ids = torch.from_numpy(flat).to(device)
        begins = torch.zeros(len(flat), dtype=torch.int32, device=device)
        positions = torch.arange(len(flat), dtype=torch.int32, device=device)
        begins[1:] = torch.where(self.ids[:-1] == END_OF_TEXT, positions[1:], 0)
        self.begin = torch.cummax(begins, 0).values  # start of the text that each position is in
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.order, self.at, self.passes = None, 0, 0.0

    def batch(self, size, length):
        num_windows = (len(self.ids) - length - 1) // length
        if self.order is None or self.at + size > num_windows:
            self.order = torch.randperm(num_windows, generator=self.generator, device=self.ids.device)
            self.shift = int(torch.randint(length, (1,), generator=self.generator, device=self.ids.device))
            self.at = 0
        start = self.order[self.at:self.at + size] * length + self.shift
        start = start.clamp_max(len(self.ids) - length - 1)
        snap = torch.rand(size, generator=self.generator, device=self.ids.device) < 0.5
        start = torch.where(snap, torch.maximum(self.begin[start].long(), start - length // 2), start)
        self.at += size
        self.passes += size / num_windows
        return self.windows(start, length)

    def windows(self, start, length):
        index = start[:, None] + torch.arange(length + 1, device=self.ids.device)
        ids = self.ids[index].long()
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def loops(ids, rng):
    """Windows [B, L+1] whose text gets stuck: a prefix, then one span of it again and again.

    -> (ids, target index of the same token one round earlier, mask of the targets that are repeats)
    """
    rows, length = ids.shape
    prefix = torch.randint(8, 160, (rows, 1), generator=rng, device=ids.device)
    span = (2 ** torch.empty(rows, 1, device=ids.device).uniform_(0.0, 6.3, generator=rng)).long()
    position = torch.arange(length, device=ids.device).expand(rows, -1)
    turn = torch.where(position < prefix, position, prefix + (position - prefix) % span)
    target = position[:, 1:]
    repeat = (target >= prefix + span) & (target < prefix + span * 8)
    return ids.gather(1, turn), (target - span - 1).clamp_min(0), repeat


def loop_loss(losses, earlier, repeat, decay):
    """Each round of a loop should be less likely than the one before (DITTO, arXiv:2206.02369)."""
    chance = torch.exp(-losses)
    wanted = decay * chance.detach().gather(1, earlier)
    miss = -torch.log((1 - (chance - wanted).abs()).clamp_min(1e-4))
    return (miss * repeat).sum() / repeat.sum()


class Muon:
    """Momentum, then the nearest orthogonal matrix (Jordan et al. 2024), at AdamW's step size (arXiv:2502.16982)."""

    def __init__(self, params, weight_decay, momentum=0.95):
        self.groups = {}
        for p in params:
            self.groups.setdefault(p.shape, []).append(p)
        self.momentum_of = {shape: torch.zeros(len(ps), *shape, device=ps[0].device) for shape, ps in self.groups.items()}
        self.weight_decay, self.momentum = weight_decay, momentum

    @torch.no_grad()
    def step(self, lr):
        for shape, params in self.groups.items():
            grad = torch.stack([p.grad for p in params])
            buffer = self.momentum_of[shape].lerp_(grad, 1 - self.momentum)
            update = orthogonal(grad.lerp(buffer, self.momentum)) * (0.2 * math.sqrt(max(shape[-2:])))
            for p, u in zip(params, update):
                p.mul_(1 - lr * self.weight_decay).add_(u.to(p.dtype), alpha=-lr)
                p.grad = None


def orthogonal(g, steps=5):
    x = g.to(torch.bfloat16 if g.is_cuda else g.dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


@torch.no_grad()
def evaluate(model, tokens, length, size, num_windows=256):
    start = torch.linspace(0, len(tokens.ids) - length - 2, num_windows, device=tokens.ids.device).long()
    losses, loads = [], []
    for chunk in start.split(size):
        loss, _, _, load = model(*tokens.windows(chunk, length))
        losses.append(loss.mean())
        loads.append(load)
    return torch.stack(losses).mean().item(), torch.stack(loads).mean(0)


@torch.no_grad()
def greedy(model, ids, count):
    for _ in range(count):
        token = int(model.logits(torch.tensor([ids], device=model.embedding.device))[0, -1].argmax())
        if token in (END_OF_TEXT, END_OF_TURN):
            break
        ids = ids + [token]
    return ids


@torch.no_grad()
def loop_rate(model, tokens, rows=128, prompt=24, count=128):
    """Share of 8-grams in greedy continuations of validation text that the same continuation had before."""
    start = torch.linspace(0, len(tokens.ids) - prompt - 2, rows, device=tokens.ids.device).long()
    ids = tokens.windows(start, prompt)[0]
    for _ in range(count):
        ids = torch.cat([ids, model.logits(ids)[:, -1:].argmax(-1)], 1)
    rates = []
    for row in ids[:, prompt:].tolist():
        ends = [i for i, t in enumerate(row) if t in (END_OF_TEXT, END_OF_TURN)]
        row = row[:ends[0]] if ends else row
        grams = [tuple(row[i:i + 8]) for i in range(len(row) - 7)]
        if grams:
            rates.append(1 - len(set(grams)) / len(grams))
    return sum(rates) / max(1, len(rates))


PROMPTS = [
    "The package manager", "# Installing\n\nTo install a package on a Debian system,", "A file descriptor is",
    "<|im_start|>user\nWhat does `ls` do?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is a compiler?<|im_end|>\n<|im_start|>assistant\n",
]


def save(model, out, max_shard_bytes=12 << 20):
    """A transformers checkpoint in shards that small storage takes."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    shards, size = [{}], 0
    for name, tensor in model.to_hf().items():
        if size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(t.nbytes for s in shards for t in s.values())
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    (out / "config.json").write_text(json.dumps(model.config.to_hf(), indent=2, sort_keys=True) + "\n")


def load(model, folder):
    from safetensors.torch import load_file

    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    model.load_hf(tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="where prepare_data.py put the tokens")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--init", type=pathlib.Path, help="checkpoint to go on from")
    parser.add_argument("--minutes", type=float, help="train this long, compilation not counted")
    parser.add_argument("--steps", type=int, help="or this many steps")
    parser.add_argument("--batch", type=int, default=128, help="windows a step")
    parser.add_argument("--length", type=int, default=1024, help="tokens a window")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--quantized-from", type=float, default=QUANTIZED_FROM)
    parser.add_argument("--loop-share", type=float, default=0.0, help="share of the windows that teach it to leave loops")
    parser.add_argument("--loop-decay", type=float, default=0.5, help="how likely a round of a loop should be, of the round before")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON object of changes to the architecture")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    model = Model(Config(**options.config)).to(device)
    model.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if options.init:
        load(model, options.init)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {device}", flush=True)
    if options.steps == 0:
        return save(model, options.out)

    if not options.steps and not options.minutes:
        parser.error("give --minutes or --steps")
    train, val = (Tokens(options.work / f"{n}.bin.xz", device, options.seed) for n in ("train", "val"))
    print(f"{len(train.ids) / 1e6:.1f} M training tokens, {len(val.ids) / 1e6:.2f} M validation tokens", flush=True)
    if options.init:
        model.quantized = True
        print(f"repeated 8-grams in greedy text before {loop_rate(model, val):.3f}", flush=True)
    matrices = [p for n, p in model.named_parameters() if "_proj" in n]
    others = [p for n, p in model.named_parameters() if "_proj" not in n]
    muon = Muon(matrices, options.weight_decay)
    adam = torch.optim.AdamW([{"params": [p for p in others if p.ndim > 1], "weight_decay": options.weight_decay},
                              {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0}],
                             lr=options.lr, betas=(0.9, 0.95), fused=device.type == "cuda")
    started = time.time()
    if not options.no_compile and device.type == "cuda":
        torch._dynamo.config.recompile_limit = 64
        for layer in model.layers:
            layer.compile(dynamic=False)
        model.cross_entropy = torch.compile(model.cross_entropy, dynamic=False)
        for model.quantized in (True, False):  # compile both before the clock starts
            loss, balance, z, _ = model(*train.batch(options.batch, options.length))
            (loss.mean() + balance + z).backward()
            evaluate(model, val, options.length, options.batch)
        model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
    print(f"compiled in {time.time() - started:.0f} s", flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    log = open(options.out / "log.jsonl", "w")
    started, step, progress, report_at, recent = time.time(), 0, 0.0, 0.0, []
    num_loops = round(options.batch * options.loop_share)
    while progress < 1:
        model.quantized = progress >= options.quantized_from
        lr = options.lr * min(1, (step + 1) / WARMUP_STEPS) * max(0.0, 1 - progress)
        ids, targets = train.batch(options.batch, options.length)
        if num_loops:
            looped, earlier, repeat = loops(torch.cat([ids[:num_loops], targets[:num_loops, -1:]], 1), train.generator)
            ids[:num_loops], targets[:num_loops] = looped[:, :-1], looped[:, 1:]
        losses, balance, z, _ = model(ids, targets)
        loss = losses[num_loops:].mean()
        recent.append(loss.detach())
        if num_loops:
            loss = loss + loop_loss(losses[:num_loops], earlier, repeat, options.loop_decay)
        (loss + BALANCE_COEFFICIENT * balance + Z_COEFFICIENT * z).backward()
        muon.step(lr)
        for group in adam.param_groups:
            group["lr"] = lr
        adam.step()
        adam.zero_grad(set_to_none=True)
        step += 1
        if step % 20 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.time() - started
        progress = step / options.steps if options.steps else seconds / (60 * options.minutes)
        if progress >= report_at or progress >= 1:
            report_at += 0.05
            val_loss, loads = evaluate(model, val, options.length, options.batch)
            entropy = -(loads / loads.sum(-1, keepdim=True) * (loads / loads.sum(-1, keepdim=True)).clamp_min(1e-9).log()).sum(-1)
            row = {"step": step, "seconds": round(seconds, 1), "tokens_m": round(step * options.batch * options.length / 1e6, 1),
                   "passes": round(train.passes, 2), "train_loss": round(torch.stack(recent).mean().item(), 4),
                   "val_loss": round(val_loss, 4), "quantized": model.quantized, "balance": round(balance.item(), 3),
                   "load_entropy_min": round(entropy.min().item() / math.log(model.config.num_experts), 3),
                   "load_max": round(loads.max().item(), 3), "load_min": round(loads.min().item(), 3)}
            recent = []
            print(json.dumps(row), flush=True)
            log.write(json.dumps(row) + "\n")
            log.flush()
    save(model, options.out)
    final = {}
    for model.quantized in (False, True):
        final["quantized" if model.quantized else "bf16"] = round(evaluate(model, val, options.length, options.batch)[0], 4)
    print("validation loss", final, flush=True)
    log.write(json.dumps({"final_val_loss": final, "expert_load": [[round(v, 3) for v in row] for row in loads.tolist()]}) + "\n")

    for layer in model.layers:
        layer._compiled_call_impl = None
    print(f"repeated 8-grams in greedy text {loop_rate(model, val):.3f}", flush=True)
    tokenizer_file = options.work / "tokenizer" / "tokenizer.json"
    if tokenizer_file.exists():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        for prompt in PROMPTS:
            ids = greedy(model, tokenizer.encode(prompt, add_special_tokens=False).ids, 96)
            print("-" * 80 + "\n" + tokenizer.decode(ids, skip_special_tokens=False), flush=True)


if __name__ == "__main__":
    main()

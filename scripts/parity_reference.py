"""Compare zmlx's greedy tokens with mlx-lm's, exactly.

mlx-lm on the official CPU wheel is the reference. Each case is a qwen3_moe checkpoint: either
built here (random but lively weights, written in mlx-community layout by mlx-lm's own code) or
an existing folder. For each prompt the reference ids and the margin between the best two
logits are recorded, then `zmlx generate` runs patched and unpatched on the same folder.

Run it through scripts/parity, which prepares the interpreter.
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import utils as lm_utils
from mlx_lm.generate import generate_step
from mlx_lm.models import qwen3_moe

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}

# Prompt lengths: one token (decode only), a few, past the 64 routed entries where mlx-lm sorts
# tokens by expert.
DEFAULT_PROMPTS = [1, 3, 11, 40]


@dataclass
class Case:
    """One random checkpoint and the prompts it is asked about."""

    name: str
    dtype: str = "bf16"
    bits: int | None = 4  # None: leave the weights unquantised
    group_size: int = 64
    mode: str = "affine"
    overrides: dict = field(default_factory=dict)  # path suffix -> quantisation, or False
    config: dict = field(default_factory=dict)
    prompts: list = field(default_factory=lambda: list(DEFAULT_PROMPTS))
    max_tokens: int = 64
    shard_bytes: int | None = None
    seed: int = 0


BASE_CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
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
]


def wide_cases(count, seed):
    """A seeded sweep over what the three fixed cases do not reach."""
    rng = random.Random(seed)
    quants = [(b, g, "affine") for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128)]
    quants += [(4, 32, "mxfp4"), (8, 32, "mxfp8"), (4, 16, "nvfp4"), (None, 64, "affine")]
    rng.shuffle(quants)
    cases = []
    for i in range(count):
        bits, group_size, mode = quants[i % len(quants)]
        step = max(group_size, 32)
        heads, kv_heads = rng.choice([(4, 2), (3, 1), (5, 5), (8, 2)])
        head_dim = rng.choice([32, 64])
        while (heads * head_dim) % step:
            head_dim *= 2
        layers = rng.randint(1, 4)
        experts = rng.choice([3, 8, 20, 64])
        config = {
            "hidden_size": step * rng.randint(1, 3 if step > 64 else 5),
            "num_hidden_layers": layers,
            "intermediate_size": step * rng.randint(1, 3),
            "moe_intermediate_size": step * rng.randint(1, 3),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "num_experts": experts,
            "num_experts_per_tok": rng.randint(1, min(8, experts)),
            "decoder_sparse_step": rng.choice([1, 1, 2]),
            "mlp_only_layers": rng.sample(range(layers), rng.randint(0, layers - 1)),
            "norm_topk_prob": rng.random() < 0.5,
            "tie_word_embeddings": rng.random() < 0.5,
            "vocab_size": rng.randint(100, 1500),
            "rope_theta": rng.choice([1e4, 5e5, 1e6, 1e7]),
            "rms_norm_eps": rng.choice([1e-5, 1e-6]),
        }
        dtype = rng.choice(list(DTYPES))
        label = "dense" if bits is None else f"{mode}-{bits}bit-gs{group_size}"
        cases.append(
            Case(
                name=f"wide{i:03}-{dtype}-{label}",
                dtype=dtype,
                bits=bits,
                group_size=group_size,
                mode=mode,
                config=config,
                prompts=[1, rng.randint(2, 12), rng.randint(20, 90)],
                max_tokens=32,
                shard_bytes=rng.choice([None, 1 << 16]),
                seed=seed * 1000 + i,
            )
        )
    return cases


def lively(model, seed):
    """Random weights whose activations stay finite, whose routing spreads over the experts and
    whose greedy output does not collapse onto one token: unit-gain matrices (fan-in scaling),
    norms around one, sharper query norms so that attention is not uniform, sharper routing, and
    embeddings small enough that a tied head does not just repeat the last token."""
    key = mx.random.key(seed)
    tied = model.args.tie_word_embeddings
    out = []
    for path, value in tree_flatten(model.parameters()):
        key, sub = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=sub)
        if path.endswith("norm.weight"):
            gain = 2.0 if path.endswith("q_norm.weight") else 1.0
            value = gain * (1.0 + 0.2 * noise)
        elif path.endswith("embed_tokens.weight"):
            value = noise * (2.5 / value.shape[-1] ** 0.5 if tied else 1.0)
        elif path.endswith("lm_head.weight"):
            value = noise * (3.0 / value.shape[-1] ** 0.5)
        elif path.endswith("mlp.gate.weight"):
            value = noise * (1.5 / value.shape[-1] ** 0.5)
        elif path.endswith("down_proj.weight"):
            value = noise * (2.5 / value.shape[-1] ** 0.5)
        else:
            value = noise / value.shape[-1] ** 0.5
        out.append((path, value))
    return tree_unflatten(out)


def build(case, folder):
    """Write the case's checkpoint as mlx_lm.convert would."""
    config = {**BASE_CONFIG, **case.config}
    model = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(config))
    model.update(lively(model, case.seed))
    model.set_dtype(DTYPES[case.dtype])
    config["torch_dtype"] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[case.dtype]
    if case.bits is not None:

        def predicate(path, module):
            for suffix, choice in case.overrides.items():
                if path.endswith(suffix):
                    return choice
            # Qwen3's predicate quantises routers at 8 bits with groups of 64.
            choice = model.quant_predicate(path, module)
            size = choice["group_size"] if isinstance(choice, dict) else case.group_size
            return choice if module.weight.shape[-1] % size == 0 else False

        with contextlib.redirect_stdout(io.StringIO()):
            model, config = lm_utils.quantize_model(
                model, config, case.group_size, case.bits, case.mode, quant_predicate=predicate
            )
    folder.mkdir(parents=True)
    original = lm_utils.make_shards
    if case.shard_bytes:
        lm_utils.make_shards = lambda weights: shards(weights, case.shard_bytes)
    try:
        lm_utils.save_model(folder, model)
    finally:
        lm_utils.make_shards = original
    lm_utils.save_config(config, folder / "config.json")


def shards(weights, limit):
    """mlx-lm's make_shards with a limit small enough to matter here."""
    out, size = [{}], 0
    for name, value in weights.items():
        if out[-1] and size + value.nbytes > limit:
            out.append({})
            size = 0
        out[-1][name] = value
        size += value.nbytes
    return out


def reference(model, prompt, max_tokens):
    """Greedy ids and, for each, the logit margin of the winner over the runner-up."""
    ids, margins = [], []
    for token, logprobs in generate_step(mx.array(prompt), model, max_tokens=max_tokens):
        top = mx.topk(logprobs.astype(mx.float32), 2).tolist()
        ids.append(token)
        margins.append(abs(top[0] - top[1]))
    return ids, margins


def text_prompts(folder):
    """Chat-templated prompts for a model that ships a tokenizer: (text, ids by transformers)."""
    texts = [
        "What does this do?",
        "Explain how to install a package, step by step.",
        "  Leading spaces, ünïcödé, 漢字 and an emoji 🙂\n\nand a blank line.",
    ]
    _, tokenizer = lm_utils.load(folder, lazy=True)
    for text in texts:
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        yield text, list(ids)


def zmlx_generate(binary, folder, flags):
    """Run `zmlx generate`; its JSON events and the last line's summary."""
    command = [binary, "generate", str(folder), *flags, "--ignore-eos", "--json"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        shown = run.stderr.strip().splitlines()[-4:]
        raise RuntimeError("\n    ".join([f"exit code {run.returncode}", *shown]))
    events = [json.loads(line) for line in run.stdout.splitlines()]
    if not events or events[-1].get("type") != "summary":
        raise RuntimeError("the last line is no summary")
    return events, events[-1]


def linked_mlx(binary):
    """The version of MLX that a zmlx runs on."""
    run = subprocess.run([binary, "doctor", "--json"], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])["mlx_version"]


def first_difference(expected, got):
    for i, (a, b) in enumerate(zip(expected, got)):
        if a != b:
            return i
    return None if len(expected) == len(got) else min(len(expected), len(got))


class Comparison:
    """Counts what was compared and prints differences as they are found."""

    def __init__(self):
        self.tokens = 0
        self.failures = 0

    def check(self, label, expected, margins, got):
        self.tokens += len(expected)
        at = first_difference(expected, got)
        if at is None:
            return
        self.failures += 1
        want = expected[at] if at < len(expected) else None
        have = got[at] if at < len(got) else None
        margin = f"{margins[at]:.3g}" if at < len(margins) else "-"
        print(f"  DIFFERS {label}: position {at}: mlx-lm {want}, zmlx {have}, margin {margin}")

    def fail(self, label, error):
        self.failures += 1
        print(f"  FAILED {label}: {error}")


VARIANTS = [("patched", ["--patch", "auto"]), ("unpatched", ["--patch", "off"])]


def compare_ids(args, folder, prompts, max_tokens, comparison):
    """Reference and zmlx on token prompts. Returns figures for the report line."""
    with contextlib.redirect_stdout(io.StringIO()):
        model, _ = lm_utils.load_model(folder)
    distinct, margins_seen, modules = 0, [], set()
    for prompt in prompts:
        ids, margins = reference(model, prompt, max_tokens)
        assert all(math.isfinite(m) for m in margins), f"{folder.name}: logits are not finite"
        distinct = max(distinct, len(set(ids)))
        margins_seen += margins
        if args.reference_only:
            continue
        flags = ["--prompt-tokens", ",".join(map(str, prompt)), "--no-chat-template"]
        flags += ["--max-tokens", str(max_tokens)]
        for name, extra in VARIANTS:
            label = f"{folder.name}, {len(prompt)} prompt tokens, {name}"
            try:
                _, summary = zmlx_generate(args.zmlx, folder, flags + extra)
            except (RuntimeError, json.JSONDecodeError) as error:
                comparison.fail(label, error)
                continue
            modules.add((name, summary["patched_modules"]))
            comparison.check(label, ids, margins, summary["token_ids"])
    return distinct, margins_seen, modules


def compare_text(args, folder, max_tokens, comparison):
    """Text through the chat template: the prompt's ids and the answer's ids."""
    with contextlib.redirect_stdout(io.StringIO()):
        model, _ = lm_utils.load_model(folder)
    for text, prompt in text_prompts(folder):
        ids, margins = reference(model, prompt, max_tokens)
        if args.reference_only:
            continue
        label = f"{folder.name}, text {text[:20]!r}"
        try:
            flags = ["--prompt", text, "--max-tokens", str(max_tokens)]
            events, summary = zmlx_generate(args.zmlx, folder, flags)
        except (RuntimeError, json.JSONDecodeError) as error:
            comparison.fail(label, error)
            continue
        templated = next((e["prompt_token_ids"] for e in events if "prompt_token_ids" in e), None)
        if templated is not None:
            comparison.check(f"{label}, prompt ids", prompt, [], templated)
        elif summary["prompt_tokens"] != len(prompt):
            have = summary["prompt_tokens"]
            comparison.fail(label, f"{have} prompt tokens, transformers makes {len(prompt)}")
        comparison.check(label, ids, margins, summary["token_ids"])


def random_prompt(rng, length, vocab_size):
    return [rng.randrange(vocab_size) for _ in range(length)]


def run_case(args, case, root, comparison):
    folder = root / case.name
    build(case, folder)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    rng = random.Random(case.seed)
    prompts = [random_prompt(rng, n, vocab_size) for n in case.prompts]
    return folder, compare_ids(args, folder, prompts, case.max_tokens, comparison)


def run_folder(args, folder, comparison):
    """A checkpoint that exists already; with a tokenizer, text prompts too."""
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    rng = random.Random(5)
    longer = [random_prompt(rng, n, vocab_size) for n in (1, 17, 60)]
    distinct, margins, modules = compare_ids(args, folder, [[1, 5, 9]], 64, comparison)
    more = compare_ids(args, folder, longer, 24, comparison)
    if (folder / "tokenizer.json").exists():
        compare_text(args, folder, 32, comparison)
    return max(distinct, more[0]), margins + more[1], modules | more[2]


def report(name, started, figures):
    distinct, margins, modules = figures
    margins = sorted(margins)
    patched = ", ".join(f"{n} {label}" for label, n in sorted(modules))
    print(
        f"{name}: {len(margins)} reference tokens, up to {distinct} distinct in a run, "
        f"margin median {margins[len(margins) // 2]:.3g} least {margins[0]:.3g}"
        + (f", modules: {patched}" if patched else "")
        + f" ({time.perf_counter() - started:.1f} s)",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(prog="scripts/parity", description=__doc__)
    parser.add_argument("--zmlx", help="binary to compare")
    parser.add_argument("--model", action="append", default=[], type=Path, help="existing folder")
    parser.add_argument("--wide", nargs="?", type=int, const=44, default=0, metavar="COUNT")
    parser.add_argument("--seed", type=int, default=1, help="seed of the wide sweep")
    parser.add_argument("--only", default="", help="run cases whose name contains this")
    parser.add_argument("--keep", type=Path, help="write the random checkpoints here and keep them")
    parser.add_argument("--reference-only", action="store_true", help="do not run zmlx")
    args = parser.parse_args()
    if not args.reference_only and not args.zmlx:
        parser.error("--zmlx is needed unless --reference-only")

    if args.zmlx and (linked := linked_mlx(args.zmlx)) != mx.__version__:
        parser.error(f"{args.zmlx} is linked with MLX {linked}, not {mx.__version__}: take --mlx {linked}")

    mx.set_default_device(mx.cpu)
    cases = CASES + wide_cases(args.wide, args.seed)
    cases = [c for c in cases if args.only in c.name]
    folders = [f for f in args.model if args.only in f.name]
    root = args.keep or Path(tempfile.mkdtemp(prefix="zmlx-parity-"))
    comparison = Comparison()
    try:
        for case in cases:
            started = time.perf_counter()
            folder, figures = run_case(args, case, root, comparison)
            if case in CASES and figures[0] < 16:
                comparison.fail(case.name, f"only {figures[0]} distinct reference tokens")
            report(case.name, started, figures)
            if not args.keep:
                shutil.rmtree(folder)
        for folder in folders:
            started = time.perf_counter()
            report(folder.name, started, run_folder(args, folder, comparison))
    finally:
        if not args.keep:
            shutil.rmtree(root, ignore_errors=True)
    if args.reference_only:
        return 0
    verdict = "identical" if comparison.failures == 0 else f"{comparison.failures} differences"
    print(f"parity: {verdict}, {comparison.tokens} tokens compared, mlx {mx.__version__}")
    return 0 if comparison.failures == 0 and comparison.tokens > 0 else 1


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())

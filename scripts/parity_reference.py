"""Compare zmlx's greedy tokens with mlx-lm's, exactly.

mlx-lm on the official CPU wheel is the reference. Each case is a checkpoint: either built here from
the cases of its family in parity_cases/ (random but lively weights, written in mlx-community layout
by mlx-lm's own code) or an existing folder. For each prompt the reference ids and the margin between the best two
logits are recorded, then `zmlx generate` runs patched and unpatched on the same folder.

Run it through scripts/parity, which prepares the interpreter.
"""

import argparse
import contextlib
import importlib
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
from pathlib import Path

import mlx.core as mx
import parity_cache
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import utils as lm_utils
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.generate import generate_step
from parity_case import Case

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


def families():
    """The modules of scripts/parity_cases by name, which is the model_type."""
    folder = Path(__file__).parent / "parity_cases"
    names = sorted(path.stem for path in folder.glob("*.py"))
    return {name: importlib.import_module(f"parity_cases.{name}") for name in names}


FAMILIES = families()
# How families say how many experts there are.
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
CASES = [(name, case) for name, family in FAMILIES.items() for case in family.CASES]


def wide_cases(count, seed):
    """A seeded sweep over what the fixed cases do not reach, the families in turn."""
    rng = random.Random(seed)
    groups = [32, 64, 128]
    kinds = [(bits, rng.choice(groups), "affine") for bits in (2, 3, 4, 5, 6, 8)]
    kinds += [(4, 32, "mxfp4"), (8, 32, "mxfp8"), (4, 16, "nvfp4"), (None, 64, "affine")]
    rest = [(bits, group, "affine") for bits in (2, 3, 4, 5, 6, 8) for group in groups]
    rng.shuffle(kinds)
    rest = [quant for quant in rest if quant not in kinds]
    names = list(FAMILIES)
    cases = []
    for i in range(count):
        model_type = names[i % len(names)]
        # a family meets every kind of quantisation before one of them comes with another group size
        at = (i // len(names)) % (len(kinds) + len(rest))
        quants, at = (kinds, at) if at < len(kinds) else (rest, at - len(kinds))
        bits, group_size, mode = quants[(at + i % len(names)) % len(quants)]
        config = FAMILIES[model_type].wide(rng, max(group_size, 32))
        dtype = rng.choice(["bf16", "bf16", "f32", "f16"])
        if bits is None and any(key in config for key in EXPERT_COUNTS):
            dtype = "f32"  # stock multiplies dense stacks of experts in no other type on a CPU
        label = "dense" if bits is None else f"{mode}-{bits}bit-gs{group_size}"
        case = Case(
            name=f"wide{i:03}-{model_type}-{dtype}-{label}",
            dtype=dtype,
            bits=bits,
            group_size=group_size,
            mode=mode,
            config=config,
            # f16 is the slowest type in stock MLX on x86
            prompts=[1, rng.randint(2, 12), rng.randint(20, 30 if dtype == "f16" else 90)],
            max_tokens=16 if dtype == "f16" else 32,
            shard_bytes=rng.choice([None, 1 << 16]),
            seed=seed * 1000 + i,
        )
        cases.append((model_type, case))
    return cases


# What families call their routers, and what only shifts their choice.
ROUTERS = ("gate.weight", "router.weight")
CHOICE_BIASES = ("e_score_correction_bias", "expert_bias")


def lively(path, noise, tied):
    """A random weight such that activations stay finite, routing spreads over the experts and
    greedy output does not collapse onto one token: unit-gain matrices (fan-in scaling), norms
    around one, sharper query norms so that attention is not uniform, sharper routing, and
    embeddings small enough that a tied head does not just repeat the last token."""
    module = path.rsplit(".", 2)[-2] if path.count(".") else ""
    unit = noise / noise.shape[-1] ** 0.5
    if path.endswith("norm.weight"):
        return (2.0 if module == "q_norm" else 1.0) * (1.0 + 0.2 * noise)
    if path.endswith("embed_tokens.weight"):
        return 2.5 * unit if tied else noise
    if path.endswith("lm_head.weight"):
        return 3.0 * unit
    if path.endswith(tuple("." + name for name in ROUTERS)):
        return 1.5 * unit
    if path.endswith("down_proj.weight"):
        return 2.5 * unit
    if path.endswith(CHOICE_BIASES):
        return 0.1 * noise
    if path.endswith(".bias"):
        return 0.2 * noise
    return unit


def lively_weights(model, family, seed):
    """All weights of a model anew. A family's own `lively(path, noise)` goes first; where it has
    nothing to say it returns None."""
    key = mx.random.key(seed)
    names = [path for path, _ in tree_flatten(model.parameters())]
    tied = not any(path.endswith("lm_head.weight") for path in names)
    own = getattr(family, "lively", lambda path, noise: None)
    out = []
    for path, value in tree_flatten(model.parameters()):
        key, sub = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=sub)
        chosen = own(path, noise)
        out.append((path, lively(path, noise, tied) if chosen is None else chosen))
    return tree_unflatten(out)


def random_model(model_type, changes, dtype, seed):
    """A family's model with lively weights, and its configuration: the family's own with `changes`."""
    family = FAMILIES[model_type]
    config = {"model_type": model_type, **family.BASE_CONFIG, **changes}
    # a family that wraps its fields, say under text_config, does so in `wrap`
    config = getattr(family, "wrap", lambda config: config)(config)
    model_class, args_class = lm_utils._get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.update(lively_weights(model, family, seed))
    cast(model, DTYPES[dtype])
    config["torch_dtype"] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]
    return model, config


def build(model_type, case, folder):
    """Write the case's checkpoint as mlx_lm.convert would."""
    model, config = random_model(model_type, case.config, case.dtype, case.seed)
    if case.bits is not None:
        recipe = case.recipe and mixed_quant_predicate_builder(case.recipe, model, case.group_size)

        def predicate(path, module):
            for suffix, choice in case.overrides.items():
                if path.endswith(suffix):
                    return choice
            if recipe:
                return recipe(path, module)
            # Families with routers quantise those at 8 bits with groups of 64.
            own = getattr(model, "quant_predicate", None) or (lambda path, module: True)
            choice = own(path, module)
            size = choice["group_size"] if isinstance(choice, dict) else case.group_size
            return choice if module.weight.shape[-1] % size == 0 else False

        with contextlib.redirect_stdout(io.StringIO()):
            model, config = lm_utils.quantize_model(
                model, config, case.group_size, case.bits, case.mode, quant_predicate=predicate
            )
    folder.mkdir(parents=True)
    original = lm_utils.make_shards

    def make_shards(weights):
        if case.published:
            weights = case.published(weights, config)
        return shards(weights, case.shard_bytes) if case.shard_bytes else original(weights)

    lm_utils.make_shards = make_shards
    try:
        lm_utils.save_model(folder, model)
    finally:
        lm_utils.make_shards = original
    lm_utils.save_config(config, folder / "config.json")


def cast(model, dtype):
    """The weights in a type, but for those that mlx_lm.convert leaves in theirs."""
    wanted = getattr(model, "cast_predicate", lambda path: True)
    weights = tree_flatten(model.parameters())
    model.load_weights([(k, v.astype(dtype) if wanted(k) else v) for k, v in weights])


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


def read_vocab_size(folder):
    config = json.loads((folder / "config.json").read_text())
    return config["vocab_size"] if "vocab_size" in config else config["text_config"]["vocab_size"]


def random_prompt(rng, length, vocab_size):
    return [rng.randrange(vocab_size) for _ in range(length)]


def run_case(args, model_type, case, root, comparison):
    folder = root / case.name
    build(model_type, case, folder)
    vocab_size = read_vocab_size(folder)
    rng = random.Random(case.seed)
    prompts = [random_prompt(rng, n, vocab_size) for n in case.prompts]
    return folder, compare_ids(args, folder, prompts, case.max_tokens, comparison)


def run_caches(args, model_type, case, folder, comparison):
    """Packed caches and prompt caches in files, on a case's checkpoint."""
    with contextlib.redirect_stdout(io.StringIO()):
        model, config = lm_utils.load_model(folder)
    vocab_size = config.get("vocab_size") or config["text_config"]["vocab_size"]
    prompt = random_prompt(random.Random(case.seed), parity_cache.PROMPT_TOKENS, vocab_size)
    family = FAMILIES[model_type]
    parity_cache.compare(family, model, folder, prompt, comparison, zmlx_generate, args.zmlx)


def run_folder(args, folder, comparison):
    """A checkpoint that exists already; with a tokenizer, text prompts too."""
    vocab_size = read_vocab_size(folder)
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


def unclaimed(jobs, claims):
    """Of several runs over the same jobs, each is given those that no other has begun."""
    for number, job in enumerate(jobs):
        try:
            (claims / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield job


def main():
    parser = argparse.ArgumentParser(prog="scripts/parity", description=__doc__)
    parser.add_argument("--zmlx", help="binary to compare")
    parser.add_argument("--model", action="append", default=[], type=Path, help="existing folder")
    parser.add_argument("--wide", nargs="?", type=int, const=44, default=0, metavar="COUNT")
    parser.add_argument("--seed", type=int, default=1, help="seed of the wide sweep")
    parser.add_argument("--only", default="", help="run cases whose name contains this")
    parser.add_argument("--claims", type=Path, metavar="DIR", help="leave out what others with this folder do")
    parser.add_argument("--keep", type=Path, help="write the random checkpoints here and keep them")
    parser.add_argument("--reference-only", action="store_true", help="do not run zmlx")
    args = parser.parse_args()
    if not args.reference_only and not args.zmlx:
        parser.error("--zmlx is needed unless --reference-only")

    if args.zmlx and (linked := linked_mlx(args.zmlx)) != mx.__version__:
        parser.error(f"{args.zmlx} is linked with MLX {linked}, not {mx.__version__}: take --mlx {linked}")

    mx.set_default_device(mx.cpu)
    cases = CASES + wide_cases(args.wide, args.seed)
    cases = [(m, c) for m, c in cases if args.only in c.name]
    folders = [f for f in args.model if args.only in f.name]
    # folders take longest, and come first, so that runs that share the work end together
    jobs = [(None, f) for f in folders] + cases
    root = args.keep or Path(tempfile.mkdtemp(prefix="zmlx-parity-"))
    if args.claims:
        args.claims.mkdir(parents=True, exist_ok=True)
    comparison = Comparison()
    try:
        for model_type, case in unclaimed(jobs, args.claims) if args.claims else jobs:
            started = time.perf_counter()
            if model_type is None:
                report(case.name, started, run_folder(args, case, comparison))
                continue
            folder, figures = run_case(args, model_type, case, root, comparison)
            if (model_type, case) in CASES and figures[0] < 16:
                comparison.fail(case.name, f"only {figures[0]} distinct reference tokens")
            first = next(c for m, c in CASES if m == model_type)
            if case is first and not args.reference_only:
                run_caches(args, model_type, case, folder, comparison)
            report(case.name, started, figures)
            if not args.keep:
                shutil.rmtree(folder)
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

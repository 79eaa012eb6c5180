"""Compare `zmlx convert` with mlx_lm.convert, byte for byte.

The source is a random checkpoint with the names and shapes that Hugging Face has: mlx-lm's own parameters, taken back
by the `hugging_face` of the family in parity_cases/. Both convert it with the same options.

Run it through scripts/convert_parity, which prepares the interpreter.
"""

import argparse
import contextlib
import importlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm import utils as lm_utils
from parity_reference import FAMILIES, random_model, shards

# The package has a function of that name, which hides the module.
lm_convert = importlib.import_module("mlx_lm.convert")

# Small enough that every result has several files.
SHARD_BYTES = 100_000

# What mlx_lm.convert is told, and what zmlx is told for the same.
OPTIONS = [
    ("dense", {}, []),
    ("dense-f16", {"dtype": "float16"}, ["--dtype", "float16"]),
    ("q", {"quantize": True}, ["-q"]),
    ("q-f32", {"quantize": True, "dtype": "float32"}, ["-q", "--dtype", "float32"]),
]
for bits, group_size in [(2, 32), (3, 64), (5, 32), (6, 128), (8, 64)]:
    told = {"quantize": True, "q_bits": bits, "q_group_size": group_size}
    OPTIONS.append(
        (f"{bits}bit-gs{group_size}", told, ["--bits", str(bits), "--group-size", str(group_size)])
    )
for mode in ["mxfp4", "mxfp8", "nvfp4"]:
    OPTIONS.append((mode, {"quantize": True, "q_mode": mode}, ["--mode", mode]))
for recipe in lm_convert.QUANT_RECIPES:
    told = {"quantize": True, "quant_predicate": recipe}
    OPTIONS.append((recipe, told, ["--recipe", recipe]))
OPTIONS.append(
    (
        "mixed_4_6-gs32",
        {"quantize": True, "quant_predicate": "mixed_4_6", "q_group_size": 32},
        ["--recipe", "mixed_4_6", "--group-size", "32"],
    )
)


class NoTokenizer:
    """Tokenizer files are not what is compared."""

    def save_pretrained(self, folder):
        pass


def load_without_tokenizer(path, **_):
    model, config = lm_utils.load_model(Path(path), lazy=True)
    return model, NoTokenizer(), config


lm_convert.load = load_without_tokenizer
lm_utils.make_shards = lambda weights: shards(weights, SHARD_BYTES)
lm_utils.create_model_card = lambda *_: None


def source(model_type, folder, seed):
    """A checkpoint as it would lie on the Hub."""
    family = FAMILIES[model_type]
    # where the common configuration alone makes no model, a family says in `CONVERT` what it lacks (None: not converted yet)
    model, config = random_model(model_type, getattr(family, "CONVERT", {}), "bf16", seed)
    weights = dict(tree_flatten(model.parameters()))
    # what mlx-lm's own layout differs from the published one in, a family undoes in `hugging_face`
    weights = getattr(family, "hugging_face", lambda weights, config: weights)(weights, config)
    weights = dict(sorted(weights.items()))
    folder.mkdir(parents=True)
    parts = shards(weights, 3 * SHARD_BYTES)
    index = {}
    for i, part in enumerate(parts):
        name = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        mx.save_safetensors(str(folder / name), part, metadata={"format": "pt"})
        index |= {tensor: name for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')


def tensors(folder):
    """Every tensor of a checkpoint: the file that holds it, its type, shape and bytes."""
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        for name, array in mx.load(str(path)).items():
            found[name] = (path.name, str(array.dtype), array.shape, array)
    return found


def differences(expected, got):
    """What differs between two checkpoints, in words."""
    ours, theirs = tensors(got), tensors(expected)
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in ours or name not in theirs:
            yield f"`{name}` is only in {'mlx-lm' if name in theirs else 'zmlx'}'s"
            continue
        (*facts, array), (*our_facts, our_array) = theirs[name], ours[name]
        if facts[1:] != our_facts[1:]:
            yield f"`{name}`: mlx-lm {facts}, zmlx {our_facts}"
            continue
        if not mx.array_equal(array.view(mx.uint8), our_array.view(mx.uint8)):
            yield f"`{name}`: other bytes"
        if facts[0] != our_facts[0]:
            yield f"`{name}`: in {facts[0]} by mlx-lm, in {our_facts[0]} by zmlx"
    for name in ["config.json", "model.safetensors.index.json"]:
        if (expected / name).read_text() != (got / name).read_text():
            yield f"{name}: {first_line(expected / name, got / name)}"


def first_line(expected, got):
    """The first line that differs between two files."""
    lines = [path.read_text().splitlines() + ["the end"] for path in (expected, got)]
    pair = next(((a, b) for a, b in zip(*lines) if a != b), ("", ""))
    return f"mlx-lm `{pair[0].strip()}`, zmlx `{pair[1].strip()}`"


def compare(args, folder, options, root):
    """Both conversions with the same options; what differs."""
    name, told, flags = options
    expected, got = root / f"{name}-mlx-lm", root / f"{name}-zmlx"
    reason = None
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            lm_convert.convert(str(folder), str(expected), **told)
        except ValueError as error:
            reason = str(error).splitlines()[0]
    command = [args.zmlx, "convert", str(folder), "--out", str(got), *flags]
    command += ["--max-shard-size", str(SHARD_BYTES)]
    run = subprocess.run(command, capture_output=True, text=True)
    if reason is not None:
        return [] if run.returncode == 2 else [f"mlx-lm refuses: {reason}"]
    if run.returncode != 0:
        return [f"exit code {run.returncode}: {run.stderr.strip()}"]
    return list(differences(expected, got))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--zmlx", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    root = args.keep or Path(tempfile.mkdtemp(prefix="zmlx-convert-"))
    compared = failures = 0
    try:
        for seed, model_type in enumerate(FAMILIES):
            if args.only not in model_type or getattr(FAMILIES[model_type], "CONVERT", {}) is None:
                continue
            started = time.perf_counter()
            folder = root / model_type
            source(model_type, folder, seed)
            for options in OPTIONS:
                found = compare(args, folder, options, root)
                for side in ("mlx-lm", "zmlx"):
                    shutil.rmtree(root / f"{options[0]}-{side}", ignore_errors=True)
                compared += 1
                failures += bool(found)
                for line in found[:6]:
                    print(f"  DIFFERS {model_type} {options[0]}: {line}")
            print(f"{model_type:<20} {len(OPTIONS)} conversions, {time.perf_counter() - started:.1f} s")
    finally:
        if not args.keep:
            shutil.rmtree(root, ignore_errors=True)
    verdict = "identical" if failures == 0 else f"{failures} differ"
    print(f"convert: {compared} conversions, {verdict}, mlx {mx.__version__}")
    return 0 if failures == 0 and compared > 0 else 1


if __name__ == "__main__":
    sys.exit(main())

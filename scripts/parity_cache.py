"""What scripts/parity compares of caches: packed keys and values, and prompt caches in files, both ways."""

import subprocess

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

# From the 21st token on, so that a cache is packed while it grows.
PACKED = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 20}
PACKED_FLAGS = ["--kv-bits", "8", "--kv-group-size", "32", "--quantized-kv-start", "20"]
PROMPT_TOKENS = 27
MAX_TOKENS = 24
# How many of the prompt's tokens are read before the file is written.
HELD = 17


def listed(tokens):
    return ",".join(map(str, tokens))


def greedy(model, prompt, **options):
    steps = generate_step(mx.array(prompt), model, max_tokens=MAX_TOKENS, **options)
    return [int(token) for token, _ in steps]


def compare(family, model, folder, prompt, comparison, generate, zmlx):
    """Tokens over packed caches, then over a file of mlx-lm's and one of zmlx's.

    A family whose caches mlx-lm cannot pack says KV_PACKED = False.
    """
    variants = [("prompt cache", {}, [])]
    if getattr(family, "KV_PACKED", True):
        ids = greedy(model, prompt, **PACKED)
        flags = ["--prompt-tokens", listed(prompt), "--max-tokens", str(MAX_TOKENS), *PACKED_FLAGS]
        for patch in ("auto", "off"):
            label = f"{folder.name}, packed keys and values, patch {patch}"
            try:
                _, summary = generate(zmlx, folder, [*flags, "--patch", patch])
                comparison.check(label, ids, [], summary["token_ids"])
            except RuntimeError as error:
                comparison.fail(label, error)
        start = {"quantized_kv_start": 5}
        variants.append(
            (
                "packed prompt cache",
                {**PACKED, **start},
                [*PACKED_FLAGS[:4], "--quantized-kv-start", "5"],
            )
        )
    for name, options, flags in variants:
        label = f"{folder.name}, {name}"
        try:
            compare_files(model, folder, prompt, label, options, flags, comparison, generate, zmlx)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            comparison.fail(label, getattr(error, "stderr", None) or error)


def compare_files(model, folder, prompt, label, options, flags, comparison, generate, zmlx):
    held, rest = prompt[:HELD], prompt[HELD:]
    of = "packed" if flags else "plain"
    theirs, ours = (str(folder / f"{of}-{who}.safetensors") for who in ("mlx-lm", "zmlx"))
    cache = make_prompt_cache(model)
    list(generate_step(mx.array(held), model, max_tokens=0, prompt_cache=cache, **options))
    save_prompt_cache(theirs, cache, {"model": str(folder), "tokenizer_config": "{}"})
    command = [zmlx, "cache-prompt", str(folder), "--prompt-tokens", listed(held), *flags]
    command += ["--out", ours, "--json"]
    subprocess.run(command, capture_output=True, text=True, check=True)

    a, b = mx.load(theirs), mx.load(ours)
    if a.keys() != b.keys():
        raise RuntimeError(f"mlx-lm writes {sorted(a)}, zmlx {sorted(b)}")
    for name, array in a.items():
        same = array.dtype == b[name].dtype and array.shape == b[name].shape
        if not same or bytes(memoryview(array)) != bytes(memoryview(b[name])):
            raise RuntimeError(f"`{name}` differs between mlx-lm's file and zmlx's")

    ids = greedy(model, rest, prompt_cache=cache, **options)
    again = greedy(model, rest, prompt_cache=load_prompt_cache(ours), **options)
    comparison.check(f"{label}, zmlx's file in mlx-lm", ids, [], again)
    told = ["--prompt-tokens", listed(rest), "--max-tokens", str(MAX_TOKENS), *flags]
    told += ["--prompt-cache", theirs]
    _, summary = generate(zmlx, folder, told)
    comparison.check(f"{label}, mlx-lm's file in zmlx", ids, [], summary["token_ids"])

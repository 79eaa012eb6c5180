"""Runs cases with mlx-lm: one JSON request on a line of stdin, one JSON answer on a line of stdout."""

import json
import sys
import time
from pathlib import Path

try:
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model
except ImportError as error:
    hint = "install it, or set ZMLX_PYTHON to a Python that has it"
    print(json.dumps({"error": f"cannot import mlx-lm ({error}); {hint}"}), flush=True)
    sys.exit(1)

folder, device = sys.argv[1:3]
mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
model = load_model(Path(folder))[0]


def settings(variant):
    """Options of a variant that generate_step takes."""
    words = [word.partition("=") for word in variant["settings"].split(",")]
    known = {"kv-bits": "kv_bits", "kv-group-size": "kv_group_size", "quantized-kv-start": "quantized_kv_start"}
    return {known[name]: int(value) for name, _, value in words if name in known}


def run(variant, work):
    case, prompt = work["case"], work["rows"][0]
    kv = settings(variant)
    cache = make_prompt_cache(model)
    count = max(case["generate_tokens"], 1)
    if case["kind"] == "decode":
        count += 1
    if case["kind"] == "prefill" and case["depth"]:
        model(mx.array(prompt[: case["depth"]])[None], cache=cache)
        mx.eval([layer.state for layer in cache])
        prompt = prompt[case["depth"] :]
    mx.clear_cache()
    mx.reset_peak_memory()
    times, tokens = [time.perf_counter()], []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=count, prompt_cache=cache, **kv):
        tokens.append(int(token))
        times.append(time.perf_counter())
    first, last = times[1] - times[0], times[-1] - times[1]
    metrics = {"peak_memory_bytes": mx.get_peak_memory()}
    if case["kind"] != "decode":
        metrics |= {"ttft_ms": first * 1e3, "prompt_tok_per_s": len(prompt) / first}
    if len(tokens) > 1:
        metrics["decode_tok_per_s"] = (len(tokens) - 1) / last
    metrics = {name: float(f"{value:.6e}") for name, value in metrics.items()}
    return {"ran": {"metrics": metrics, "rows": [tokens]}}


for line in sys.stdin:
    request = json.loads(line)
    try:
        if "describe" in request:
            version = f"mlx-lm {mlx_lm.__version__} on mlx {mx.__version__}"
            answer = {"described": {**request["describe"], "engine_version": version}}
        else:
            answer = run(**request["run"])
    except Exception as error:  # whatever it is, it is the answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)

"""Greedy tokens of mlx-lm. Reads {model, prompts, max_tokens, device, kv}, prints {name, token_ids}."""

import json
import sys
from pathlib import Path

try:
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model
except ImportError as error:
    hint = "install it, or set ZMLX_PYTHON to a Python that has it"
    sys.exit(f"cannot import mlx-lm ({error}); {hint}")

request = json.load(sys.stdin)
mx.set_default_device(mx.gpu if request["device"] == "gpu" else mx.cpu)
loaded = load_model(Path(request["model"]))
model = loaded[0]
token_ids = []
for prompt in request["prompts"]:
    kv = request["kv"] or {}
    steps = generate_step(mx.array(prompt), model, max_tokens=request["max_tokens"], **kv)
    token_ids.append([int(token) for token, _ in steps])
name = f"mlx-lm {mlx_lm.__version__} on mlx {mx.__version__}"
print(json.dumps({"name": name, "token_ids": token_ids}))

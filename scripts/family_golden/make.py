"""Write crates/lm/src/models/golden/<model_type>.json: what mlx-lm's models say of tiny checkpoints.

    python scripts/family_golden/make.py [MODEL_TYPE...]

The checkpoints are random; `cargo run -p zmlx-lm --example draft` makes them, and the tests make the
same ones again, so that no weights are committed. Their configurations are `GOLDEN` of the family's file
in scripts/parity_cases. Needs mlx[cpu] and mlx-lm of the versions that scripts/parity installs; both are
recorded. --draft PATH takes the example as it was built.
"""

import argparse
import importlib
import json
import random
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
from mlx_lm import utils as lm_utils
from mlx_lm.models.cache import make_prompt_cache

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
SEED = 7
PROMPTS = [1, 9, 40]
GREEDY = 16


def say(model, tokens):
    """Logits after a prompt, and the greedy tokens that follow; the prompt's last token goes alone."""
    cache = make_prompt_cache(model)
    if len(tokens) > 1:
        mx.eval(model(mx.array([tokens[:-1]]), cache=cache))
    logits = model(mx.array([tokens[-1:]]), cache=cache)[0, -1]
    first, greedy = logits.tolist(), []
    while len(greedy) < GREEDY:
        greedy.append(mx.argmax(logits).item())
        logits = model(mx.array([greedy[-1:]]), cache=cache)[0, -1]
    return {"tokens": tokens, "logits": [float(f"{x:.7g}") for x in first], "greedy": greedy}


def golden(model_type, draft):
    family = importlib.import_module(f"parity_cases.{model_type}")
    config = {"model_type": model_type, **family.BASE_CONFIG, **family.GOLDEN}
    config = getattr(family, "wrap", lambda config: config)(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.json"
        path.write_text(json.dumps(config))
        subprocess.run([*draft, str(path), str(SEED), folder], check=True)
        model, _ = lm_utils.load_model(Path(folder))
    text = config.get("text_config", config)
    vocab_size = config.get("vocab_size", text.get("vocab_size"))
    rng = random.Random(SEED)
    prompts = [[rng.randrange(vocab_size) for _ in range(length)] for length in PROMPTS]
    fields = {
        "versions": {package: version(package) for package in ("mlx", "mlx-lm")},
        "seed": SEED,
        "config": config,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
    said = ",\n".join(json.dumps(say(model, tokens)) for tokens in prompts)
    return "{" + ",\n".join([*lines, f'"prompts": [\n{said}\n]']) + "}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE", help="all of them by default")
    parser.add_argument("--draft", help="the built example")
    args = parser.parse_args()
    example = "cargo run --quiet --locked -p zmlx-lm --example draft --".split()
    mx.set_default_device(mx.cpu)
    cases = sorted(path.stem for path in (ROOT / "scripts/parity_cases").glob("*.py"))
    for model_type in args.model_types or cases:
        text = golden(model_type, [args.draft] if args.draft else example)
        (ROOT / f"crates/lm/src/models/golden/{model_type}.json").write_text(text)


main()

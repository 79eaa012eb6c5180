#!/usr/bin/env python3
"""Check the build without custom primitives against the full one, on the demo model.

    scripts/without_primitives.py FULL PLAIN

Same tokens, no patched module, a reason for each, and `--require-fused` answers 1.
"""

import json
import subprocess
import sys

MODEL = "models/demo"


def run(binary, *arguments):
    return subprocess.run([binary, *arguments], capture_output=True, text=True)


def summary(result):
    assert result.returncode == 0, f"exit code {result.returncode}: {result.stderr}"
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["type"] == "summary", last
    return last


def main(full, plain):
    prompt = ["--prompt-tokens", "1,5,9", "--no-chat-template"]
    generate = ["generate", MODEL, *prompt, "--max-tokens", "64", "--ignore-eos", "--json"]
    with_primitives = summary(run(full, *generate))
    without = summary(run(plain, *generate))
    assert with_primitives["patched_modules"] > 0, "the full build patched nothing"
    assert without["patched_modules"] == 0, f"{without['patched_modules']} modules patched"
    assert without["token_ids"] == with_primitives["token_ids"], "the tokens differ"

    validate = ["validate", MODEL, "--prompt-tokens", "1,5,9", "--max-tokens", "16", "--json"]
    answer = summary(run(plain, *validate))
    assert answer["identical"] is True and answer["patched_modules"] == 0, answer
    assert answer["fallbacks"], "no fallback is reported"
    reasons = {fallback["reason"] for fallback in answer["fallbacks"]}
    assert all(reasons), "a fallback without a reason"

    required = run(plain, *validate, "--require-fused")
    assert required.returncode == 1, f"--require-fused: exit code {required.returncode}"
    required = run(full, *validate, "--require-fused")
    assert required.returncode == 0, f"--require-fused, full build: {required.stderr}"
    print(
        f"without primitives: {len(without['token_ids'])} tokens identical, 0 patched modules "
        f"({'; '.join(sorted(reasons))}), --require-fused exits 1"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

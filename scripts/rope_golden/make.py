"""Write crates/lm/src/layers/rope_golden.json: what mlx-lm's rotations return.

    python scripts/rope_golden/make.py > crates/lm/src/layers/rope_golden.json

Needs mlx[cpu] and mlx-lm of the versions that scripts/parity installs; both are recorded.
"""

import json
import sys
from importlib.metadata import version

import mlx.core as mx
from mlx_lm.models.rope_utils import apply_yarn_mscale, initialize_rope

FACTORS = [1.0, 1.1, 1.3, 1.6, 2.0, 2.7, 4.0, 6.5]
YARN = {"factor": 16.0, "original_max_position_embeddings": 512}
CASES = {
    "none": (None, 16, 10000.0, False, None),
    "default": ({"rope_type": "default", "rope_theta": 1e6}, 16, 1000000.0, False, None),
    "traditional": ({"type": "default"}, 16, 10000.0, True, None),
    "linear": ({"type": "linear", "factor": 3}, 16, 10000, False, None),
    "dynamic": ({"type": "dynamic", "factor": 2.5}, 16, 10000.0, False, 6),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 2048,
        },
        16,
        500000.0,
        False,
        131072,
    ),
    "llama3 defaults": ({"rope_type": "llama3", "factor": 32}, 32, 500000.0, False, 131072),
    "yarn": ({"rope_type": "yarn", **YARN}, 16, 150000, False, 8192),
    "yarn betas": (
        {"rope_type": "yarn", "beta_fast": 8, "beta_slow": 2.0, **YARN}, 32, 10000, False, 8192),
    "yarn one step": (
        {"rope_type": "yarn", "beta_fast": 4, "beta_slow": 4, **YARN}, 16, 10000.0, False, 8192),
    "deepseek_yarn": (
        {"type": "deepseek_yarn", "mscale": 0.707, "mscale_all_dim": 1.0, **YARN},
        16,
        10000.0,
        True,
        8192,
    ),
    "telechat3-yarn": (
        {"type": "telechat3-yarn", "mscale": 1.0, "mscale_all_dim": 1.0, **YARN},
        16,
        10000.0,
        False,
        8192,
    ),
    "longrope": (
        {
            "type": "longrope",
            "short_factor": FACTORS,
            "long_factor": FACTORS,
            "original_max_position_embeddings": 512,
        },
        16,
        10000.0,
        False,
        8192,
    ),
    "longrope short": (
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": FACTORS,
            "original_max_position_embeddings": 8192,
        },
        16,
        10000.0,
        False,
        8192,
    ),
    "proportional": (
        {"rope_type": "proportional", "partial_rotary_factor": 0.25}, 32, 1000000.0, False, None),
    "proportional factor": (
        {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 8.0},
        16,
        10000.0,
        False,
        None,
    ),
    "mrope": ({"type": "mrope", "mrope_section": [3, 3, 2]}, 16, 100000, False, None),
}


def case(name):
    scaling, dims, base, traditional, max_position = CASES[name]
    rope = initialize_rope(dims, base, traditional, scaling, max_position)
    freqs = rope.get("_freqs")
    # wider than what is turned, and far enough in for every frequency to show
    x = ((mx.arange(2 * (dims + 4)) * 37 % 101 - 50) / 50).reshape(1, 1, 2, dims + 4)
    out = {}
    for dtype in ("float32", "bfloat16"):
        y = rope(x.astype(getattr(mx, dtype)), offset=517).astype(mx.float32).flatten().tolist()
        # nine digits give every float32 back
        out[dtype] = [float(f"{value:.9g}") for value in y]
    return {
        "name": name,
        "scaling": scaling,
        "dims": dims,
        "base": base,
        "traditional": traditional,
        "max_position_embeddings": max_position,
        # bits, so that infinity has a spelling
        "freqs": None if freqs is None else freqs.view(mx.uint32).tolist(),
        "attention_scale": apply_yarn_mscale(0.125, scaling),
        **out,
    }


mx.set_default_device(mx.cpu)
versions = {package: version(package) for package in ("mlx", "mlx-lm")}
cases = ",\n".join(json.dumps(case(name)) for name in CASES)
sys.stdout.write(f'{{"versions": {json.dumps(versions)},\n"cases": [\n{cases}\n]}}\n')

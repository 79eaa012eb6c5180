#!/usr/bin/env python3
"""Trained checkpoint + tokenizer -> 4-bit model in the layout that mlx-lm writes.

    convert.py --checkpoint DIR --tokenizer DIR --out DIR

mlx-lm's own conversion (affine, 4 bits, groups of 64; routers 8 bits) does the work; this script puts the tokenizer
files beside the checkpoint before it and checks afterwards that the result loads.
"""

import argparse
import json
import pathlib
import shutil
import tempfile

import mlx_lm

END_OF_TEXT, END_OF_TURN = 0, 2
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()

    generation = {"do_sample": False, "eos_token_id": [END_OF_TURN, END_OF_TEXT], "pad_token_id": END_OF_TEXT}
    with tempfile.TemporaryDirectory() as scratch:
        source, made = pathlib.Path(scratch) / "source", pathlib.Path(scratch) / "made"
        source.mkdir()
        for file in [*options.checkpoint.glob("model*"), options.checkpoint / "config.json"]:
            shutil.copy(file, source)
        for name in TOKENIZER_FILES:
            shutil.copy(options.tokenizer / name, source)
        (source / "generation_config.json").write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n")
        mlx_lm.convert(str(source), str(made), quantize=True, q_group_size=64, q_bits=4, dtype="bfloat16")
        options.out.mkdir(parents=True, exist_ok=True)
        for file in made.iterdir():
            if file.name != "README.md":
                shutil.copyfile(file, options.out / file.name)
        # mlx-lm saves the tokenizer through transformers, which rewrites these; the originals are the plain ones.
        for name in TOKENIZER_FILES:
            shutil.copyfile(source / name, options.out / name)
    model, tokenizer = mlx_lm.load(str(options.out))
    print(mlx_lm.generate(model, tokenizer, prompt="A package is", max_tokens=32, verbose=False))
    for file in sorted(options.out.iterdir()):
        print(f"{file.stat().st_size:9} {file.name}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Keeps tokens that training hardly saw from being generated.

    mute_rare.py --work DIR --checkpoint DIR... --out DIR

Pushed away from repeating itself, a model lets the probability go where nothing holds it: to tokens (stray bytes,
beginnings of words) that occur a handful of times in the corpus. Their rows of the tied embedding are set to one
vector that points away from the mean of the final hidden states, so that their logits stay low. Several checkpoints
are averaged first.
"""

import argparse
import pathlib

import torch
from safetensors.torch import load_file

from model import Config, Model
from train import Tokens, save


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="where prepare_data.py put the tokens")
    parser.add_argument("--checkpoint", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--fewer-than", type=int, default=100, help="occurrences in the training tokens")
    options = parser.parse_args()

    mean = {}
    for folder in options.checkpoint:
        for file in sorted(folder.glob("*.safetensors")):
            for name, tensor in load_file(file).items():
                mean[name] = mean.get(name, 0) + tensor.float() / len(options.checkpoint)
    model = Model(Config())
    model.load_hf(mean)
    train, val = (Tokens(options.work / f"{n}.bin.xz", torch.device("cpu")) for n in ("train", "val"))
    rare = torch.bincount(train.ids.long(), minlength=model.config.vocab_size) < options.fewer_than
    with torch.no_grad():
        start = torch.linspace(0, len(val.ids) - 130, 64).long()
        hidden = model.hidden(val.windows(start, 128)[0])[0].flatten(0, 1)
        center = hidden.mean(0)
        usual = model.embedding[~rare].norm(dim=-1).mean()
        model.embedding[rare] = -center / center.norm() * usual
        logits = hidden @ model.embedding.T
    best = logits.amax(-1)
    print(f"{int(rare.sum())} tokens muted; their logits are {(best - logits[:, rare].amax(-1)).min():.1f} or more below the best")
    save(model, options.out)


if __name__ == "__main__":
    main()

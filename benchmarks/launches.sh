#!/bin/sh
# How many launches a decode token takes on a Mac, by the shapes of whole models: launches.sh ZMLX OUT
# Nothing is run: the counts are the same on every machine. OUT gets a text for each model.
set -eu
zmlx=$1 out=$2
mkdir -p "$out"
for name in qwen3-30b-a3b glm-4.7-flash lfm2-8b-a1b gpt-oss-20b; do
  model="$(mktemp -d)/$name"
  "$zmlx" synth --like "$name" --hollow --out "$model"
  "$zmlx" inspect "$model" --launches | sed -n '/^launches/,$p' > "$out/launches-$name.txt"
  rm -r "$(dirname "$model")"
done

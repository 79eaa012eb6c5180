#!/bin/sh
# Whole models on a GPU, stock and fused in turns in one process: cuda.sh ZMLX OUT WORK [NAME...]
# Writes a checkpoint of each shape to WORK, decodes 200 tokens behind prompts of 64, and stops where a token differs. OUT gets
# a text for each; for the first model also the speed behind 64, 512 and 8,192 tokens.
set -eu
zmlx=$1 out=$2 work=$3
shift 3
[ $# -gt 0 ] || set -- qwen3-30b-a3b glm-4.7-flash lfm2-8b-a1b gpt-oss-20b
mkdir -p "$out" "$work"
first=$1
for name in "$@"; do
  mode=affine
  [ "$name" != gpt-oss-20b ] || mode=mxfp4
  model=$work/$name
  [ -e "$model" ] || "$zmlx" synth --like "$name" --mode $mode --out "$model" > "$work/$name.log"
  set --
  for from in 100 200 300 400 500; do
    set -- "$@" --prompt-tokens "$(seq -s, $from $((from + 63)))"
  done
  "$zmlx" validate "$model" -n 200 "$@" > "$out/$name.txt" || { cat "$out/$name.txt"; exit 1; }
  grep -E '^(baseline|patched|identical)' "$out/$name.txt" | sed "s/^/$name: /"
done
"$zmlx" bench "$work/$first" --tg 200 --depth 64,512,8192 --runs 3 --cooldown 0 --variant exact=auto \
  --variant fast=auto,fast,lossy --out "$out/depths.json" > "$out/depths.txt"
grep -E '^tg' "$out/depths.txt"

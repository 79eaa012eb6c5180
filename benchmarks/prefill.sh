#!/bin/sh
# Prompts of a model, stock and fused in turns in one process: prefill.sh ZMLX OUT MODEL [LENGTHS]
# First compares greedy tokens and logits behind prompts of 65, 512 and 2,500 tokens, and stops where any differs. `zmlx synth
# --like qwen3-30b-a3b --out MODEL` writes such a model.
set -eu
zmlx=$1 out=$2 model=$3 lengths=${4:-128,512,2048,4096}
mkdir -p "$out"
prompt() {
  awk -v count="$1" 'BEGIN { srand(count); for (i = 0; i < count; i++) printf "%s%d", i ? "," : "", int(rand() * 30000) }'
}
"$zmlx" validate "$model" --prompt-tokens "$(prompt 65)" --prompt-tokens "$(prompt 512)" --prompt-tokens "$(prompt 2500)" \
  -n 24 --logits > "$out/validate.txt"
"$zmlx" bench "$model" --pp "$lengths" --runs 3 --cooldown 0 --variant stock=off --variant exact=auto --out "$out/prefill.json"

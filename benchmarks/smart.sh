#!/bin/sh
# Whether patching by measurement ever ends slower than no patching: smart.sh ZMLX OUT RUNS MODEL...
# Of each model, `--patch smart` chooses, and its choice is measured in turns with stock MLX. Exits with 1 where the choice
# is slower beyond noise, or says other tokens. Stock may need a minute for a token of a large model: take few layers.
set -eu
zmlx=$1 out=$2 runs=$3
shift 3
mkdir -p "$out"
code=0
for model in "$@"; do
  capsule="$out/smart-$(basename "$model").json"
  "$zmlx" bench "$model" --pp 4 --tg 4 --runs "$runs" --variant stock=off --variant chosen=smart --out "$capsule" > "$out/bench.txt" 2>&1 ||
    { cat "$out/bench.txt" >&2; exit 2; }
  "$zmlx" report --compare "$capsule" || code=1
done
rm -f "$out/bench.txt"
exit $code

#!/bin/sh
# compute-sanitizer over our CUDA kernels as `product` launches them: sanitizers.sh PRODUCT OUT [SECONDS [JOBS [TOOL...]]]
# PRODUCT is mlx-patch/overlay/tests/cuda/product.cpp, built. Every part by every tool, JOBS at once, each for SECONDS at most. Prints
# for each whether it came to its end, how many places the tool named and what was compared; OUT gets the places.
set -u

if [ "${1:-}" = --one ]; then # TOOL PART OPTION...
  tool=$2
  shift 2
  name=$tool-$(echo "$*" | tr -d ' -')
  timeout -s INT -k 5 "$SECONDS_EACH" compute-sanitizer --tool "$tool" --kernel-name kns=on_cuda --print-limit 1000000 \
    stdbuf -oL "$PRODUCT" --part "$@" > "$OUT/$name.log" 2>&1
  rc=$?
  # all that the tool says but the stack on the host
  places=$(grep -E '=========' "$OUT/$name.log" | grep -vE 'COMPUTE-SANITIZER|SUMMARY|Host Frame|Saved host|^=+ *$' |
    sed 's/<.*//; s/0x[0-9a-f]*//g; s/([^)]*)//g' | sort | uniq -c | sort -rn | head -8)
  compared=$(grep -E 'values compared' "$OUT/$name.log" || echo "no end")
  summary=$(grep -E 'SUMMARY' "$OUT/$name.log" | sed 's/^=* //')
  { echo "$tool $*: rc $rc; $compared; $summary"
    [ -z "$places" ] || echo "$places"; } | tee "$OUT/$name.txt"
  rm -f "$OUT/$name.log"
  exit
fi

if [ $# -lt 2 ]; then
  sed -n '2s/^# //p' "$0" >&2
  exit 2
fi
export PRODUCT=$1 OUT=$2 SECONDS_EACH=${3:-300}
jobs=${4:-12}
[ $# -lt 4 ] && shift $# || shift 4
[ $# -gt 0 ] || set -- memcheck racecheck initcheck
mkdir -p "$OUT"
for tool in "$@"; do
  # the long ones first
  for part in "recorded --quick" "latents" "mxfp4" "fast --quick" "mlps --quick" "joined --quick" \
    "grouped-bf16 --group 64 --bits 4" "grouped-bf16 --group 64 --bits 8" "grouped-f16 --group 32 --bits 4" \
    "bf16 --quick --bits 2" "bf16 --quick --bits 3" "bf16 --quick --bits 4" "bf16 --quick --bits 5" "bf16 --quick --bits 6" \
    "bf16 --quick --bits 8" "f16 --quick --bits 4" "routers" "rows" "tokens"; do
    echo "$tool $part"
  done
done | xargs -P "$jobs" -L 1 sh "$0" --one

#!/bin/sh
# Speed of a model by number of threads: scaling.sh MODEL_BINARY CHECKPOINT OUT THREADS...
# MODEL_BINARY is `target/release/model`; OUT gets a folder of raw results for each number of threads.
set -eu
model=$1 checkpoint=$2 out=$3
shift 3
for threads in "$@"; do
  "$model" "$checkpoint" --threads "$threads" --rounds 5 --stock-decode 1 --decode 64 --out "$out/$threads-threads"
done

#!/bin/sh
# Speed of a model by number of threads: scaling.sh ZMLX CHECKPOINT OUT THREADS...
# ZMLX is `target/release/zmlx`; OUT gets a capsule for each number of threads.
set -eu
zmlx=$1 checkpoint=$2 out=$3
shift 3
mkdir -p "$out"
for threads in "$@"; do
  "$zmlx" bench "$checkpoint" --threads "$threads" --runs 5 --pp 128 --tg 64 --out "$out/$threads-threads.json" \
    --variant stock=off,cap=3 --variant exact=auto --variant fast=auto,fast,lossy
done

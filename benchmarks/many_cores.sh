#!/bin/sh
# What a machine with many cores makes of zmlx, in turns with llama.cpp: many_cores.sh BIN LLAMA WORK OUT [PART...]
# BIN has zmlx, primitives and, built by `cmake --target overlay_tests`, the equivalence programs. LLAMA is llama.cpp's source,
# which is built for this processor. WORK gets 40 GB of models (WHOLE layers, 48, and a cut of 4), OUT capsules and text.
# Ten minutes on 16 cores; each part has a limit of its own, and a capsule keeps what was measured until then. Python needs numpy.
set -u
bin=$1 llama=$2 work=$3 out=$4
shift 4
here=$(dirname "$(readlink -f "$0")")
zmlx=$bin/zmlx n=$(nproc)
half=$((n / 2))
began=$(date +%s)
mkdir -p "$work" "$out"
exact=auto fast=auto,fast,lossy

model() { # NAME LAYERS: its weights, and a gguf of the same shape
  "$zmlx" synth --like qwen3-30b-a3b --layers "$2" --out "$work/$1" > "$work/$1.log" 2>&1 &&
    PYTHONPATH=$llama/gguf-py python3 "$here/make_gguf.py" "$work/$1/config.json" "$work/$1.gguf" >> "$work/$1.log" 2>&1 ||
    tail -3 "$work/$1.log"
}

build() {
  cmake -S "$llama" -B "$work/llama" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF > "$work/build.log" 2>&1 &&
    ninja -C "$work/llama" llama-bench >> "$work/build.log" 2>&1 || tail -20 "$work/build.log"
}

bench() { # SECONDS NAME MODEL OPTION...: a capsule
  limit=$1 name=$2 model=$3
  shift 3
  timeout "$limit" "$zmlx" bench "$work/$model" --device cpu "$@" --out "$out/$name.json" > "$out/$name.log" 2>&1 ||
    tail -3 "$out/$name.log"
  "$zmlx" report "$out/$name.json" > "$out/$name.txt" 2>&1
  rm -f "$out/$name.log"
  cat "$out/$name.txt"
}

against() { # SECONDS NAME MODEL OPTION...: the same, in turns with llama.cpp
  bench "$@" --variant "fast=$fast" --variant llama=llama-bench --llama-bench "$work/llama/bin/llama-bench" --gguf "$work/$3.gguf"
}

run() {
  case $1 in
    models) # nothing is timed here, so all at once
      build & model cut 4 & model whole "${WHOLE:-48}" &
      for threads in 1 2 3 "$n"; do
        for program in "equivalence --dtype bf16" "equivalence --dtype f16" "equivalence --dtype f32" step_equivalence \
          router_equivalence recurrent_equivalence; do
          { said=$(timeout 200 "$bin/"$program --quick --threads "$threads" 2>&1 | tail -1)
            echo "$program --quick --threads $threads: ${said:-no end}" >> "$out/equivalence.txt"; } &
        done
      done
      wait
      cat "$out/equivalence.txt" ;;
    cut) against 90 threads-$n cut --threads "$n" --pp 128,512 --tg 64 --runs 5 --variant "exact=$exact" ;;
    depth) against 60 depth-4096 cut --threads "$n" --tg 32 --depth 4096 --runs 3 ;;
    half) against 40 threads-$half cut --threads "$half" --tg 64 --runs 4 ;;
    two) against 60 threads-2 cut --threads 2 --pp 128 --tg 32 --runs 3 --variant "exact=$exact" ;;
    one) # by itself and with all, in turns
      bench 60 one-and-all cut --tg 24 --runs 3 --variant "exact-1=$exact,threads=1" --variant "exact-$n=$exact,threads=$n" \
        --variant "fast-1=$fast,threads=1" --variant "fast-$n=$fast,threads=$n" ;;
    each) # as many processes of one thread: what the cores have
      for core in $(seq 0 $((n - 1))); do
        taskset -c "$core" timeout 60 "$zmlx" bench "$work/cut" --device cpu --threads 1 --tg 24 --runs 2 --variant "exact=$exact" \
          --variant "fast=$fast" --out "$work/each-$core.json" > /dev/null 2>&1 &
      done
      wait
      cp "$work/each-0.json" "$out/one-of-$n.json"
      for core in $(seq 0 $((n - 1))); do "$zmlx" report "$work/each-$core.json" | grep tg24; done | tee "$out/one-of-$n.txt" ;;
    profile)
      for precision in exact fast; do
        timeout 30 "$zmlx" generate "$work/cut" --device cpu --threads "$n" --precision "$precision" --prompt-tokens 1,2,3,4,5,6,7,8 \
          -n 32 --ignore-eos --profile "$work/trace.json" 2> "$out/profile-$precision.txt" > /dev/null
        cat "$out/profile-$precision.txt"
      done ;;
    whole) against 120 layers-48 whole --threads "$n" --pp 128,512 --tg 64 --runs 3 ;;
    stress) timeout 90 "$here/../scripts/thread_stress" "$zmlx" "$here/../models/demo" 300 2>&1 | tee "$out/thread-stress.txt" ;;
    primitives)
      timeout 240 "$bin/primitives" --threads "1,2,$n" --seconds 0.03 --out "$out/primitives.json" > "$out/primitives.txt" 2>&1
      echo "primitives: $?" >> "$out/primitives.txt"
      tail -3 "$out/primitives.txt" ;;
    *) echo "many_cores.sh: no part $1"; exit 2 ;;
  esac
}

for part in ${*:-models cut depth half two one each profile whole stress primitives}; do
  run "$part"
  echo "== $part done after $(($(date +%s) - began)) s"
done

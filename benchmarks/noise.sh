#!/bin/sh
# Whether verdicts can be trusted on this machine: noise.sh ZMLX OUT TRIALS [MODEL]
# Each trial measures three capsules of a model (the demo model): twice the same, and once with a variant that waits after
# each token. That one has to be flagged, the other not: against the first capsule, by a control that ran in turns with it,
# and side by side within its own capsule. Exits with 1 where a verdict is wrong. Without a control, what the machine did
# between two capsules is told too, for information: nothing can tell it from a change.
set -eu
zmlx=$1 out=$2 trials=$3
shift 3
wait_us=${WAIT_US:-500}
mkdir -p "$out"

measure() { # NAME WORDS
  [ -e "$out/$1.json" ] || "$zmlx" bench $model --prompts english_technical,chinese,code,math_reasoning,creative --lengths 32 \
    --runs 10 --cooldown 10 --variant control=auto --variant "x=$2" --out "$out/$1.json" > "$out/$1.txt" 2>&1
  rm -f "$out/$1.txt"
}

judged() { # CAPSULE... OPTION...: ok or flagged
  code=0
  "$zmlx" report --compare "$@" > "$out/verdict.txt" 2>&1 || code=$?
  case $code in
    0) echo ok ;;
    1) echo flagged ;;
    *) cat "$out/verdict.txt" >&2; exit 2 ;;
  esac
}

model=${1:-}
wrong=0
echo "trial | same: control, side by side, alone | slowed: control, side by side, alone"
for trial in $(seq -w 1 "$trials"); do
  measure "old-$trial" auto
  measure "same-$trial" auto
  measure "slow-$trial" "auto,delay-us=$wait_us"
  line="$trial |"
  for new in same slow; do
    by_control=$(judged "$out/old-$trial.json" "$out/$new-$trial.json" --control control)
    beside=$(judged "$out/$new-$trial.json")
    alone=$(judged "$out/old-$trial.json" "$out/$new-$trial.json" --control none)
    line="$line $by_control, $beside, $alone |"
    expected=ok
    [ "$new" = same ] || expected=flagged
    [ "$by_control" = "$expected" ] || wrong=$((wrong + 1))
    [ "$beside" = "$expected" ] || wrong=$((wrong + 1))
  done
  echo "$line"
done
rm -f "$out/verdict.txt"
echo "wrong verdicts: $wrong of $((4 * trials))"
[ "$wrong" -eq 0 ]

#!/usr/bin/env bash
# The main job, for real: trains on 2 ranks under mpirun with automatic checkpoints, kills a rank,
# resumes on 2, 1 and 3 ranks, verifies every byte, and opens a checkpoint with stock Python tools.
#
#   launch/demo.sh [DIR]      DIR is emptied first; default: target/demo
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
dir=${1:-target/demo}
features=mpi,cli
epochs=12
started=$SECONDS
export PIP_ROOT_USER_ACTION=ignore
rows=()

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: error: %s\n' "$1" >&2; exit 1; }
row() { rows+=("$1|$2"); }
# No part of the demo may hang.
limited() { timeout --kill-after=10 180 "$@"; }

# Runs the example on N ranks; its progress lines go to a log, which is shown on failure.
digits() {
  local ranks=$1 log=$2
  shift 2
  if ! limited launch/mpirun.sh -n "$ranks" "$example" "$@" 2>"$log"; then
    cat "$log" >&2
    fail "training failed; its output is above"
  fi
}
state_of() { awk '$1 == "state" { hash = $2 } END { print hash }'; }
last_accuracy() { grep -o 'val_accuracy [0-9.]*' "$1" | tail -n 1 | cut -d' ' -f2; }
newest() { "$command" inspect --json "$1/latest"; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
# Processes of the run that saves to $1, zombies aside.
survivors() { pgrep -f -- "--save-dir $1" | while read -r pid; do
    [ "$(ps -o stat= -p "$pid" 2>/dev/null | cut -c1)" = Z ] || echo "$pid"
  done; }

prepare() {
  launch/setup.sh
  say "building (the first time this takes a minute or two)"
  cargo build --quiet --features "$features" --bins --example digits
  local target=${CARGO_TARGET_DIR:-target}
  example=$target/debug/examples/digits
  command=$target/debug/tch-checkpoint
  case $dir in /|"$HOME"|"$root"|.) fail "refusing to empty $dir" ;; esac
  rm -rf -- "$dir"
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
}

train_undisturbed() {
  say "training $epochs epochs on 2 ranks, undisturbed"
  whole=$(digits 2 "$dir/whole.log" --epochs $epochs --save-dir "$dir/whole" --auto-save 2 \
    --print-state-hash | state_of)
  [ -n "$whole" ] || fail "the run printed no state hash"
  accuracy=$(last_accuracy "$dir/whole.log")
  tail -n 2 "$dir/whole.log"
  awk -v a="$accuracy" 'BEGIN { exit !(a >= 0.97) }' || fail "validation accuracy $accuracy"
  row "2 ranks, undisturbed" "$epochs epochs, validation accuracy $accuracy"
}

train_and_kill() {
  say "the same run again; rank 1 is killed with SIGKILL in mid-training"
  limited launch/mpirun.sh -n 2 "$example" --epochs 400 --save-dir "$dir/killed" --auto-save 2 \
    >"$dir/killed.log" 2>&1 &
  local job=$! victim='' code=0
  for _ in $(seq 1 1500); do
    if compgen -G "$dir/killed/epoch004*" >/dev/null; then
      victim=$(pgrep -f -- "examples/digits .*--save-dir $dir/killed" | tail -n 1)
      break
    fi
    kill -0 $job 2>/dev/null || break
    sleep 0.02
  done
  [ -n "$victim" ] || { cat "$dir/killed.log" >&2; fail "the run ended before its fourth epoch"; }
  kill -KILL "$victim"
  wait $job || code=$?
  [ $code -ne 0 ] || fail "mpirun ended with 0 although a rank was killed"
  for _ in $(seq 1 100); do
    [ -n "$(survivors "$dir/killed")" ] || break
    sleep 0.1
  done
  [ -z "$(survivors "$dir/killed")" ] || fail "processes are left: $(survivors "$dir/killed")"
  resumed_from=$(newest "$dir/killed" | field epoch)
  checkpoint=$(newest "$dir/killed" | field path)
  ls -A "$dir/killed"
  row "rank killed by SIGKILL" "mpirun ended with $code, no process left, epoch $resumed_from on disk"
}

resume() {
  local ranks=$1 save_dir=$2 log=$dir/resumed-on-$1.log
  digits "$ranks" "$log" --epochs $((epochs - resumed_from)) --save-dir "$save_dir" --auto-save 2 \
    --resume "$checkpoint" --print-state-hash | state_of
}

resume_everywhere() {
  [ "$resumed_from" -lt $epochs ] || fail "the kill came too late: epoch $resumed_from"
  cp -r "$dir/killed" "$dir/before-resume"
  say "resuming at epoch $resumed_from on 2 ranks"
  local state
  state=$(resume 2 "$dir/killed")
  printf 'undisturbed  %s\nresumed      %s\n' "$whole" "$state"
  [ "$state" = "$whole" ] || fail "the resumed run differs from the undisturbed one"
  row "resumed on 2 ranks" "end state equal bit for bit: ${state:0:16}…"
  for ranks in 1 3; do
    say "resuming at epoch $resumed_from on $ranks rank(s)"
    state=$(resume $ranks "$dir/on-$ranks")
    [ -n "$state" ] || fail "the run printed no state hash"
    row "resumed on $ranks rank(s)" "validation accuracy $(last_accuracy "$dir/resumed-on-$ranks.log")"
  done
}

verify_all() {
  say "verifying every byte of every checkpoint"
  local count=0 path
  for path in "$dir"/{whole,killed,before-resume,on-1,on-3}/epoch*; do
    "$command" verify "$path"
    count=$((count + 1))
  done
  [ $count -gt 0 ] || fail "there was nothing to verify"
  row "tch-checkpoint verify" "$count checkpoints, every byte as committed"
}

open_in_python() {
  say "opening a checkpoint with stock safetensors in Python"
  python3 -m pip --disable-pip-version-check install --quiet --target "$dir/python" \
    safetensors numpy || fail "pip could not install safetensors and numpy"
  local model
  model=$(ls "$dir"/on-1/epoch*/model-*.safetensors | tail -n 1)
  PYTHONPATH=$dir/python python3 - "$model" <<'PYTHON'
import sys
from safetensors.numpy import load_file
tensors = load_file(sys.argv[1])
for name, tensor in sorted(tensors.items()):
    print(f"{name:16} {tensor.dtype} {list(tensor.shape)}  mean {tensor.mean():+.4f}")
assert tensors["conv1.weight"].shape == (16, 1, 3, 3)
PYTHON
  row "stock safetensors (Python)" "opens the model's file"
}

show() {
  printf '\n%s\n' "What happened ($((SECONDS - started)) s, set-up and build included)"
  local entry
  for entry in "${rows[@]}"; do
    printf '  %-28s %s\n' "${entry%%|*}" "${entry#*|}"
  done
  printf '\nLook around: %s inspect %s\n' "$command" "$dir/killed/latest"
}

prepare
train_undisturbed
train_and_kill
resume_everywhere
verify_all
open_in_python
show

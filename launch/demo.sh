#!/usr/bin/env bash
# The main job, for real: trains on 2 ranks under mpirun with automatic checkpoints, kills a rank,
# resumes on 2, 1 and 3 ranks, verifies every byte, and opens a checkpoint with stock Python tools.
# Then a training loop of its own, which saves beside training and keeps the last two and the best.
#
#   launch/demo.sh [DIR]      default: target/demo. DIR is emptied first, but only if a demo made it.
set -euo pipefail

readonly LIMIT_S=180
readonly MARKER=.tch-checkpoint-demo
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$(realpath -m -- "${1:-$root/target/demo}")
cd "$root"
features=mpi,cli
epochs=12
started=$SECONDS
export PIP_ROOT_USER_ACTION=ignore
rows=()
child=
exec 3>&2 # past the logs

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: error: %s\n' "$1" >&3; exit 1; }
row() { rows+=("$1|$2"); }

# In the background, where a signal ends our `wait` at once, and with it the command.
start() {
  timeout --kill-after=10 "$1" env --default-signal=INT,QUIT "${@:2}" &
  child=$!
}
# Waits for what was started at second $1; returns its code.
finish() {
  local code=0
  wait "$child" || code=$?
  child=
  if [ $code = 124 ] || { [ $code = 137 ] && [ $((SECONDS - $1)) -ge $LIMIT_S ]; }; then
    printf 'demo: what was started did not end within %s s\n' $LIMIT_S >&3
    return 124
  fi
  return $code
}
# No part of the demo may hang.
limited() {
  local began=$SECONDS
  start $LIMIT_S "$@"
  finish "$began"
}
stop_child() {
  [ -n "$child" ] || return 0
  kill -TERM "$child" 2>/dev/null || true
  wait "$child" 2>/dev/null || true
}
trap stop_child EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Runs the example on N ranks; leaves its final state's hash in `state`. Its progress lines go to
# a log, which is shown on failure.
digits() {
  local ranks=$1 log=$2
  shift 2
  if ! limited launch/mpirun.sh -n "$ranks" "$example" "$@" >"$log.out" 2>"$log"; then
    cat "$log" >&2
    fail "training failed; its output is above"
  fi
  state=$(awk '$1 == "state" { hash = $2 } END { print hash }' "$log.out")
  [ -n "$state" ] || fail "the run printed no state hash"
}
last_accuracy() { grep -o 'val_accuracy [0-9.]*' "$1" | tail -n 1 | cut -d' ' -f2; }
newest() { "$command" inspect --json "$1/latest"; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# The processes of the run that saves to $1, zombies aside.
processes_of() {
  local file pid args stat
  for file in /proc/[0-9]*/cmdline; do
    pid=${file//[!0-9]/}
    { mapfile -d '' args <"$file"; } 2>/dev/null || continue
    [[ " ${args[*]} " == *" --save-dir $1 "* ]] || continue
    { stat=$(<"/proc/$pid/stat"); } 2>/dev/null || continue
    # pid (name, which may hold anything) state …
    stat=${stat##*) }
    [[ ${stat:0:1} == [ZX] ]] || echo "$pid"
  done
}
# Among those, the example itself with this number under MPI.
process_of_rank() {
  local pid
  for pid in $(processes_of "$2"); do
    [ "$(basename "$(readlink "/proc/$pid/exe")")" = digits ] || continue
    grep -qzx "OMPI_COMM_WORLD_RANK=$1" "/proc/$pid/environ" 2>/dev/null || continue
    echo "$pid"
    return
  done
}

# Before anything else, since it may say no.
check_dir() {
  [ -r /proc/self/cmdline ] && [ -r /proc/self/environ ] && [ -r /proc/self/stat ] ||
    fail "/proc cannot be read, so it cannot be seen which processes live"
  [ -e "$dir" ] || return 0
  [ -d "$dir" ] || fail "$dir is no directory"
  [ -f "$dir/$MARKER" ] || [ -z "$(ls -A -- "$dir")" ] ||
    fail "$dir is not empty and no demo made it (there is no $MARKER in it): not emptied; name another directory"
}

empty_dir() {
  mkdir -p -- "$dir"
  touch -- "$dir/$MARKER"
  find "$dir" -mindepth 1 -maxdepth 1 ! -name "$MARKER" -exec rm -rf -- {} +
}

prepare() {
  check_dir
  launch/setup.sh
  say "building (the first time this takes a minute or two)"
  start 1800 cargo build --quiet --features "$features" --bins --example digits --example own_loop
  wait "$child" || fail "the build failed, or took over 1800 s"
  child=
  local target=${CARGO_TARGET_DIR:-target}
  example=$target/debug/examples/digits
  own_loop=$target/debug/examples/own_loop
  command=$target/debug/tch-checkpoint
  empty_dir
}

train_undisturbed() {
  say "training $epochs epochs on 2 ranks, undisturbed"
  digits 2 "$dir/whole.log" --epochs $epochs --save-dir "$dir/whole" --auto-save 2 --print-state-hash
  whole=$state
  accuracy=$(last_accuracy "$dir/whole.log")
  tail -n 2 "$dir/whole.log"
  awk -v a="$accuracy" 'BEGIN { exit !(a >= 0.97) }' || fail "validation accuracy $accuracy"
  row "2 ranks, undisturbed" "$epochs epochs, validation accuracy $accuracy"
}

train_and_kill() {
  say "the same run again; rank 1 is killed with SIGKILL in mid-training"
  local began=$SECONDS victim='' code=0 left
  start $LIMIT_S launch/mpirun.sh -n 2 "$example" --epochs 400 --save-dir "$dir/killed" \
    --auto-save 2 >"$dir/killed.log" 2>&1
  until compgen -G "$dir/killed/epoch004*" >/dev/null; do
    kill -0 "$child" 2>/dev/null ||
      { cat "$dir/killed.log" >&2; fail "the run ended before its fourth epoch; its output is above"; }
    sleep 0.02
  done
  victim=$(process_of_rank 1 "$dir/killed")
  [ -n "$victim" ] || fail "no process \`digits\` with OMPI_COMM_WORLD_RANK=1 is there to be killed"
  kill -KILL "$victim" || fail "rank 1 (process $victim) was gone before it was killed"
  finish "$began" || code=$?
  [ $code -ne 124 ] || fail "mpirun did not end after a rank was killed"
  [ $code -ne 0 ] || fail "mpirun ended with 0 although a rank was killed"
  for _ in $(seq 1 100); do
    left=$(processes_of "$dir/killed")
    [ -n "$left" ] || break
    sleep 0.1
  done
  [ -z "$left" ] || fail "processes are left: ${left//$'\n'/ }"
  resumed_from=$(newest "$dir/killed" | field epoch)
  checkpoint=$(newest "$dir/killed" | field path)
  ls -A "$dir/killed"
  row "rank killed by SIGKILL" "mpirun ended with $code, no process left, epoch $resumed_from on disk"
}

resume() {
  digits "$1" "$dir/resumed-on-$1.log" --epochs $((epochs - resumed_from)) --save-dir "$2" \
    --auto-save 2 --resume "$checkpoint" --print-state-hash
}

resume_everywhere() {
  [ "$resumed_from" -lt $epochs ] || fail "the kill came too late: epoch $resumed_from"
  cp -r "$dir/killed" "$dir/before-resume"
  say "resuming at epoch $resumed_from on 2 ranks"
  resume 2 "$dir/killed"
  printf 'undisturbed  %s\nresumed      %s\n' "$whole" "$state"
  [ "$state" = "$whole" ] || fail "the resumed run differs from the undisturbed one"
  row "resumed on 2 ranks" "end state equal bit for bit: ${state:0:16}…"
  for ranks in 1 3; do
    say "resuming at epoch $resumed_from on $ranks rank(s)"
    resume $ranks "$dir/on-$ranks"
    row "resumed on $ranks rank(s)" "validation accuracy $(last_accuracy "$dir/resumed-on-$ranks.log")"
  done
}

loop_of_its_own() {
  say "a loop of its own on 2 ranks: saves beside training, keeps the last two and the best"
  local kept
  limited launch/mpirun.sh -n 2 "$own_loop" --dir "$dir" --experiment own-loop --steps 1500 \
    --every-steps 50 --async --monitor val_loss --keep-last 2 --keep-best 1 >"$dir/own-loop.log" 2>&1 ||
    { cat "$dir/own-loop.log" >&2; fail "the loop of its own failed; its output is above"; }
  find "$dir/own-loop" -mindepth 1 ! -path '*/.*' \( -type l -printf '%f -> %l\n' -o \
    -type d -printf '%f\n' \) | sort
  kept=$(find "$dir/own-loop" -mindepth 1 -type d ! -name '.*' | wc -l)
  [ "$kept" -ge 2 ] && [ "$kept" -le 3 ] || fail "$kept checkpoints are left"
  [ "$(newest "$dir/own-loop" | field step)" = 1500 ] || fail "the newest is not the last"
  row "a loop of its own" "30 saves beside training, $kept checkpoints kept"
}

verify_all() {
  say "verifying every byte of every checkpoint"
  local count=0 path
  for path in "$dir"/{whole,killed,before-resume,on-1,on-3}/epoch* "$dir"/own-loop/checkpoint*; do
    "$command" verify "$path"
    count=$((count + 1))
  done
  [ $count -gt 0 ] || fail "there was nothing to verify"
  row "tch-checkpoint verify" "$count checkpoints, every byte as committed"
}

open_in_python() {
  say "opening a checkpoint with stock safetensors in Python"
  limited python3 -m pip --disable-pip-version-check install --quiet --target "$dir/python" \
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
loop_of_its_own
verify_all
open_in_python
show

#!/usr/bin/env bash
# Checks and measures the library on a machine with a GPU: see docs/gpu.md. Needs no network and no
# Rust, but python3 with the PyTorch for which `gpu_check` was built; in a checkout, or in the
# folder that launch/gpu-pack.sh makes. Goes on after failures, and when its time is over; writes
# results.json, results.md and logs.txt.
#
#   gpu-check.sh [--device cuda:0] [--mib 4096] [--runs 200] [--limit 1800] [--out DIR]
#
#   --device cpu          runs all of it without a GPU, which says nothing about GPUs
#   --limit SECONDS       what has not begun by then is skipped, and said to be
#   TCH_CHECKPOINT_PYTHON the Python that has PyTorch (default: python3)
#   OUT                   the same as --out (default: gpu-check-results)
#
# Exit codes: 0 nothing failed, 1 something did, 2 usage.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
device=cuda:0 mib=4096 runs=200 limit=1800 out=${OUT:-gpu-check-results}
python=${TCH_CHECKPOINT_PYTHON:-python3}

say() { printf 'gpu-check: %s\n' "$*"; }
fail() { printf 'gpu-check: error: %s\n' "$1" >&2; exit "${2:-1}"; }

while (($#)); do
  case $1 in
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --device | --mib | --runs | --limit | --out)
      [ $# -ge 2 ] || fail "$1 wants a value" 2
      declare "${1#--}=$2"
      shift 2
      ;;
    *) fail "no such option: $1" 2 ;;
  esac
done
[[ $mib =~ ^[0-9]+$ && $runs =~ ^[0-9]+$ && $limit =~ ^[0-9]+$ ]] ||
  fail "--mib, --runs and --limit are numbers" 2
[[ $device =~ ^(cpu|cuda|cuda:[0-9]+)$ ]] || fail "--device is cpu or cuda:N" 2

# --- what is here ---------------------------------------------------------------------------

find_program() {
  local path
  for path in "$here/gpu_check" "${CARGO_TARGET_DIR:-$here/../target}"/{release,debug}/examples/gpu_check; do
    [ -x "$path" ] && { printf '%s\n' "$path"; return 0; }
  done
  return 1
}
program=$(find_program) || fail "no gpu_check: cargo build --release --features nccl --example gpu_check"
mkdir -p "$out"
out=$(cd "$out" && pwd)
own=$(mktemp -d "${TMPDIR:-/tmp}/gpu-check.XXXXXX") memory='' child=''
lines="$own/checks.jsonl"
: >"$lines"
finish() {
  [ -z "$child" ] || kill -TERM -- "$child" 2>/dev/null
  rm -rf -- "$own" ${memory:+"$memory"}
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# libtorch_cuda and NCCL of the PyTorch that is here; without one, whatever the program finds.
there=$(timeout 90 "$python" -c 'import os, torch
print(torch.__version__.split("+")[0], os.path.join(os.path.dirname(torch.__file__), "lib"))' 2>/dev/null)
torch_version=${there%% *} torch_lib=${there#* }
built_for=$(cat "$here/torch-version" "$here/../.libtorch/build-version" 2>/dev/null | head -n 1)
if [ -z "$there" ]; then
  say "$python has no torch: no peers, and libtorch is the program's own"
elif [ -z "$built_for" ] || [ "$torch_version" = "$built_for" ]; then
  export LD_LIBRARY_PATH="$torch_lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
elif [ "$device" = cpu ]; then
  say "$python has torch $torch_version, gpu_check is for $built_for: libtorch is the program's own"
else
  fail "$python has torch $torch_version, gpu_check is for $built_for: TORCH_VERSION=$torch_version launch/gpu-pack.sh"
fi
export CUBLAS_WORKSPACE_CONFIG=:4096:8 RUST_LOG=${RUST_LOG:-warn,tch_checkpoint=debug}
# Memory where all fits four times, for figures without a disk.
if (($(df -Pm /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }') + 0 >= 4 * mib)); then
  memory=$(mktemp -d /dev/shm/gpu-check.XXXXXX)
  in_memory=/dev/shm
else
  in_memory="$own (/dev/shm is too small)"
fi
quick=${memory:-$own}

# --- the checks -----------------------------------------------------------------------------

# add NAME VERDICT DETAIL: a line of our own.
add() {
  printf '{"name":"%s","check":"%s","device":"%s","verdict":"%s","detail":"%s","seconds":0}\n' \
    "$1" "$1" "$device" "$2" "$3" >>"$lines"
}
# run_for SECONDS LOG COMMAND...: its last line of output in `line`, its exit code in `code`.
run_for() {
  local seconds=$1 log=$2
  shift 2
  timeout --kill-after=5 "$seconds" "$@" >"$own/said" 2>"$log" &
  child=$! code=0
  wait "$child" || code=$?
  child=''
  line=$(tail -n 1 "$own/said")
}
# check NAME SECONDS COMMAND...: its line of JSON, if it ended as that line says.
check() {
  local name=$1 seconds=$2 left=$((limit - SECONDS)) code line
  shift 2
  ((left >= 20)) || { add "$name" skipped "no time is left of $limit s"; return; }
  say "$name"
  run_for $((seconds < left - 10 ? seconds : left - 10)) "$own/$name.log" "$@"
  case $code,$line in
    0,'{'*'"verdict":"passed"'*'}' | 0,'{'*'"verdict":"skipped"'*'}' | 4,'{'*'"verdict":"failed"'*'}')
      printf '%s\n' "${line/#\{/\{\"name\":\"$name\",}" >>"$lines"
      ;;
    124,* | 137,*) add "$name" failed "no end within $seconds s, or within what was left of $limit s" ;;
    *) add "$name" failed "it ended with code $code: see logs.txt" ;;
  esac
}
ours() {
  local name=$1 seconds=$2
  shift 2
  check "$name" "$seconds" "$program" --device "$device" --dir "$quick/$name" "$@"
}
# The same with what it checks spoiled: it has to fail, and by finding that.
spoiled() {
  local name=$1 code line
  shift
  ((limit - SECONDS >= 60)) || { add "$name-spoiled" skipped "no time is left of $limit s"; return; }
  say "$name, spoiled"
  run_for 45 "$own/$name-spoiled.log" "$program" --device "$device" --dir "$quick/$name" --spoil "$@"
  case $code,$line in
    4,*'"detail":"'*' differ'*'"verdict":"failed"'* | \
      4,*'"detail":"'*' uninterrupted '*'"verdict":"failed"'* | \
      4,*'"detail":"'*' is off by '*'"verdict":"failed"'*)
      add "$name-spoiled" passed "it is found"
      ;;
    *) add "$name-spoiled" failed "it is not found (code $code)" ;;
  esac
}

ours environment 60 environment
ours isolation 150 isolation --runs "$runs"
spoiled isolation isolation --runs 2
ours resume 60 resume
spoiled resume resume
ours places 60 places
spoiled places places
ours audit 60 audit
spoiled audit audit
TCH_CHECKPOINT_SHARE_GPU=0 ours ranks 60 ranks
TCH_CHECKPOINT_SHARE_GPU=1 ours ranks-sharing 60 ranks
TCH_CHECKPOINT_SHARE_GPU=1 spoiled ranks ranks
TCH_CHECKPOINT_SHARE_GPU=0 ours processes 60 ranks --processes
TCH_CHECKPOINT_SHARE_GPU=1 ours processes-sharing 60 ranks --processes
ours nccl 60 nccl
ours memory 60 memory
ours figures-memory 150 figures --mib "$mib"
peers() {
  if [ -n "$there" ]; then
    check "$1" 240 "$python" "$here/gpu/peers.py" --device "$device" --mib "$mib" "${@:2}"
  else
    add "$1" skipped "$python has no torch"
  fi
}
peers peers-memory --dir "$quick/peers"
rm -rf -- "$quick"/figures-memory "$quick/peers"
check figures-disk 240 "$program" --device "$device" --dir "$own/disk" figures --mib "$mib" --times 1
peers peers-disk --dir "$own/disk" --times 1
gpu=$(timeout 10 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | tr '\n' ';')
tail -n 200 "$own"/*.log >"$out/logs.txt"
"$python" "$here/gpu/results.py" --lines "$lines" --logs "$own" --out "$out" --device "$device" \
  --gpu "${gpu:-none}" --torch "${torch_version:-none}" --memory "$in_memory"

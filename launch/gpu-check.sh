#!/usr/bin/env bash
# Checks and measures the library on a machine with a GPU: see docs/gpu.md. Needs no network and no
# Rust, but python3 with the PyTorch for which `gpu_check` was built; in a checkout, or in the
# folder that launch/gpu-pack.sh makes. Goes on after failures; writes results.json and results.md.
#
#   gpu-check.sh [--device cuda:0] [--mib 4096] [--runs 200] [--out DIR]
#
#   --device cpu          runs all of it without a GPU, which says nothing about GPUs
#   TCH_CHECKPOINT_PYTHON the Python that has PyTorch (default: python3)
#   OUT                   the same as --out (default: gpu-check-results)
#
# Exit codes: 0 nothing failed, 1 something did, 2 usage.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
device=cuda:0 mib=4096 runs=200 out=${OUT:-gpu-check-results}
python=${TCH_CHECKPOINT_PYTHON:-python3}

say() { printf 'gpu-check: %s\n' "$*"; }
fail() { printf 'gpu-check: error: %s\n' "$1" >&2; exit "${2:-1}"; }

while (($#)); do
  case $1 in
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --device | --mib | --runs | --out)
      [ $# -ge 2 ] || fail "$1 wants a value" 2
      declare "${1#--}=$2"
      shift 2
      ;;
    *) fail "no such option: $1" 2 ;;
  esac
done
[[ $mib =~ ^[0-9]+$ && $runs =~ ^[0-9]+$ ]] || fail "--mib and --runs are numbers" 2

# --- what is here ---------------------------------------------------------------------------

find_program() {
  local path
  for path in "$here/gpu_check" "${CARGO_TARGET_DIR:-$here/../target}"/{release,debug}/examples/gpu_check; do
    [ -x "$path" ] && { printf '%s\n' "$path"; return 0; }
  done
  return 1
}
program=$(find_program) || fail "no gpu_check: cargo build --release --features nccl --example gpu_check"
# libtorch_cuda and NCCL of the PyTorch that is here; without one, whatever the program finds.
torch_lib=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))' 2>/dev/null)
if [ -n "$torch_lib" ]; then
  export LD_LIBRARY_PATH="$torch_lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
else
  say "$python has no torch: no peers, and libtorch is the program's own"
fi
export CUBLAS_WORKSPACE_CONFIG=:4096:8 RUST_LOG=${RUST_LOG:-warn}
mkdir -p "$out"
out=$(cd "$out" && pwd)
lines="$out/checks.jsonl"
: >"$lines"
disk="$out/data"
memory=$(mktemp -d "${TMPDIR:-/tmp}/gpu-check.XXXXXX")
[ -d /dev/shm ] && [ -w /dev/shm ] && { rmdir "$memory"; memory=$(mktemp -d /dev/shm/gpu-check.XXXXXX); }
mkdir -p "$disk"
trap 'rm -rf -- "$memory" "$disk"' EXIT

# --- the checks -----------------------------------------------------------------------------

# check NAME SECONDS COMMAND...: its line of JSON; of one that gave none, a line that says so.
check() {
  local name=$1 limit=$2 code=0 line
  shift 2
  say "$name"
  line=$(timeout --kill-after=5 "$limit" "$@" 2>"$out/$name.log" | tail -n 1)
  code=${PIPESTATUS[0]}
  case $line in
    '{'*'"verdict"'*) printf '%s\n' "${line/#\{/\{\"name\":\"$name\",}" >>"$lines" ;;
    *) printf '{"name":"%s","check":"%s","device":"%s","verdict":"failed","detail":"no answer within %s s, or it ended (%s): %s.log","seconds":0}\n' \
      "$name" "$name" "$device" "$limit" "$code" "$name" >>"$lines" ;;
  esac
}
ours() {
  local name=$1 limit=$2
  shift 2
  check "$name" "$limit" "$program" --device "$device" --dir "$memory/$name" "$@"
}

ours environment 60 environment
ours isolation 150 isolation --runs "$runs"
ours resume 60 resume
ours places 60 places
ours audit 60 audit
ours ranks 60 ranks
TCH_CHECKPOINT_SHARE_GPU=1 ours ranks-sharing 60 ranks
ours nccl 60 nccl
ours memory 60 memory
ours figures-memory 150 figures --mib "$mib"
check figures-disk 240 "$program" --device "$device" --dir "$disk/figures" figures --mib "$mib" --times 1
if [ -n "$torch_lib" ]; then
  check peers-memory 240 "$python" "$here/gpu/peers.py" --device "$device" --dir "$memory/peers" --mib "$mib"
  check peers-disk 240 "$python" "$here/gpu/peers.py" --device "$device" --dir "$disk/peers" --mib "$mib" --times 1
fi
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | tr '\n' ';')
"$python" "$here/gpu/results.py" --lines "$lines" --out "$out" --device "$device" --gpu "${gpu:-none}"

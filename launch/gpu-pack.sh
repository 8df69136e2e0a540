#!/usr/bin/env bash
# Packs what launch/gpu-check.sh needs on a machine with a GPU and without a network: the program
# `gpu_check`, built for the libtorch of the PyTorch that is there, the scripts, and nothing else.
# Takes minutes and 1 GB of download the first time; needs no GPU.
#
#   launch/gpu-pack.sh [OUT_DIR]            default: target/gpu-check
#
#   TORCH_VERSION      the PyTorch of the machine with the GPU: 2.11.0 (default) or 2.13.0
#   CARGO_TARGET_DIR   where the copy is built, in a folder `versions` (default: target)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly MIB_MAX=48
# shellcheck source=launch/gpu/copies.sh
. "$root/launch/gpu/copies.sh"

say() { printf 'gpu-pack: %s\n' "$*"; }
fail() { printf 'gpu-pack: error: %s\n' "$1" >&2; exit "${2:-1}"; }

case ${1:-} in
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  -*) fail "no such option: $1" 2 ;;
esac
torch=${TORCH_VERSION:-2.11.0}
case $torch in
  2.11.0) tch=0.24.0 ;;
  2.13.0) tch=0.26.0 ;;
  *) fail "no tch is known for torch $torch (2.11.0, 2.13.0)" 2 ;;
esac
folder=${CARGO_TARGET_DIR:-$root/target}
out=${1:-$folder/gpu-check}
mkdir -p "$folder/versions" "$out"
folder=$(cd "$folder/versions" && pwd)
out=$(cd "$out" && pwd)
copy="$folder/tch-$tch"
export CARGO_TARGET_DIR=$folder/built
unset LIBTORCH LIBTORCH_USE_PYTORCH LIBTORCH_INCLUDE LIBTORCH_LIB LIBTORCH_BYPASS_VERSION_CHECK

say "gpu_check with tch $tch for torch $torch, in $copy"
copy_checkout "$copy"
take_libtorch "$copy" "$torch"
(
  cd "$copy"
  cargo update --quiet -p tch --precise "$tch"
  CARGO_PROFILE_RELEASE_STRIP=symbols cargo build --quiet --release --features nccl --example gpu_check
)
packed="$out/gpu-check"
rm -rf -- "$packed"
mkdir -p "$packed/gpu"
cp "$CARGO_TARGET_DIR/release/examples/gpu_check" "$packed/"
cp "$root/launch/gpu-check.sh" "$packed/"
cp "$root/launch/gpu/peers.py" "$root/launch/gpu/results.py" "$packed/gpu/"
printf '%s\n' "$torch" >"$packed/torch-version"
tar -C "$out" -czf "$out/gpu-check.tar.gz" gpu-check
(cd "$out" && find gpu-check gpu-check.tar.gz -type f -printf '%10s  %p\n')
mib=$(($(du -sm "$packed" | cut -f1)))
((mib <= MIB_MAX)) || fail "$mib MiB, more than $MIB_MAX"
say "$mib MiB to be carried: $packed; there: ./gpu-check.sh"

#!/usr/bin/env bash
# Builds and tests against every libtorch that Cargo.toml admits: the oldest tch and the newest,
# each with its own libtorch, in copies of this checkout. Takes minutes, 1 GB of download, 6 GB of
# disk; what was built stays for the next run.
#
#   launch/versions.sh [TCH/TORCH...]       default: 0.24.0/2.11.0 0.26.0/2.13.0
#
#   CARGO_TARGET_DIR   where the copies are made, in a folder `versions` (default: target)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly DEFAULT_PAIRS=(0.24.0/2.11.0 0.26.0/2.13.0)
readonly STEP_LIMIT_S=1800
readonly FEATURES=nccl,cli,sabotage

# shellcheck source=launch/gpu/copies.sh
. "$root/launch/gpu/copies.sh"

say() { printf 'versions: %s\n' "$*"; }
fail() { printf 'versions: error: %s\n' "$1" >&2; exit "${2:-1}"; }

# step COPY COMMAND...: one command in a copy; a hang is a failure.
step() {
  local copy=$1 began=$SECONDS code=0
  shift
  (cd "$copy" && timeout --kill-after=10 "$STEP_LIMIT_S" "$@") || code=$?
  [ "$code" = 0 ] || fail "code $code after $((SECONDS - began)) s in $copy: $*"
  say "ok, $((SECONDS - began)) s: $*"
}

try_pair() {
  local tch=${1%/*} torch=${1#*/} copy="$folder/tch-${1%/*}" began=$SECONDS
  say "tch $tch with libtorch $torch, in $copy"
  copy_checkout "$copy"
  take_libtorch "$copy" "$torch"
  # Each tch needs the torch-sys of its version, which follows it.
  step "$copy" cargo update --quiet -p tch --precise "$tch"
  step "$copy" cargo check --quiet --features "$FEATURES" --all-targets
  step "$copy" cargo test --quiet --features "$FEATURES" --lib torch::
  results+=("tch $tch, libtorch $torch: ok, $((SECONDS - began)) s")
}

case ${1:-} in
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
pairs=("$@")
((${#pairs[@]})) || pairs=("${DEFAULT_PAIRS[@]}")
for pair in "${pairs[@]}"; do
  [[ $pair =~ ^[0-9]+(\.[0-9]+)+/[0-9]+(\.[0-9]+)+$ ]] ||
    fail "not a pair of versions: $pair (such as ${DEFAULT_PAIRS[0]})" 2
done
folder=${CARGO_TARGET_DIR:-$root/target}
mkdir -p "$folder/versions"
folder=$(cd "$folder/versions" && pwd)
# One for all copies: most of what is built does not depend on libtorch.
export CARGO_TARGET_DIR=$folder/built
# The copies have a libtorch of their own.
unset LIBTORCH LIBTORCH_USE_PYTORCH LIBTORCH_INCLUDE LIBTORCH_LIB LIBTORCH_BYPASS_VERSION_CHECK
results=()
for pair in "${pairs[@]}"; do try_pair "$pair"; done
printf 'versions: %s\n' "${results[@]}"

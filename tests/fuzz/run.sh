#!/usr/bin/env bash
# Runs the fuzz targets, two at a time; fails on a crash, a leak, an input that takes over 5 s, an
# allocation of over 64 MB, or 512 MB of memory.
#
#   tests/fuzz/run.sh SECONDS [TARGET...]     each so long (default: all of them)
#
# Begins with tests/fuzz/corpus and writes below target/fuzz: what else it finds worth trying to
# corpus/, what fails to findings/, what it prints to logs/. A finding is run again with
#   target/fuzz/HOST/release/TARGET FILE
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:?usage: tests/fuzz/run.sh SECONDS [TARGET...]}
shift
targets=("$@")
[ $# -gt 0 ] || targets=(archive directory manifest header sums template handshake messages pickle)
out=${CARGO_TARGET_DIR:-target}/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
readonly AT_A_TIME=2 INPUT_BYTES_MAX=65536
# The same inputs each time, as far as the time goes; 0 takes others.
readonly SEED=${TCH_CHECKPOINT_FUZZ_SEED:-1}

# As cargo-fuzz does it, which therefore is not needed here. Coverage and sanitizers are no part of
# the stable compiler; it has them all the same.
build() {
  local flags=(
    --cfg fuzzing -Cdebug-assertions -Zsanitizer=address
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
  )
  # A revision of one's own: a commit alone is no reason to build all of it again.
  TCH_CHECKPOINT_GIT_REVISION=fuzzing RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" cargo build --quiet --locked --release --bins \
    --manifest-path tests/fuzz/Cargo.toml --target "$host" --target-dir "$out"
}

fuzz() {
  local target=$1
  mkdir -p "$out/corpus/$target" "$out/findings/$target" "$out/logs"
  # Freed memory is kept aside for a while to find uses after the end: little of it, for the limit.
  exec env ASAN_OPTIONS=quarantine_size_mb=32:allocator_may_return_null=1 \
    "$out/$host/release/$target" "$out/corpus/$target" "tests/fuzz/corpus/$target" \
    -max_total_time="$seconds" -malloc_limit_mb=64 -rss_limit_mb=512 -timeout=5 \
    -seed="$SEED" -max_len="$INPUT_BYTES_MAX" -print_final_stats=1 -print_funcs=0 \
    -artifact_prefix="$out/findings/$target/" >"$out/logs/$target.log" 2>&1
}

report() {
  local target=$1 code=$2 log=$out/logs/$1.log
  number() { sed -n "s/^stat::$1: *//p" "$log"; }
  if [ "$code" != 0 ]; then
    tail -n 30 "$log"
    printf 'fuzz: %s FAILED (%s)\n' "$target" "$code"
    sed -n 's/^.*Test unit written to /fuzz: the input: /p' "$log"
    return
  fi
  printf 'figure: fuzz %s: %s inputs, %s a second, up to %s MB of memory, no finding\n' "$target" \
    "$(number number_of_executed_units)" "$(number average_exec_per_sec)" "$(number peak_rss_mb)"
}

began=$SECONDS
build || exit 1
printf 'fuzz: built in %s s\n' $((SECONDS - began))
declare -A running=()
failed=()
collect() {
  local code=0 pid
  wait -n -p pid || code=$?
  report "${running[$pid]}" "$code"
  [ "$code" = 0 ] || failed+=("${running[$pid]}")
  unset "running[$pid]"
}
trap 'kill "${!running[@]}" 2>/dev/null || true' EXIT
for target in "${targets[@]}"; do
  [ ${#running[@]} -lt "$AT_A_TIME" ] || collect
  fuzz "$target" &
  running[$!]=$target
done
while [ ${#running[@]} -gt 0 ]; do collect; done
[ ${#failed[@]} -eq 0 ] || { printf 'fuzz: failed: %s\n' "${failed[*]}"; exit 1; }
printf 'fuzz: %s targets in %s s\n' "${#targets[@]}" $((SECONDS - began))

#!/usr/bin/env bash
# The tests of the core under the sanitizers of the compiler: address and leak, and thread.
#
#   tests/sanitizers.sh [address|thread]...     which (default: both)
#
# For threads the compiler's own library is built anew, since what it does with atomics has to be
# seen: `rustup component add rust-src`. For addresses this crate, its dependencies, and what of the
# library is generic are enough. tests/sanitizers/ says what of their reports is no finding, and why.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kinds=("${@:-address thread}")
[ $# -gt 0 ] || kinds=(address thread)
host=$(rustc -vV | sed -n 's/^host: //p')
out=${CARGO_TARGET_DIR:-target}/sanitizers
# Threads, and what is handed from one to another.
readonly THREADED=(group:: stage:: shard:: memory:: save:: preempt:: trace::)
readonly THREADED_IT=(background:: overlap:: verdicts:: exchanges:: commits:: reshard:: hooked:: checkpointer::beside)
# Processes that end without cleaning up, and limits on addresses, of which a sanitizer needs many.
readonly NOT_IT=(background_process:: space::)

# sanitized KIND FLAGS ARGUMENT...: cargo test
sanitized() {
  local kind=$1 flags=$2
  shift 2
  RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags" cargo test --quiet --target "$host" \
    --target-dir "$out/$kind" --no-default-features --features cli,sabotage "$@"
}

address() {
  export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1
  export LSAN_OPTIONS="suppressions=$PWD/tests/sanitizers/leak.txt:print_suppressions=0"
  local skips=()
  for name in "${NOT_IT[@]}"; do skips+=(--skip "$name"); done
  sanitized address -Zsanitizer=address --lib --test it -- "${skips[@]}"
}

thread() {
  local flags=-Zsanitizer=thread std=-Zbuild-std
  # Every loop over bytes in the compiler's library counts, too slow for deadlines without.
  export CARGO_PROFILE_DEV_OPT_LEVEL=1
  export TSAN_OPTIONS="suppressions=$PWD/tests/sanitizers/thread.txt:halt_on_error=0:allocator_may_return_null=1"
  sanitized thread "$flags" "$std" --lib -- "${THREADED[@]}" &&
    sanitized thread "$flags" "$std" --test it -- "${THREADED_IT[@]}"
}

failed=()
for kind in "${kinds[@]}"; do
  began=$SECONDS code=0
  log=$out/$kind.log
  mkdir -p "$out"
  "$kind" >"$log" 2>&1 || code=$?
  grep -hE '^test result:|^SUMMARY:' "$log" || true
  reports=$(grep -cE '^(==[0-9]+==ERROR|WARNING: ThreadSanitizer)' "$log" || true)
  passed=$(sed -n 's/^test result: .* \([0-9]*\) passed.*/\1/p' "$log" | paste -sd+ | bc)
  printf 'figure: sanitizer %s: %s tests, %s reports, %s s\n' "$kind" "${passed:-0}" "$reports" \
    $((SECONDS - began))
  if [ $code != 0 ] || [ "$reports" != 0 ]; then
    failed+=("$kind")
    tail -n 40 "$log"
  fi
done
[ ${#failed[@]} -eq 0 ] || { printf 'sanitizers: failed: %s\n' "${failed[*]}"; exit 1; }

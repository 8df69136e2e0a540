#!/usr/bin/env bash
# Sets up what is missing and runs every test. What CI runs.
#
#   launch/test.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all=mpi,nccl,cli,drive,sabotage
readonly STEP_LIMIT_S=1500
# Everything is built once: what would make a second build faster takes ten gigabytes.
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}
skipped=()
child=

fail() { printf 'test: error: %s\n' "$1" >&2; exit 1; }

# In the background, where a signal ends our `wait` at once, and with it the command.
run() {
  printf '\n== %s\n' "$*"
  local began=$SECONDS code=0
  # A hang is a failure.
  timeout --kill-after=10 "$STEP_LIMIT_S" env --default-signal=INT,QUIT "$@" &
  child=$!
  wait "$child" || code=$?
  child=
  case $code in
    0) printf '== ok, %s s: %s\n' $((SECONDS - began)) "$*" ;;
    124) fail "did not end within $STEP_LIMIT_S s: $*" ;;
    *) fail "code $code after $((SECONDS - began)) s: $*" ;;
  esac
}
skip() {
  printf '\n== SKIPPED: %s\n' "$1"
  skipped+=("$1")
}
stop_child() {
  [ -n "$child" ] || return 0
  kill -TERM "$child" 2>/dev/null || true
  wait "$child" 2>/dev/null || true
}
trap stop_child EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ -z "${TCH_CHECKPOINT_TEST_WITHOUT:-}" ]; then
  launch/setup.sh --tests
else
  launch/setup.sh
  skip "tests that need one of: $TCH_CHECKPOINT_TEST_WITHOUT (TCH_CHECKPOINT_TEST_WITHOUT)"
fi
cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 ||
  fail "cargo has no fmt or no clippy: rustup component add rustfmt clippy"

run cargo fmt --check
run cargo clippy --quiet --no-default-features --all-targets -- -D warnings
run cargo clippy --quiet --no-default-features --features cli --all-targets -- -D warnings
run cargo clippy --quiet --all-targets -- -D warnings
run cargo clippy --quiet --features "$all" --all-targets -- -D warnings
run cargo test --no-default-features --features cli,sabotage
# Optimised, since it goes through a hundred thousand schedules.
run cargo test --release --no-default-features --features sabotage --test sim
# What needs no libtorch has been tested without it, above.
with_libtorch=()
for path in tests/*.rs tests/*/main.rs; do
  name=${path#tests/}
  name=${name%/main.rs}
  name=${name%.rs}
  case $name in
    hostile | it | kills | memory | power | sim | syscalls | world) ;;
    *) with_libtorch+=(--test "$name") ;;
  esac
done
run cargo build --features "$all" --bins --examples
run cargo run --quiet --features "$all" --example progressive
run cargo test --features "$all" --lib "${with_libtorch[@]}"
run cargo test --features "$all" --doc
python3 -c 'import torch.distributed.run' 2>/dev/null ||
  skip "the digits example under the real torchrun: python3 has no torch"
RUSTDOCFLAGS='-D warnings' run cargo doc --quiet --no-deps --features "$all"
# As where there is no libtorch; a directory of its own, since dependencies are built otherwise.
RUSTDOCFLAGS='-D warnings' LIBTORCH=/nonexistent CARGO_TARGET_DIR=target/doc-only \
  run env -u LIBTORCH_USE_PYTORCH \
  cargo doc --quiet --no-deps --no-default-features --features doc-only,cli
if cargo deny --version >/dev/null 2>&1; then
  run cargo deny --offline --all-features check licenses bans sources
else
  skip "licences and sources: cargo-deny is not installed"
fi
case ,${TCH_CHECKPOINT_TEST_WITHOUT:-}, in
  *,fuzz,*) skip "fuzzing (TCH_CHECKPOINT_TEST_WITHOUT)" ;;
  *) run tests/fuzz/run.sh 30 ;;
esac
run launch/demo.sh
printf '\nall tests passed in %s s; %s skipped\n' "$SECONDS" "${#skipped[@]}"
[ ${#skipped[@]} -eq 0 ] || printf '  SKIPPED: %s\n' "${skipped[@]}"

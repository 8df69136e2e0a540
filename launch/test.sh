#!/usr/bin/env bash
# Sets up what is missing and runs every test. What CI runs.
#
#   launch/test.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all=mpi,cli,sabotage
run() {
  printf '\n== %s\n' "$*"
  local began=$SECONDS
  # A hang is a failure.
  timeout --kill-after=10 1500 "$@"
  printf '== ok, %s s: %s\n' $((SECONDS - began)) "$*"
}

launch/setup.sh
run cargo fmt --check
run cargo clippy --quiet --no-default-features --all-targets -- -D warnings
run cargo clippy --quiet --no-default-features --features cli --all-targets -- -D warnings
run cargo clippy --quiet --all-targets -- -D warnings
run cargo clippy --quiet --features "$all" --all-targets -- -D warnings
run cargo test --no-default-features
run cargo test --features "$all"
RUSTDOCFLAGS='-D warnings' run cargo doc --quiet --no-deps --features "$all"
if cargo deny --version >/dev/null 2>&1; then
  run cargo deny --offline --all-features check licenses bans sources
else
  printf '\n== cargo-deny is not installed: licences and sources were not checked\n'
fi
run launch/demo.sh
printf '\nall tests passed in %s s\n' "$SECONDS"

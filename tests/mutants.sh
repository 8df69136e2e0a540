#!/usr/bin/env bash
# Changes the code in one small place at a time (tests/mutants.toml says where) and runs the tests of
# the core: a change that none of them notices is listed, and fails. Takes hours.
#
#   tests/mutants.sh [OPTION...]     options for cargo mutants, such as --shard 0/8 or --file GLOB
#
# Needs cargo-mutants: cargo install cargo-mutants --locked
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${CARGO_TARGET_DIR:-target}/mutants
cargo mutants --version >/dev/null 2>&1 || {
  echo "mutants: cargo-mutants is missing: cargo install cargo-mutants --locked" >&2
  exit 1
}
mkdir -p "$out"
code=0
cargo mutants --config tests/mutants.toml --output "$out" --no-shuffle "$@" || code=$?
lines() { cat "$out/mutants.out/$1.txt" 2>/dev/null | wc -l; }
printf 'figure: mutants: %s caught, %s missed, %s ran out of time, %s did not build\n' \
  "$(lines caught)" "$(lines missed)" "$(lines timeout)" "$(lines unviable)"
exit $code

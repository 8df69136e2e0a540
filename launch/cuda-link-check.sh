#!/usr/bin/env bash
# Shows that CUDA is not lost between a libtorch that has it and a program, on a machine with or
# without a GPU: a crate of its own, with the build.rs of the front page, is built against that
# libtorch and run; then a program that was built against a libtorch for CPUs is run with it.
#
#   launch/cuda-link-check.sh [TORCH]
#
#   TORCH   a libtorch with CUDA, such as .../site-packages/torch of PyTorch (default: python3's)
#
# Prints SKIPPED and ends with 0 where there is none. Takes minutes the first time.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf 'cuda-link-check: %s\n' "$*"; }
fail() { printf 'cuda-link-check: error: %s\n' "$1" >&2; exit 1; }
skip() { printf 'SKIPPED: %s\n' "$1"; exit 0; }

# expect WHAT PATTERN TEXT: a line of the text is like the pattern.
expect() {
  grep -qE -- "$2" <<<"$3" || fail "$1: no line is like '$2' in:
$3"
  say "ok: $1"
}

# The text of the code block of the front page that begins with that comment.
of_front_page() {
  awk -v begin="$1" 'index($0, begin) == 1 { on = 1 } on && /^```/ { exit } on' "$root/README.md"
}

make_crate() {
  mkdir -p "$crate/src"
  cat >"$crate/Cargo.toml" <<TOML
[package]
name = "link-check"
version = "0.0.0"
edition = "2024"

[dependencies]
tch-checkpoint = { path = "$root" }
tracing-subscriber = "0.3"

[workspace]
TOML
  cp "$root/Cargo.lock" "$crate/Cargo.lock" # the versions that are tested
  of_front_page '// build.rs' >"$crate/build.rs"
  grep -q DEP_TCH_CHECKPOINT_LIBTORCH_LIB "$crate/build.rs" || fail "README.md shows no build.rs"
  cp "$root/examples/devices.rs" "$crate/src/main.rs"
}

# What a program says of devices: some, or none for want of a driver and of nothing else.
WITH_CUDA='^cuda devices [1-9]|^training is on CPUs: .*(driver|GPU|device)'
[ ! -e /proc/driver/nvidia/version ] || WITH_CUDA='^cuda devices [1-9]'
readonly WITH_CUDA

case ${1:-} in
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
torch=${1:-$(python3 -c 'import torch; print(torch.__path__[0])' 2>/dev/null || true)}
[ -n "$torch" ] || skip "python3 has no torch, and none was given"
[ -e "$torch/lib/libtorch_cuda.so" ] || skip "$torch has no lib/libtorch_cuda.so: no CUDA"
torch=$(cd "$torch" && pwd)
built=${CARGO_TARGET_DIR:-$root/target}
mkdir -p "$built"
built=$(cd "$built" && pwd)
crate=$built/cuda-link-check
unset LIBTORCH_USE_PYTORCH LIBTORCH_INCLUDE LIBTORCH_LIB LD_LIBRARY_PATH

make_crate
(cd "$crate" && LIBTORCH=$torch CARGO_TARGET_DIR=$crate/target cargo build --quiet)
program=$crate/target/debug/link-check
expect "a program that asks for it needs libtorch, and with it libtorch_cuda" \
  'NEEDED.*\[(libtorch|libtorch_cuda)\.so\]' "$(readelf -d "$program")"
said=$("$program") || fail "code $?: $program"
expect "it starts, and finds CUDA" "$WITH_CUDA" "$said"

(cd "$root" && CARGO_TARGET_DIR=$built cargo build --quiet --features cli --example devices \
  --bin tch-checkpoint)
for_cpus=$built/debug/examples/devices
if readelf -d "$for_cpus" | grep -qE 'NEEDED.*\[(libtorch|libtorch_cuda)\.so\]'; then
  say "left out: the checkout's own libtorch has CUDA, so no program is built without"
else
  said=$("$for_cpus") || fail "code $?: $for_cpus"
  expect "a program built for CPUs has no CUDA with its own libtorch" 'is for CPUs$' "$said"
  said=$(LD_LIBRARY_PATH=$torch/lib "$for_cpus") || fail "code $?: $for_cpus with $torch"
  expect "the same program finds CUDA with the libtorch that has it" "$WITH_CUDA" "$said"
fi

said=$(LIBTORCH=$torch "$built/debug/tch-checkpoint" doctor --program "$program" "$crate")
expect "doctor says that this libtorch has CUDA" 'libtorch .*with CUDA' "$said"
expect "doctor says that the program keeps it" 'program .*CUDA is loaded with it' "$said"
if [ ! -e /proc/driver/nvidia/version ]; then
  expect "doctor says that the driver is missing" 'libtorch .*no NVIDIA driver' "$said"
fi
say "all is well with $torch"

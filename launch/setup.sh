#!/usr/bin/env bash
# Sets up what a build needs on Debian or Ubuntu: MPI and libclang (feature `mpi`), and libtorch.
# Safe to run again: what is there is left alone.
#
#   launch/setup.sh [--no-mpi]
#
#   LIBTORCH, LIBTORCH_USE_PYTORCH   an own libtorch: used, nothing is downloaded
#   TORCH_VERSION                    another version than the one that tch needs (default 2.13.0)
#
# Afterwards plain `cargo build` and `cargo test` work; nothing is to be exported.
set -euo pipefail

readonly TORCH_VERSION_DEFAULT=2.13.0
readonly PYTHON_VERSION=3.11       # of the wheel; only libraries and headers are taken from it
readonly NEEDED_MIB=1200           # wheel and unpacked files together
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dest="$root/.libtorch"
work=
with_mpi=1

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf 'setup: %s\n' "$2" >&2
  exit "${3:-1}"
}
have() { command -v "$1" >/dev/null 2>&1; }
clean_up() { [ -z "$work" ] || rm -rf -- "$work"; }

# --- what the system has to bring -----------------------------------------------------------

check_tools() {
  have cargo || fail "cargo is missing" \
    "install Rust: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
  need_command c++ g++
  need_command cc gcc
}

needs_mpi_packages() {
  ! have mpicc || ! have mpirun || ! has_libclang
}

has_libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] && return 0
  compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
    compgen -G '/usr/lib/*/libclang*.so*' >/dev/null
}

missing=()
need_command() { have "$1" || missing+=("$2"); }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    DEBIAN_FRONTEND=noninteractive "$@"
  else
    sudo -n true 2>/dev/null || say "asking sudo for: $*"
    sudo DEBIAN_FRONTEND=noninteractive "$@"
  fi
}

install_missing() {
  [ ${#missing[@]} -gt 0 ] || return 0
  local command="apt-get install -y --no-install-recommends ${missing[*]}"
  have apt-get || fail "missing: ${missing[*]}, and there is no apt-get" \
    "install them with this system's package manager, then run this again"
  if [ "$(id -u)" != 0 ] && ! have sudo; then
    fail "missing: ${missing[*]}, and this user is not root and has no sudo" \
      "let an administrator run: $command"
  fi
  say "installing ${missing[*]}"
  # Package lists are absent in images and stale on old machines: refresh only when it fails.
  if ! as_root apt-get install -y -q --no-install-recommends "${missing[@]}" >"$work/apt" 2>&1; then
    say "refreshing the package lists"
    as_root apt-get update -q >"$work/apt" 2>&1 ||
      { tail -n 5 "$work/apt" >&2; fail "apt-get update failed" "check network and proxy"; }
    as_root apt-get install -y -q --no-install-recommends "${missing[@]}" >"$work/apt" 2>&1 ||
      { tail -n 5 "$work/apt" >&2; fail "apt-get could not install ${missing[*]}"; }
  fi
}

# --- libtorch -------------------------------------------------------------------------------

uses_own_libtorch() {
  if [ -n "${LIBTORCH_USE_PYTORCH:-}" ] && [ "$LIBTORCH_USE_PYTORCH" != 0 ]; then
    say "LIBTORCH_USE_PYTORCH is set: the build uses the torch of python3"
    have python3 && python3 -c 'import torch' 2>/dev/null ||
      fail "python3 cannot import torch" "install it, or unset LIBTORCH_USE_PYTORCH"
    return 0
  fi
  [ -n "${LIBTORCH:-}" ] || return 1
  [ "$(readlink -f -- "$LIBTORCH")" != "$(readlink -f -- "$dest")" ] || return 1
  say "LIBTORCH is set: the build uses $LIBTORCH"
  [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] ||
    fail "there is no libtorch in $LIBTORCH (lib/libtorch_cpu.so)" "correct or unset LIBTORCH"
}

is_ready() {
  [ -f "$dest/build-version" ] && [ "$(cat "$dest/build-version")" = "$version" ]
}

platforms() {
  case $(uname -m) in
    x86_64) echo --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
      --platform manylinux2014_x86_64 ;;
    *) fail "there is no recipe for $(uname -m); only x86_64" \
      "unpack a libtorch $version for this machine and set LIBTORCH to it" ;;
  esac
}

check_pip_and_space() {
  python3 -m pip --version >/dev/null 2>&1 ||
    fail "python3 has no pip" "install it: apt-get install python3-pip"
  local free
  free=$(df -Pm -- "$root" | awk 'NR == 2 { print $4 }')
  [ "$free" -ge "$NEEDED_MIB" ] ||
    fail "only $free MiB are free in $root, $NEEDED_MIB MiB are needed" "free some space"
}

download_wheel() {
  local tags
  tags=$(platforms)
  say "downloading torch $version from the Python package index (about 530 MB)"
  # The tags are words, to be split.
  # shellcheck disable=SC2086
  python3 -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all: $tags \
    --implementation cp --python-version "$PYTHON_VERSION" -d "$work" "torch==$version" ||
    fail "the download of torch $version failed" \
      "check network and proxy (pip's own settings apply), and TORCH_VERSION; then run this again"
}

unpack_wheel() {
  say "unpacking libraries and headers"
  unzip -q "$work"/torch-*.whl 'torch/include/*' torch/lib/libc10.so torch/lib/libtorch_cpu.so \
    torch/lib/libgomp.so.1 'torch-*.dist-info/licenses/LICENSE' -d "$work" ||
    fail "the wheel could not be unpacked" "run this again"
  rm -f -- "$work"/torch-*.whl
  mv -- "$work"/torch-*.dist-info/licenses/LICENSE "$work/torch/LICENSE"
  # A linker script: programs link to libtorch, which is libtorch_cpu here.
  printf 'INPUT(-ltorch_cpu)\n' >"$work/torch/lib/libtorch.so"
}

# The wheel is a CUDA build: libtorch_cpu names two NVIDIA libraries, of which it calls a handful
# of functions. Ours answer every call with "no device".
make_stub() {
  local name=$1 code=$2 lib="$work/torch/lib" soname
  soname=$(readelf -d "$lib/libtorch_cpu.so" | sed -n "s/.*\[\($name\.so\.[0-9]*\)\].*/\1/p")
  [ -n "$soname" ] || return 0
  nm -D --undefined-only "$lib/libtorch_cpu.so" | awk -v tag="@$name" -v code="$code" '
    index($2, tag) {
      split($2, part, "@"); f = part[1]
      if (f ~ /GetErrorString$|GetErrorName$/)
        printf "const char *%s(int e) { (void)e; return \"CUDA is not available\"; }\n", f
      else if (f ~ /GetVersion$/)     printf "int %s(int *v) { *v = 0; return 0; }\n", f
      else if (f ~ /GetDeviceCount$/) printf "int %s(int *n) { *n = 0; return %s; }\n", f, code
      else                            printf "int %s(void) { return %s; }\n", f, code
    }' >"$work/$name.c"
  printf '%s { global: *; };\n' "$soname" >"$work/$name.map"
  cc -shared -fPIC -O1 -w "-Wl,-soname,$soname" "-Wl,--version-script=$work/$name.map" \
    -o "$lib/$soname" "$work/$name.c" ||
    fail "the stand-in for $soname could not be compiled" "install a C compiler: apt-get install gcc"
}

publish_libtorch() {
  # The marker comes last, and with it the whole directory at once: half a libtorch is never seen.
  printf '%s\n' "$version" >"$work/torch/build-version"
  if [ -L "$dest" ]; then
    rm -f -- "$dest"
  elif [ -e "$dest" ]; then
    mv -- "$dest" "$work/old"
  fi
  mv -T -- "$work/torch" "$dest"
}

make_libtorch() {
  check_pip_and_space
  download_wheel
  unpack_wheel
  make_stub libcudart 100
  make_stub libcupti 15
  publish_libtorch
  say "made libtorch $version (CPU) in $dest"
}

# --- in order -------------------------------------------------------------------------------

for argument in "$@"; do
  case $argument in
    --no-mpi) with_mpi=0 ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "unknown option $argument" "usage: launch/setup.sh [--no-mpi]" 2 ;;
  esac
done
version=${TORCH_VERSION:-$TORCH_VERSION_DEFAULT}

check_tools
own=0
if uses_own_libtorch; then own=1; fi
make=0
if [ $own = 0 ] && is_ready; then
  say "libtorch $version is in $dest"
elif [ $own = 0 ]; then
  platforms >/dev/null
  make=1
  need_command python3 python3
  need_command unzip unzip
  need_command readelf binutils
  { have python3 && python3 -m pip --version >/dev/null 2>&1; } || missing+=(python3-pip)
fi
if [ $with_mpi = 1 ] && needs_mpi_packages; then
  missing+=(libopenmpi-dev openmpi-bin libclang-dev)
fi
if [ $make = 1 ] || [ ${#missing[@]} -gt 0 ]; then
  # On the file system of the destination, so that the last step is one rename.
  work=$(mktemp -d "$root/.libtorch-setup.XXXXXX")
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
fi
install_missing
[ $make = 0 ] || make_libtorch
say "ready: cargo build, cargo test"

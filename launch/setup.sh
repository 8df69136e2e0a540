#!/usr/bin/env bash
# Sets up what a build needs on Debian or Ubuntu: MPI and libclang (feature `mpi`), and libtorch.
# Safe to run again: what is there is left alone.
#
#   launch/setup.sh [--no-mpi] [--tests]
#
#   --no-mpi   without MPI and libclang
#   --tests    also what tests of crashes need: strace, file system tools, nbdkit, faketime;
#              and Chromium, in which a test opens reports
#
#   LIBTORCH, LIBTORCH_USE_PYTORCH   an own libtorch: used, nothing is downloaded
#   TORCH_VERSION                    another version than the one that tch needs (default 2.13.0)
#
# Afterwards plain `cargo build` and `cargo test` work; nothing is to be exported.
set -euo pipefail

readonly TORCH_VERSION_DEFAULT=2.13.0
readonly PYTHON_VERSION=3.11       # of the wheel; only libraries and headers are taken from it
readonly RUST_VERSION=1.89
readonly NEEDED_MIB=1200           # wheel and unpacked files together
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dest="$root/.libtorch"
work=
with_mpi=1
with_tests=0

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf 'setup: %s\n' "$2" >&2
  exit "${3:-1}"
}
have() { command -v "$1" >/dev/null 2>&1; }
# What killed runs have left; a live one keeps its own.
remove_stale() {
  local path pid
  for path in "$root"/.libtorch-setup.*; do
    [ -d "$path" ] || continue
    pid=${path#"$root"/.libtorch-setup.}
    pid=${pid%%.*}
    if [[ $pid =~ ^[0-9]+$ ]] && [ -d "/proc/$pid" ]; then continue; fi
    rm -rf -- "$path"
  done
}
clean_up() { [ -z "$work" ] || rm -rf -- "$work"; }

# --- what the system has to bring -----------------------------------------------------------

check_tools() {
  have cargo || fail "cargo is missing" \
    "install Rust: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
  check_cargo_version
  # The demo and the tests need Python as well, so also where libtorch is there.
  need_command python3 python3
  if ! has_pip; then
    case $(command -v python3) in
      '' | /usr/bin/python3 | /bin/python3) missing+=(python3-pip) ;;
      *) check_pip ;;
    esac
  fi
  need_command c++ g++
  need_command cc gcc
}

check_cargo_version() {
  local found
  found=$(cd "$root" && cargo --version) || fail "cargo does not run" "rustup update stable"
  found=${found#cargo }
  found=${found%% *}
  [ "$(printf '%s\n' "$RUST_VERSION" "$found" | sort -V | head -n 1)" = "$RUST_VERSION" ] ||
    fail "cargo is $found ($(command -v cargo)), $RUST_VERSION or newer is needed" \
      "rustup update stable (https://rustup.rs; a distribution's own Rust may be too old)"
}

has_pip() { python3 -m pip --version >/dev/null 2>&1; }

needs_mpi_packages() {
  ! have mpicc || ! have mpirun || ! has_libclang
}

# The C interface, libclang-cpp is another library; and the headers that clang brings itself.
has_libclang() {
  if [ -n "${LIBCLANG_PATH:-}" ]; then
    [ -e "$LIBCLANG_PATH" ] ||
      fail "LIBCLANG_PATH is $LIBCLANG_PATH, which does not exist" "correct or unset it"
    return 0
  fi
  local pattern found=0
  for pattern in /usr/lib/llvm-*/lib /usr/lib/*-linux-gnu; do
    if compgen -G "$pattern/libclang.so*" >/dev/null ||
      compgen -G "$pattern/libclang-[0-9]*.so*" >/dev/null; then found=1; fi
  done
  [ $found = 1 ] && compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null
}

need_test_tools() {
  need_command strace strace
  need_command setpriv util-linux
  PATH=$PATH:/usr/sbin:/sbin
  need_command mkfs.ext4 e2fsprogs
  need_command mkfs.xfs xfsprogs
  need_command nbdkit nbdkit
  compgen -G '/usr/lib/*/nbdkit/plugins/nbdkit-python-plugin.so' >/dev/null ||
    missing+=(nbdkit-plugin-python)
  need_command nbdfuse libnbd-bin
  need_command ip iproute2
  need_command faketime faketime
  need_command fusermount3 fuse3
  need_chromium
}

# Debian's package without windows is half as large; Ubuntu has none but a snap.
need_chromium() {
  local name
  for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    ! have "$name" || return 0
  done
  missing+=(chromium-headless-shell fonts-dejavu-core)
}

missing=()
need_command() { have "$1" || missing+=("$2"); }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    env DEBIAN_FRONTEND=noninteractive "$@"
  else
    sudo env DEBIAN_FRONTEND=noninteractive "$@"
  fi
}

# Asks for the password now, where the question can be seen.
check_root() {
  [ "$(id -u)" != 0 ] || return 0
  local advice="let an administrator run: apt-get update && apt-get install -y ${missing[*]}"
  have sudo || fail "missing: ${missing[*]}, and this user is not root and has no sudo" "$advice"
  say "sudo is needed to install ${missing[*]}"
  sudo -v || fail "missing: ${missing[*]}, and sudo refused" "$advice"
}

apt() {
  # Another apt-get, as after a machine's start, is waited for.
  as_root apt-get -o DPkg::Lock::Timeout=300 -q "$@" >"$work/apt" 2>&1
}

install_missing() {
  [ ${#missing[@]} -gt 0 ] || return 0
  have apt-get || fail "missing: ${missing[*]}, and there is no apt-get" \
    "install them with this system's package manager, then run this again"
  check_root
  say "installing ${missing[*]}"
  # Package lists are absent in images and stale on old machines: refresh only when it fails.
  if ! apt install -y --no-install-recommends "${missing[@]}"; then
    say "refreshing the package lists"
    apt update ||
      { tail -n 5 "$work/apt" >&2; fail "apt-get update failed" "check network and proxy"; }
    apt install -y --no-install-recommends "${missing[@]}" ||
      { tail -n 5 "$work/apt" >&2; fail "apt-get could not install ${missing[*]}"; }
  fi
}

# A python3 of one's own (pyenv, conda, /usr/local) does not see the system's pip.
check_pip() {
  has_pip || fail "the python3 in use, $(command -v python3), has no pip" \
    "run: python3 -m ensurepip (for the system's: apt-get install python3-pip)"
}

# --- libtorch -------------------------------------------------------------------------------

uses_own_libtorch() {
  # torch-sys asks only whether it is set: 0 and nothing count as well.
  if [ -n "${LIBTORCH_USE_PYTORCH+set}" ]; then
    say "LIBTORCH_USE_PYTORCH is set (any value counts, also 0 or none): the build uses the torch of python3"
    have python3 && python3 -c 'import torch' 2>/dev/null ||
      fail "python3 cannot import torch" "install it there, or: unset LIBTORCH_USE_PYTORCH"
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

check_space() {
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
  # /tmp may be small and in memory, and a cached copy is of no further use.
  TMPDIR="$work" python3 -m pip --disable-pip-version-check --no-cache-dir download -q --no-deps --only-binary=:all: $tags \
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
  check_space
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
    --tests) with_tests=1 ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "unknown option $argument" "usage: launch/setup.sh [--no-mpi] [--tests]" 2 ;;
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
  need_command unzip unzip
  need_command readelf binutils
fi
if [ $with_mpi = 1 ] && needs_mpi_packages; then
  missing+=(libopenmpi-dev openmpi-bin libclang-dev)
fi
[ $with_tests = 0 ] || need_test_tools
remove_stale
if [ $make = 1 ] || [ ${#missing[@]} -gt 0 ]; then
  # On the file system of the destination, so that the last step is one rename.
  work=$(mktemp -d "$root/.libtorch-setup.$$.XXXXXX")
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
fi
install_missing
check_pip
[ $make = 0 ] || make_libtorch
say "ready: cargo build, cargo test"

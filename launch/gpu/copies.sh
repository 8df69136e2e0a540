# Copies of the checkout with a libtorch of their own; sourced by versions.sh and gpu-pack.sh, which
# set `root`.

# What the checkout consists of, and nothing that was built. Times of files are kept: what has not
# changed is not built again.
copy_checkout() {
  local copy=$1 entry
  mkdir -p "$copy"
  find "$copy" -mindepth 1 -maxdepth 1 ! -name .libtorch -exec rm -rf -- {} +
  find "$root" -mindepth 1 -maxdepth 1 ! -name target ! -name .git ! -name '.libtorch*' \
    ! -name .tools -print0 |
    while IFS= read -r -d '' entry; do cp -a -- "$entry" "$copy/"; done
}

# The checkout's own libtorch where it is of that version; else one in the copy.
take_libtorch() {
  local copy=$1 torch=$2 own="$root/.libtorch"
  if [ ! -e "$copy/.libtorch" ] && [ "$(cat "$own/build-version" 2>/dev/null)" = "$torch" ]; then
    ln -sfn "$(readlink -f "$own")" "$copy/.libtorch"
  fi
  TORCH_VERSION=$torch "$copy/launch/setup.sh" --no-mpi
}

#!/usr/bin/env bash
# Our saves and loads beside the peers' and the machine's own limits, in one command:
#   bash benches/peers/run.sh [--dir DIR] [--out FILE.jsonl] [--full]
# DIR (default: target/peers) is where checkpoints are written: the disk that is measured. Needs
# python3 with venv. About 15 minutes; with --full, also ranks, cold loads and more sizes, an hour.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); root=$(cd "$here/../.." && pwd)
dir=$root/target/peers out= full=
while [ $# -gt 0 ]; do
    case $1 in
        --dir) dir=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --full) full=1; shift ;;
        *) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done
mkdir -p "$dir"; dir=$(cd "$dir" && pwd)/checkpoints
out=${out:-$(dirname "$dir")/results.jsonl}
mkdir -p "$dir" "$(dirname "$out")"; : >"$out"

if [ -z "${PYTHON:-}" ]; then
    PYTHON=$root/target/peers-venv/bin/python
    [ -x "$PYTHON" ] || python3 -m venv "$root/target/peers-venv"
    "$PYTHON" -c 'import torch, numpy, safetensors, torchsnapshot' 2>/dev/null ||
        "$PYTHON" -m pip install --quiet torch==2.13.0 numpy safetensors==0.8.0 torchsnapshot==0.1.0
fi
export PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore

cd "$root"
# Built apart from other builds, and without libtorch: nothing to set up.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/peers-build}
cargo build --quiet --release --no-default-features --features cli
command=$CARGO_TARGET_DIR/release/tch-checkpoint
ours_save="tch-checkpoint=$command bench save --json --spec {spec} --dir {dir} --ranks {ranks} --layout {layout}"
ours_async="$ours_save --async --trainer"
ours_load="tch-checkpoint=$command bench {op} --json --spec {spec} --dir {dir} --ranks {ranks} --layout {layout} {cache_option}"

step() { # script and its arguments
    echo "== $(date +%T) load $(cut -d' ' -f1 /proc/loadavg): $*" >&2
    local script=$1; shift
    timeout 600 "$PYTHON" "$here/$script" --dir "$dir" --out "$out" "$@" >/dev/null ||
        echo "== ended with $?" >&2
    rm -rf "${dir:?}"/*
}
save() { step save.py --external "$ours_save" "$@"; }
load() { step load.py --external "$ours_load" --cache "$@"; }

peers=raw_direct,safetensors,torch_save,dcp,torchsnapshot
step limits.py
for workload in W1 W2 W3 W4; do save --workload $workload --peers $peers; done
for workload in W1 W2; do
    step save.py --external "$ours_async" --trainer --workload $workload --rounds 3 \
        --peers raw_direct,dcp_async_cached,torchsnapshot_async
done
reads=raw_read,raw_direct,safetensors,torch_load,dcp
load warm --workload W1 --peers $reads
load warm --workload W2 --peers $reads --rounds 3
load cold --workload W1 --peers $reads --rounds 3
if [ -n "$full" ]; then
    for layout in sharded replicated; do
        save --workload W1 --ranks 2 --layout $layout --peers $peers --rounds 3
    done
    for ranks in 2 4; do
        save --workload W2 --ranks $ranks --peers raw_direct,safetensors,dcp --rounds 3
    done
    for n in 1000 100000; do save --workload small-$n --peers $peers --rounds 3; done
    for workload in W3 W4; do load cold --workload $workload --peers $reads --rounds 3; done
    load warm --workload W1 --ranks 2 --peers $reads --rounds 3
fi
"$PYTHON" "$here/table.py" "$out"
"$PYTHON" "$here/chart.py" "$out" >"${out%.jsonl}.svg"
echo "figures: $out, picture: ${out%.jsonl}.svg" >&2

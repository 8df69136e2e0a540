"""Time PyTorch's load of a directory of many small tensors, and our import of the same one.

  python many.py --dir /data/many                              # PyTorch alone
  python many.py --dir /data/many --command target/release/tch-checkpoint

A `torch.distributed.checkpoint` directory of 20,000 float32 tensors of 1 to 16 KiB (--max-kib) is
written with PyTorch, and kept: a second run takes it as it is. Each round loads it once with
PyTorch, into tensors that were there before, and once imports it with the command into a new
checkpoint, which is verified and durable then, and is removed; by turns, so that both meet the same
machine. What PyTorch loads is compared once. Prints a line `figure: WHAT: VALUE` for the best round
of each, and for the ratio, which is the median over the rounds.
"""
import argparse
import os
import random
import statistics
import subprocess
import sys
import time
import warnings

import torch
import torch.distributed.checkpoint as dcp

from common import drop_cache, log, remove, tree_bytes

KIB = 1024
# That there is one process is on purpose.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def state(count, max_kib):
    """Tensors of sizes by chance, in layers as a model has them."""
    sizes, content = random.Random(1), torch.Generator().manual_seed(1)
    made = {}
    for i in range(count):
        elements = sizes.randrange(KIB // 4, max_kib * KIB // 4 + 1)
        made[f"layers.{i // 8}.part{i % 8}.weight"] = torch.randn(elements, generator=content)
    return made


def written(path, count, max_kib):
    """The directory, written unless it is there and whole."""
    if not os.path.exists(os.path.join(path, ".metadata")):
        log(f"writing {count} tensors with torch {torch.__version__}")
        remove(path)
        dcp.save(state(count, max_kib), checkpoint_id=path, no_dist=True)
    return path


def load(path, into):
    begun = time.perf_counter()
    dcp.load(into, checkpoint_id=path, no_dist=True)
    return time.perf_counter() - begun


def imported(command, path, out):
    remove(out)
    arguments = [command, "import", "--format", "dcp", path, "-o", out]
    begun = time.perf_counter()
    ran = subprocess.run(arguments, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if ran.returncode != 0:
        sys.exit(f"{' '.join(arguments)}: {ran.returncode}\n{ran.stderr}")
    return seconds


def check(loaded, right):
    wrong = [name for name, tensor in right.items() if not torch.equal(tensor, loaded[name])]
    if wrong or len(right) != len(loaded):
        sys.exit(f"{len(wrong)} tensors are not what was saved: {wrong[:3]}")


def figure(what, value):
    print(f"figure: {what}: {value}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", required=True, help="an empty or new directory on the disk in question")
    parser.add_argument("--command", help="our command, release build; without it PyTorch alone")
    parser.add_argument("--tensors", type=int, default=20_000)
    parser.add_argument("--max-kib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="empty the page cache before each")
    args = parser.parse_args()
    os.makedirs(args.dir, exist_ok=True)
    name = f"dcp-{args.tensors}-{args.max_kib}"
    path = written(os.path.join(args.dir, name), args.tensors, args.max_kib)
    out = os.path.join(args.dir, "imported")
    into = {name: torch.zeros_like(t) for name, t in state(args.tensors, args.max_kib).items()}
    theirs, ours = [], []
    for round_ in range(args.rounds):
        if args.cold:
            drop_cache(path)
        theirs.append(load(path, into))
        if round_ == 0:
            check(into, state(args.tensors, args.max_kib))
        if args.command:
            if args.cold:
                drop_cache(path)
            ours.append(imported(args.command, path, out))
        log(f"round {round_}: PyTorch {theirs[-1]:.2f} s", f"import {ours[-1]:.2f} s" if ours else "")
    remove(out)
    size, files = tree_bytes(path)
    what = f"{args.tensors} tensors, {size / 1e6:.0f} MB in {files} files, {'cold' if args.cold else 'warm'}"
    figure(f"{what}: torch {torch.__version__} loads in", f"{min(theirs):.2f} s")
    if ours:
        ratio = statistics.median(t / o for t, o in zip(theirs, ours))
        figure(f"{what}: import --format dcp into a durable checkpoint in", f"{min(ours):.2f} s")
        figure(f"{what}: PyTorch's load over our import", f"{ratio:.1f}")


if __name__ == "__main__":
    main()

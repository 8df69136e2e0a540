#!/usr/bin/env python3
"""torch.save and torch.distributed.checkpoint with the tensors of `gpu_check figures`, timed the same
way: medians, with the device idle before and after. Prints one line of JSON."""

import argparse
import json
import os
import shutil
import statistics
import sys
import time


def model(mib, device):
    """As examples/gpu_check/tensors.rs: bf16 weights with two moments in f32."""
    import torch

    left, number, tensors = (mib << 20) // 10, 0, {}
    while left > 0:
        size = min((8 << 20, 2 << 20, 1 << 19)[number % 3], left)
        tensors[f"layer{number}.weight"] = torch.randn(size, device=device).to(torch.bfloat16)
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"layer{number}.{moment}"] = torch.randn(size, device=device)
        left, number = left - size, number + 1
    return tensors


def synchronize(device):
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(device, work):
    synchronize(device)
    begun = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - begun, result


def sync_files(folder):
    """Ours are durable when a save returns; so are these then."""
    for root, _, files in os.walk(folder):
        for name in files:
            handle = os.open(os.path.join(root, name), os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def once(flags, tensors, writer):
    """`writer` keeps the host memory of its copies, as ours does."""
    import torch
    import torch.distributed.checkpoint as dcp

    plain, folder = os.path.join(flags.dir, "plain.pt"), os.path.join(flags.dir, "dcp")
    fresh = lambda: shutil.rmtree(folder, ignore_errors=True)
    like = lambda: {name: torch.ones_like(tensor) for name, tensor in tensors.items()}

    def save_torch():
        torch.save(tensors, plain)
        sync_files(flags.dir)

    def save_dcp():
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder, sync_files=True), no_dist=True)

    times = {"save_torch": timed(flags.device, save_torch)[0]}
    load_torch = lambda: torch.load(plain, map_location=flags.device, weights_only=True)
    times["load_torch"], loaded = timed(flags.device, load_torch)
    check_same(tensors, loaded, "torch.load")
    del loaded
    os.remove(plain)
    fresh()
    times["save_dcp"] = timed(flags.device, save_dcp)[0]
    into = like()
    times["load_dcp"] = timed(flags.device, lambda: dcp.load(into, checkpoint_id=folder, no_dist=True))[0]
    check_same(tensors, into, "DCP")
    del into
    fresh()
    try:
        times["stall_dcp_async"], pending = timed(
            flags.device, lambda: dcp.async_save(tensors, checkpoint_id=folder, storage_writer=writer, no_dist=True)
        )
        getattr(pending, "upload_completion", pending).result()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        # Some versions want a process group for it.
        times["why_no_async"] = str(error)[:200]
    fresh()
    return times


def check_same(tensors, loaded, who):
    """A figure of something that is wrong is none."""
    import torch

    for name, tensor in tensors.items():
        if not torch.equal(tensor, loaded[name]):
            raise RuntimeError(f"{who} loaded another {name}")


def make_writer(folder):
    import torch.distributed.checkpoint as dcp

    return dcp.FileSystemWriter(folder, sync_files=True, cache_staged_state_dict=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--mib", type=int, default=4096)
    parser.add_argument("--times", type=int, default=3)
    flags = parser.parse_args()
    begun = time.perf_counter()
    os.makedirs(flags.dir, exist_ok=True)
    line = {"check": "peers", "device": flags.device}
    try:
        import torch

        # What is done once in a process is not timed, of either side: imports, kernels, buffers.
        writer = make_writer(os.path.join(flags.dir, "dcp"))
        tensors = model(flags.mib, flags.device)
        once(flags, tensors, writer)
        runs = [once(flags, tensors, writer) for _ in range(max(flags.times, 1))]
        seconds = {n: statistics.median(r[n] for r in runs) for n in runs[0] if isinstance(runs[0][n], float)}
        detail = {"torch": torch.__version__, "seconds": seconds, "why_no_async": runs[0].get("why_no_async")}
        line |= {"verdict": "passed", "detail": detail}
    except Exception as error:  # noqa: BLE001 - whatever it is belongs into the results
        line |= {"verdict": "failed", "detail": f"{type(error).__name__}: {error}"[:500]}
    line["seconds"] = time.perf_counter() - begun
    print(json.dumps(line, separators=(",", ":")))
    return 0 if line["verdict"] == "passed" else 4


if __name__ == "__main__":
    sys.exit(main())

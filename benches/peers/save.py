"""Time saves, round robin, synchronous and asynchronous, beside a raw write of the same bytes.

  python save.py --dir /data/ck --workload W1 --peers raw_direct,torch_save,dcp
  python save.py --ranks 2 --dir ... --layout sharded --peers raw_direct,dcp
  python save.py ... --external 'tch-checkpoint=target/release/tch-checkpoint bench save --json --spec {spec} --dir {dir}'

Every round runs each peer once, in order; what a run wrote is deleted and the disk synced before
the next, outside the timing. With --durable yes, the time runs till every file and directory of the
checkpoint is fsynced; with no, until the call returns with the data in the page cache. One JSON line
per peer and op on stdout; `vs_raw` is the median over rounds of this peer's time over the raw
write's in the same round (the first peer in --peers whose name starts with raw_). Async peers give
two ops: `stall` (until the caller goes on) and `total` (until durable), and `trainer`: the caller's
step rate meanwhile over its rate when idle.

An external command is run once a round; it must make the workload from {spec}, save it once to
{dir} (durably if {durable} is yes) and print one JSON line with `seconds`, and optionally `stall`,
`trainer` and `peak_rss_mb`, for that save alone. With --ranks it is started once, and starts its
own {ranks} ranks for {layout}.
"""
import argparse
import json
import os
import shlex
import statistics
import subprocess
import tempfile
import time

import common as c
import savers as ps
import workloads


# ---- one run of each kind; all return {op: seconds} and fill `mem`

def run_sync(x, peer, durable, mem):
    path = x.path(peer)
    x.barrier()
    with c.Timed() as t:
        ps.SYNC[peer](x, path, durable)
        x.barrier()
        if durable and x.rank == 0:
            c.fsync_tree(path)
        x.barrier()
    mem.append((t.peak_mb, t.extra_mb, t.cpu))
    return {"save": t.seconds}


def _steps(torch, until):
    """A stand-in for training: small one-thread matmuls until `until()`; steps/s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.full((192, 192), 0.01)
    n, t0 = 0, time.perf_counter()
    while not until():
        for _ in range(4):
            a = (a @ a).clamp_(-1, 1)
        n += 4
    rate = n / (time.perf_counter() - t0)
    torch.set_num_threads(threads)
    return rate


def run_async(x, peer, durable, mem):
    path = x.path(peer)
    if x.a.trainer:
        end = time.perf_counter() + 0.4
        idle = _steps(x.torch, lambda: time.perf_counter() > end)
    x.barrier()
    with c.Timed() as t:
        wait, done = ps.ASYNC[peer](x, path, durable)
        stall = time.perf_counter() - t._t
        rate = None
        if done is not None and x.a.trainer:
            rate = _steps(x.torch, done)
        wait()
        x.barrier()
        if x.rank == 0:
            c.fsync_tree(path)
        x.barrier()
    mem.append((t.peak_mb, t.extra_mb, t.cpu))
    out = {"stall": stall, "total": t.seconds}
    if rate:
        out["trainer"] = rate / idle
    return out


def run_external(x, cmd, peer, durable, mem, spec_file):
    path = x.path(peer)
    x.barrier()
    if x.rank:
        x.barrier()
        mem.append((0, 0, 0))
        return {}
    argv = [w.format(spec=spec_file, dir=path, durable="yes" if durable else "no",
                     ranks=x.world, layout=x.a.layout) for w in shlex.split(cmd)]
    res = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True)
    line = json.loads(res.stdout.strip().splitlines()[-1])
    x.barrier()
    mem.append((line.get("peak_rss_mb", 0), 0, line.get("cpu", 0)))
    out = {"save": line["seconds"]}
    if line.get("stall"):
        out = {"stall": line["stall"], "total": line["seconds"]}
    if line.get("trainer"):
        out["trainer"] = line["trainer"]
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--dir", required=True, help="where checkpoints go (emptied of its peers' names)")
    ap.add_argument("--workload", required=True, help="W1..W4, small-N or a spec file")
    ap.add_argument("--peers", default="raw_direct,raw_writev,torch_save,safetensors,dcp")
    ap.add_argument("--external", action="append", default=[], metavar="NAME=CMD")
    ap.add_argument("--durable", choices=["yes", "no"], default="yes")
    ap.add_argument("--layout", choices=["replicated", "sharded"], default="sharded",
                    help="with more than one rank: DDP-like or halves (DTensor)")
    ap.add_argument("--ranks", type=int, default=1)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--warmup", type=int, default=1)
    ap.add_argument("--trainer", action="store_true",
                    help="async: run small matmuls meanwhile and give their rate")
    ap.add_argument("--out", help="append the JSON lines to this file too")
    a = ap.parse_args()
    code = c.launch(a.ranks)
    if code is not None:
        return code
    os.makedirs(a.dir, exist_ok=True)
    durable = a.durable == "yes"
    sp = workloads.spec(a.workload)
    x = ps.Ctx(a, sp)
    ext = dict(e.split("=", 1) for e in a.external)
    peers = [p for p in a.peers.split(",") if p] + list(ext)
    spec_file = None
    if ext:
        fd, spec_file = tempfile.mkstemp(suffix=".json")
        with os.fdopen(fd, "w") as f:
            json.dump(sp, f)
    times, mems, files, bad = {}, {p: [] for p in peers}, {}, {}
    loads = []
    ps._views(x, x.mine)
    for r in range(a.warmup + a.rounds):
        for p in peers:
            if p in bad:
                continue
            if x.rank == 0:
                c.clean(x.path(p))
            x.barrier()
            mem = []
            try:
                if p in ext:
                    got = run_external(x, ext[p], p, durable, mem, spec_file)
                elif p in ps.ASYNC:
                    got = run_async(x, p, durable, mem)
                else:
                    got = run_sync(x, p, durable, mem)
            except Exception as e:  # a peer that cannot do this is a result too
                bad[p] = f"{type(e).__name__}: {e}"[:300]
                c.log(p, bad[p])
                continue
            finally:
                if x.rank == 0:
                    if p not in bad:
                        files[p] = c.tree_bytes(x.path(p))
                    c.clean(x.path(p))
            mems[p] += mem  # the warm-up too: later runs reuse what the heap kept
            if r >= a.warmup:
                loads.append(c.load1())
                for op, s in got.items():
                    times.setdefault((p, op), []).append(s)
    if spec_file:
        os.unlink(spec_file)
    if x.rank == 0:
        raw = next((p for p in peers if p.startswith("raw_") and (p, "save") in times), None)
        base = dict(workload=a.workload, tensors=len(sp["tensors"]), ranks=x.world,
                    layout=a.layout if x.world > 1 else "single", durable=a.durable,
                    bytes=x.nbytes)
        for (p, op), ts in times.items():
            if op == "trainer":
                c.emit(a.out, peer=p, op=op, **base, rate=round(statistics.median(ts), 3))
                continue
            m = mems[p]
            extra = {}
            if raw:
                extra["vs_raw"] = round(statistics.median(
                    s / w for s, w in zip(ts, times[(raw, "save")])), 3)
                extra["raw"] = raw
            c.emit(a.out, peer=p, op=op, **base, **c.summary(ts, x.nbytes), **extra,
                   cpu_s=round(statistics.median(v[2] for v in m[a.warmup:]), 3),
                   peak_rss_mb=round(max(v[0] for v in m), 1),
                   extra_rss_mb=round(max(v[1] for v in m), 1),
                   file_bytes=files.get(p, (0, 0))[0], files=files.get(p, (0, 0))[1],
                   load1=round(statistics.median(loads), 2))
        for p, why in bad.items():
            c.emit(a.out, peer=p, op="save", **base, error=why)
    if x.world > 1 or x.torch.distributed.is_initialized():
        x.torch.distributed.destroy_process_group()


if __name__ == "__main__":
    raise SystemExit(main())

"""Time the peers' loads, round robin, beside raw reads of the same bytes.

  python load.py --dir /data/ck --workload W1 --cache cold --peers raw_direct,torch_load,dcp
  python load.py --ranks 2 --dir ... --layout sharded --peers raw_read,dcp
  ... --save-layout replicated --layout sharded      # load by other shards than saved

Each peer's checkpoint is saved once, untimed; every round then loads it once.
Two ops: `load`, until the call returns (a mapped file is then still unread),
and `load_into`, until the bytes are in tensors that were there before, as when
a model is resumed; DCP, torchsnapshot and the raw reads only have the latter.
The first load of each peer is compared byte by byte with what was saved.
--cache cold empties the page cache before every load; warm reads it once first.

An external command ({spec}, {dir}, {cache}, {ranks}, {layout}) is first run with {op} = save, then
once a round with {op} = load, where {cache_option} is --cache=warm or cold; it prints one JSON line
with `seconds`.
"""
import argparse
import ctypes
import json
import logging
import os
import shlex
import statistics
import subprocess
import tempfile
import threading
import warnings

import common as c
import savers as ps
import workloads

warnings.filterwarnings("ignore")
logging.disable(logging.INFO)


def _file(x, peer, suffix):
    """Our rank's file, or rank 0's where it wrote a replicated state alone."""
    rank = x.rank if x.save_sharded or suffix == ".bin" else 0
    return os.path.join(x.path(peer), f"rank{rank}{suffix}")


def _copy(dst, src):
    for n, t in dst.items():
        t.copy_(src[n])


# ---- raw reads into the destination tensors (each rank reads its own file)

def raw_read(x, peer):
    fd = os.open(_file(x, peer, ".bin"), os.O_RDONLY)

    def read(batch):
        n = os.readv(fd, batch)
        if n == 0:
            raise EOFError(peer)
        return n

    ps.vectored(ps._views(x, x.dst_mine), read)
    os.close(fd)


def raw_direct(x, peer, depth=3, block=8 << 20):
    """O_DIRECT: one thread reads 8 MiB blocks, one copies them out."""
    bufs = ps.aligned(x, depth, block)
    fd = os.open(_file(x, peer, ".bin"), os.O_RDONLY | os.O_DIRECT)
    total = os.fstat(fd).st_size
    free, ready = threading.Semaphore(depth), threading.Semaphore(0)

    def reader():
        for k in range((total + block - 1) // block):
            free.acquire()
            want, done = min(block, total - k * block), 0
            while done < want:
                done += os.preadv(fd, [bufs[k % depth].view[done:]], k * block + done)
            ready.release()

    th = threading.Thread(target=reader)
    th.start()
    k, pos = 0, block
    for _, t in x.dst_mine:
        dst, left = t.data_ptr(), t.nbytes
        while left:
            if pos == block:
                if k:
                    free.release()
                ready.acquire()
                k, pos = k + 1, 0
            n = min(left, block - pos)
            ctypes.memmove(dst, bufs[(k - 1) % depth].addr + pos, n)
            dst, left, pos = dst + n, left - n, pos + n
    th.join()
    os.close(fd)


# ---- peers; a loader returns {name: tensor}, or None where it filled x.dst

def torch_load(x, peer):
    return x.torch.load(_file(x, peer, ".pt"))


def torch_load_mmap(x, peer):
    return x.torch.load(_file(x, peer, ".pt"), mmap=True)


def safetensors(x, peer):
    from safetensors.torch import load_file
    return load_file(_file(x, peer, ".safetensors"))


def safetensors_pread(x, peer):
    from safetensors.torch import load_file
    return load_file(_file(x, peer, ".safetensors"), backend="pread")


def fastsafetensors(x, peer):
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup
    ld = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
    ld.add_filenames({0: [_file(x, peer, ".safetensors")]})
    fb = ld.copy_files_to_device()
    out = {n: fb.get_tensor(n) for n in x.dst}
    x.keep["fast"] = (ld, fb)  # closed after the timing
    return out


def runai(x, peer):
    from runai_model_streamer import SafetensorsStreamer
    with SafetensorsStreamer() as st:
        st.stream_file(_file(x, peer, ".safetensors"))
        for name, t in st.get_tensors():
            x.dst[name].copy_(t)


def dcp(x, peer):
    import torch.distributed.checkpoint as d
    d.load(x.dist_state(x.dst), checkpoint_id=x.path(peer), no_dist=x.world == 1)


def torchsnapshot(x, peer):
    from torchsnapshot import Snapshot, StateDict
    sd = StateDict(**x.dst)
    Snapshot(x.path(peer)).restore({"s": sd})
    for n, t in x.dst.items():  # filled in place where it could be
        if sd[n] is not t:
            t.copy_(sd[n])


def tensorizer(x, peer):
    from tensorizer import TensorDeserializer
    with TensorDeserializer(_file(x, peer, ".tensors"), device="cpu") as td:
        return dict(td.items())


def orbax(x, peer):
    import orbax.checkpoint as ocp
    ck = x.keep.get("orbax") or ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    x.keep["orbax"] = ck
    like = ps._jax_state(x)
    args = ocp.args.PyTreeRestore(
        like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
    import jax
    jax.block_until_ready(ck.restore(os.path.abspath(x.path(peer)), args=args))
    return {}


# loader -> (function, the saver it reads from)
LOADERS = {
    "raw_read": (raw_read, "raw_writev"), "raw_direct": (raw_direct, "raw_direct"),
    "torch_load": (torch_load, "torch_save"), "torch_load_mmap": (torch_load_mmap, "torch_save"),
    "safetensors": (safetensors, "safetensors"),
    "safetensors_pread": (safetensors_pread, "safetensors"),
    "fastsafetensors": (fastsafetensors, "safetensors"), "runai": (runai, "safetensors"),
    "dcp": (dcp, "dcp"), "torchsnapshot": (torchsnapshot, "torchsnapshot"),
    "tensorizer": (tensorizer, "tensorizer"), "orbax": (orbax, "orbax"),
}
INTO_ONLY = {"raw_read", "raw_direct", "runai", "dcp", "torchsnapshot"}
NEW_ONLY = {"orbax"}  # always new arrays


def _close_fast(x):
    if "fast" in x.keep:
        for o in reversed(x.keep.pop("fast")):
            o.close()


def run(x, peer, op, mem):
    f, saver = LOADERS[peer]
    x.barrier()
    with c.Timed() as t:
        got = f(x, saver)
        if op == "load_into" and got:
            _copy(x.dst, got)
        x.barrier()
    mem.append((t.peak_mb, t.extra_mb, t.cpu))
    del got
    _close_fast(x)
    return t.seconds


def verify(x, peer, op):
    u8 = x.torch.uint8
    if peer.startswith("raw_"):
        want = dict(x.mine)
        pairs = [(n, t, want[n]) for n, t in x.dst_mine]
    else:
        want = x.want if x.want is not None else x.local
        pairs = [(n, t, want[n]) for n, t in x.dst.items()]
    for n, got, ref in pairs:
        if not x.torch.equal(got.reshape(-1).view(u8), ref.reshape(-1).view(u8)):
            raise AssertionError(f"{peer}: {n} differs")


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--dir", required=True)
    ap.add_argument("--workload", required=True)
    ap.add_argument("--peers", default="raw_direct,raw_read,torch_load,torch_load_mmap,safetensors,dcp")
    ap.add_argument("--external", action="append", default=[], metavar="NAME=CMD")
    ap.add_argument("--cache", choices=["cold", "warm"], default="warm")
    ap.add_argument("--layout", choices=["replicated", "sharded"], default="sharded")
    ap.add_argument("--save-layout", choices=["replicated", "sharded"],
                    help="how it was saved, where that is another layout (DCP only)")
    ap.add_argument("--ranks", type=int, default=1)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--warmup", type=int, default=1)
    ap.add_argument("--out")
    a = ap.parse_args()
    code = c.launch(a.ranks)
    if code is not None:
        return code
    os.makedirs(a.dir, exist_ok=True)
    load_layout, a.layout = a.layout, a.save_layout or a.layout
    sp = workloads.spec(a.workload)
    x = ps.Ctx(a, sp)
    x.save_sharded = x.sharded
    ext = dict(e.split("=", 1) for e in a.external)
    peers = [p for p in a.peers.split(",") if p]
    spec_file = None
    if ext:
        fd, spec_file = tempfile.mkstemp(suffix=".json")
        with os.fdopen(fd, "w") as f:
            json.dump(sp, f)

    def external(p, op):
        x.barrier()
        if x.rank:
            x.barrier()
            return {"seconds": 0}
        argv = [w.format(spec=spec_file, dir=x.path(p), op=op, cache=a.cache,
                         ranks=x.world, layout=load_layout,
                         cache_option=f"--cache={a.cache}" if op == "load" else "")
                for w in shlex.split(ext[p])]
        argv = [w for w in argv if w]
        r = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True)
        x.barrier()
        return json.loads(r.stdout.strip().splitlines()[-1])

    bad = {}
    for saver in dict.fromkeys(LOADERS[p][1] for p in peers):
        if x.rank == 0:
            c.clean(x.path(saver))
        x.barrier()
        try:
            ps.SYNC[saver](x, x.path(saver), True)
        except Exception as e:
            bad.update({p: f"save: {e}"[:300] for p in peers if LOADERS[p][1] == saver})
        x.barrier()
    for p in ext:
        external(p, "save")

    # what is loaded: our shards or everything; x.want is what must come out
    x.want = None
    world = x.world if load_layout == "sharded" and x.world > 1 else 1
    if (world > 1) != x.sharded:
        x.want = workloads.build(sp, x.rank, world)
        x.sharded = world > 1
    x.dst = workloads.build(sp, x.rank, world, empty=True)
    if x.save_sharded == x.sharded:
        x.dst_mine = [(n, x.dst[n]) for n, _ in x.mine]  # a raw rank reads what it wrote
    else:
        peers = [p for p in peers if p == "dcp"]

    times, mems, loads, how = {}, {}, [], a.cache
    work = [(p, op) for p in peers
            for op in ("load", "load_into")
            if not (op == "load" and p in INTO_ONLY or op == "load_into" and p in NEW_ONLY)]
    for r in range(a.warmup + a.rounds):
        for p, op in work + [(p, "external") for p in ext]:
            if p in bad:
                continue
            mem = []
            try:
                if r == 0:
                    for t in x.dst.values():
                        t.zero_()
                where = x.path(p if op == "external" else LOADERS[p][1])
                if a.cache == "cold":
                    if x.rank == 0:
                        how = c.drop_cache(where)
                elif r == 0 and op != "external":
                    run(x, p, op, [])
                if op == "external":
                    line = external(p, "load")
                    s = line["seconds"]
                    mem.append((line.get("peak_rss_mb", 0), 0, line.get("cpu", 0)))
                else:
                    s = run(x, p, op, mem)
                    if r == 0 and op == "load_into":
                        verify(x, p, op)
            except Exception as e:
                bad[p] = f"{type(e).__name__}: {e}"[:300]
                c.log(p, bad[p])
                continue
            mems.setdefault((p, op), []).extend(mem)
            if r >= a.warmup:
                loads.append(c.load1())
                times.setdefault((p, op), []).append(s)
    if x.rank == 0:
        raw = next(((p, o) for p, o in work if p.startswith("raw_") and (p, o) in times), None)
        base = dict(workload=a.workload, tensors=len(sp["tensors"]), ranks=x.world,
                    layout=load_layout if x.world > 1 else "single", cache=how, bytes=x.nbytes)
        if a.save_layout:
            base["saved"] = a.save_layout
        for (p, op), ts in times.items():
            extra = {}
            if raw:
                extra = dict(vs_raw=round(statistics.median(
                    s / w for s, w in zip(ts, times[raw])), 3), raw=raw[0])
            m = mems[(p, op)]
            c.emit(a.out, peer=p, op="load_into" if op == "external" else op, **base,
                   **c.summary(ts, x.nbytes), **extra,
                   cpu_s=round(statistics.median(v[2] for v in m[a.warmup:]), 3),
                   peak_rss_mb=round(max(v[0] for v in m), 1),
                   extra_rss_mb=round(max(v[1] for v in m), 1),
                   load1=round(statistics.median(loads), 2))
        for p, why in bad.items():
            c.emit(a.out, peer=p, op="load", **base, error=why)
        for p in set(LOADERS[q][1] for q in LOADERS) | set(ext):
            c.remove(x.path(p))
    if spec_file:
        os.unlink(spec_file)
    if x.world > 1:
        x.barrier()
        x.torch.distributed.destroy_process_group()


if __name__ == "__main__":
    raise SystemExit(main())

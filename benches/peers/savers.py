"""How each peer saves: the raw writes first, which are the limit, then synchronous and asynchronous savers."""
import ctypes
import logging
import mmap
import os
import threading
import warnings

import workloads

warnings.filterwarnings("ignore")
logging.disable(logging.INFO)


class Ctx:
    """What a saver gets: the state and where to put it."""

    def __init__(self, a, sp):
        import torch
        self.torch, self.a, self.spec = torch, a, sp
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.keep = {}  # state a peer keeps between its saves
        if self.world > 1:
            store = os.environ.get("PEERS_STORE")  # or torchrun's own way
            torch.distributed.init_process_group(
                "gloo", rank=self.rank, world_size=self.world,
                init_method=f"file://{store}" if store else None)
        sharded = self.world > 1 and a.layout == "sharded"
        self.local = workloads.build(sp, self.rank, self.world if sharded else 1)
        self.sharded = sharded
        if sharded:
            # every rank writes its rows of each tensor
            self.mine = list(self.local.items())
        else:
            # whole tensors, shared out by bytes: the least a rank could write
            self.mine, bins = [], [0] * self.world
            for n, t in sorted(self.local.items(), key=lambda kv: -kv[1].nbytes):
                r = bins.index(min(bins))
                bins[r] += t.nbytes
                if r == self.rank:
                    self.mine.append((n, t))
        self.my_bytes = sum(t.nbytes for _, t in self.mine)
        self.nbytes = workloads.total_bytes(sp)

    def dist_state(self, src=None):
        """What DCP is given: plain tensors, or DTensors of our rows."""
        src = self.local if src is None else src
        if not self.sharded:
            return dict(src)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard
        mesh = self.keep.setdefault("mesh", None) or init_device_mesh("cpu", (self.world,))
        self.keep["mesh"] = mesh
        out = {}
        for name, shape, _ in self.spec["tensors"]:
            stride = [1] * len(shape)
            for i in range(len(shape) - 2, -1, -1):
                stride[i] = stride[i + 1] * shape[i + 1]
            out[name] = DTensor.from_local(src[name], mesh, [Shard(0)], run_check=False,
                                           shape=self.torch.Size(shape), stride=tuple(stride))
        return out

    def barrier(self):
        if self.world > 1:
            self.torch.distributed.barrier()

    def path(self, peer):
        return os.path.join(self.a.dir, peer)

    def rank_file(self, path, suffix):
        os.makedirs(path, exist_ok=True)
        return os.path.join(path, f"rank{self.rank}{suffix}")


# ---- raw writes: the limit the peers are held against

def _views(x, mine):
    """memoryviews of the tensors' bytes, made once: no part of the limit."""
    key = ("views", id(mine))
    if key not in x.keep:
        x.keep[key] = [memoryview(t.view(x.torch.uint8).reshape(-1).numpy())
                       for _, t in mine if t.nbytes]
    return list(x.keep[key])


def vectored(views, call):
    """Calls `call` with batches of views until it has moved all bytes; it returns how many."""
    i = 0
    while i < len(views):
        batch = views[i:i + 1024]
        n = call(batch)
        for v in batch:
            if n >= len(v):
                n -= len(v)
                i += 1
            else:
                views[i] = v[n:]
                break


def raw_writev(x, path, durable):
    """writev(2) of the tensors in place to one file per rank (buffered)."""
    fd = os.open(x.rank_file(path, ".bin"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    vectored(_views(x, x.mine), lambda batch: os.writev(fd, batch))
    if durable:
        os.fsync(fd)
    os.close(fd)


class _Aligned:
    def __init__(self, n):
        self.map = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.map)
        self.addr = ctypes.addressof(ctypes.c_char.from_buffer(self.map))


def aligned(x, depth, block):
    """Blocks for O_DIRECT, made once."""
    bufs = x.keep.setdefault("direct", [])
    while len(bufs) < depth:
        bufs.append(_Aligned(block))
    return bufs


def raw_direct(x, path, durable, depth=3, block=8 << 20):
    """O_DIRECT of 8 MiB blocks: one thread packs tensors, one writes."""
    bufs = aligned(x, depth, block)
    fd = os.open(x.rank_file(path, ".bin"),
                 os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o644)
    total = x.my_bytes
    os.posix_fallocate(fd, 0, max(1, (total + 4095) // 4096 * 4096))
    free, full = threading.Semaphore(depth), []
    ready = threading.Semaphore(0)

    def writer():
        off = 0
        for k in range((total + block - 1) // block):
            ready.acquire()
            n = min(block, (total - off + 4095) // 4096 * 4096)
            done = 0
            while done < n:
                done += os.pwrite(fd, bufs[k % depth].view[done:n], off + done)
            off += n
            free.release()

    th = threading.Thread(target=writer)
    th.start()
    k = fill = 0
    free.acquire()
    for _, t in x.mine:
        src, left = t.data_ptr(), t.nbytes
        while left:
            n = min(left, block - fill)
            ctypes.memmove(bufs[k % depth].addr + fill, src, n)
            src, left, fill = src + n, left - n, fill + n
            if fill == block:
                ready.release()
                k, fill = k + 1, 0
                free.acquire()
    if fill:
        ready.release()
    th.join()
    os.ftruncate(fd, total)
    if durable:
        os.fsync(fd)
    os.close(fd)


# ---- synchronous peers

def _rank_state(x):
    """One process per file: a replicated state is saved by rank 0 alone."""
    if x.sharded or x.world == 1:
        return x.local
    return x.local if x.rank == 0 else None


def torch_save(x, path, durable):
    sd = _rank_state(x)
    if sd is not None:
        x.torch.save(sd, x.rank_file(path, ".pt"))


def torch_save_nocrc(x, path, durable):
    from torch.serialization import set_crc32_options
    set_crc32_options(False)
    try:
        torch_save(x, path, durable)
    finally:
        set_crc32_options(True)


def safetensors(x, path, durable):
    from safetensors.torch import save_file
    sd = _rank_state(x)
    if sd is not None:
        save_file(sd, x.rank_file(path, ".safetensors"))


def _dcp(x, path, durable, planner=None, **kw):
    import torch.distributed.checkpoint as dcp
    dcp.save(x.dist_state(), no_dist=x.world == 1, planner=planner,
             storage_writer=dcp.FileSystemWriter(path, sync_files=durable, **kw))


def dcp(x, path, durable):
    _dcp(x, path, durable)


def dcp_t2(x, path, durable):
    _dcp(x, path, durable, thread_count=2)


def dcp_cached(x, path, durable):
    """DCP with its plan cache on, as a training loop would have it."""
    import torch.distributed.checkpoint as dcp
    _dcp(x, path, durable, planner=dcp.DefaultSavePlanner(enable_plan_caching=True))


def dcp_safetensors(x, path, durable):
    from torch.distributed.checkpoint.filesystem import SerializationFormat
    _dcp(x, path, durable, serialization_format=SerializationFormat.SAFETENSORS)


def torchsnapshot(x, path, durable):
    from torchsnapshot import Snapshot, StateDict
    Snapshot.take(path, {"s": StateDict(**x.local)},
                  replicated=["**"] if x.world > 1 and not x.sharded else None)


def tensorizer(x, path, durable):
    from tensorizer import TensorSerializer
    sd = _rank_state(x)
    if sd is not None:
        s = TensorSerializer(x.rank_file(path, ".tensors"))
        s.write_state_dict(sd)
        s.close()


def _jax_state(x):
    if "jax" not in x.keep:
        import jax
        out = {}
        for n, t in x.local.items():
            if t.dtype == x.torch.bfloat16:
                import ml_dtypes
                a = t.view(x.torch.uint8).numpy().view(ml_dtypes.bfloat16)
            else:
                a = t.numpy()
            out[n.replace("/", ".")] = jax.device_put(a)
        jax.block_until_ready(out)
        x.keep["jax"] = out
    return x.keep["jax"]


def orbax(x, path, durable):
    import orbax.checkpoint as ocp
    ck = x.keep.get("orbax") or ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    x.keep["orbax"] = ck
    ck.save(os.path.abspath(path), args=ocp.args.PyTreeSave(_jax_state(x)))


# ---- asynchronous peers: return a function that waits for the end

def dcp_async(x, path, durable):
    import torch.distributed.checkpoint as dcp
    r = dcp.async_save(x.dist_state(), no_dist=x.world == 1,
                       storage_writer=None, checkpoint_id=path)
    f = getattr(r, "upload_completion", r)
    return f.result, f.done


def _stager(x, shared):
    """A stager that keeps its buffers from one save to the next."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    key = f"stager{shared}"
    if key not in x.keep:
        x.keep[key] = DefaultStager(StagingOptions(False, shared, False, False))
    return x.keep[key]


def dcp_async_cached(x, path, durable):
    import torch.distributed.checkpoint as dcp
    r = dcp.async_save(x.dist_state(), no_dist=x.world == 1, checkpoint_id=path,
                       async_stager=_stager(x, False))
    f = getattr(r, "upload_completion", r)
    return f.result, f.done


def dcp_async_proc(x, path, durable):
    """async_save by a separate process, staged in shared memory."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
    if not dist.is_initialized():
        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    r = dcp.async_save(x.dist_state(), checkpoint_id=path, async_stager=_stager(x, True),
                       async_checkpointer_type=AsyncCheckpointerType.PROCESS)
    f = getattr(r, "upload_completion", r)
    return f.result, f.done


def torchsnapshot_async(x, path, durable):
    from torchsnapshot import Snapshot, StateDict
    p = Snapshot.async_take(path, {"s": StateDict(**x.local)},
                            replicated=["**"] if x.world > 1 and not x.sharded else None)
    return p.wait, p.done


def orbax_async(x, path, durable):
    import orbax.checkpoint as ocp
    ck = x.keep.get("orbax_async") or ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
    x.keep["orbax_async"] = ck
    ck.save(os.path.abspath(path), args=ocp.args.PyTreeSave(_jax_state(x)))
    return ck.wait_until_finished, None


SYNC = {f.__name__: f for f in (
    raw_writev, raw_direct, torch_save, torch_save_nocrc, safetensors, dcp, dcp_t2,
    dcp_cached, dcp_safetensors, torchsnapshot, tensorizer, orbax)}
ASYNC = {f.__name__: f for f in (
    dcp_async, dcp_async_cached, dcp_async_proc, torchsnapshot_async, orbax_async)}

"""What PyTorch's own reader of Hugging Face directories makes of checkpoints.

    pytorch_reads.py RANKS EXPECTED CHECKPOINT...

EXPECTED holds `tensors.json`, a list of {name, dtype, shape, split}, and the bytes of each tensor
as `<index>.bin`. Each checkpoint is loaded by that many processes: one has whole tensors, more have
DTensors, split along dimension `split` (null: on every rank). All memory is 0xEE beforehand. A line
is printed for each checkpoint: `equal`, `differs: NAMES` or `refused: ERROR`, and at first versions.
"""
import json, os, sys
import safetensors, torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

KINDS = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
         "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32,
         "U32": torch.uint32, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64,
         "U64": torch.uint64, "C64": torch.complex64, "F8_E5M2": torch.float8_e5m2,
         "F8_E4M3": torch.float8_e4m3fn}


def bytes_of(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def unfilled(shape, kind):
    memory = torch.full((torch.Size(shape).numel() * kind.itemsize,), 0xEE, dtype=torch.uint8)
    return memory.view(kind).reshape(shape)


def chunk(whole, dim, rank, ranks):
    """The part of a rank, as DTensor splits: the first ranks have the longer ones."""
    parts = torch.chunk(whole, ranks, dim)
    nothing = whole.narrow(dim, 0, 0)
    return (list(parts) + [nothing] * ranks)[rank].contiguous()


def destination(entry, whole, mesh):
    if mesh is None:
        return unfilled(entry["shape"], whole.dtype)
    dim = entry["split"]
    part = whole if dim is None else chunk(whole, dim, mesh.get_local_rank(), mesh.size())
    place = Replicate() if dim is None else Shard(dim)
    local = unfilled(part.shape, whole.dtype)
    return DTensor.from_local(
        local, mesh, [place], run_check=False, shape=whole.shape, stride=whole.stride())


def load(path, entries, wholes, mesh):
    state = {e["name"]: destination(e, whole, mesh) for e, whole in zip(entries, wholes)}
    try:
        dcp.load(state, storage_reader=HuggingFaceStorageReader(path), no_dist=mesh is None)
    except BaseException as error:
        told = " ".join(str(error).split())
        return f"refused: {type(error).__name__}: {told[-300:]}"
    different = []
    for entry, whole in zip(entries, wholes):
        got = state[entry["name"]]
        if mesh is not None:
            got = got.to_local()
            if entry["split"] is not None:
                whole = chunk(whole, entry["split"], mesh.get_local_rank(), mesh.size())
        if bytes_of(got) != bytes_of(whole):
            different.append(entry["name"])
    return f"differs: {' '.join(different)}" if different else "equal"


def rank_of(rank, ranks, expected, paths, port):
    mesh = None
    if ranks > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
        mesh = init_device_mesh("cpu", (ranks,))
    with open(f"{expected}/tensors.json") as file:
        entries = json.load(file)
    wholes = []
    for index, entry in enumerate(entries):
        with open(f"{expected}/{index}.bin", "rb") as file:
            data = bytearray(file.read())
        flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        wholes.append(flat.view(KINDS[entry["dtype"]]).reshape(entry["shape"]))
    for path in paths:
        said = [load(path, entries, wholes, mesh)]
        if mesh is not None:
            every = [None] * ranks
            dist.all_gather_object(every, said[0])
            said = sorted(set(every))
        if rank == 0:
            print(" | ".join(said), flush=True)
    if mesh is not None:
        dist.barrier()
        # Threads of gloo now and then abort a process that ends in order.
        os._exit(0)


def free_port():
    import socket
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    ranks, expected, paths = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    print(f"torch {torch.__version__}, safetensors {safetensors.__version__}", flush=True)
    if ranks == 1:
        rank_of(0, 1, expected, paths, None)
    else:
        torch.multiprocessing.spawn(rank_of, (ranks, expected, paths, free_port()), nprocs=ranks)

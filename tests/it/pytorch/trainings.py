"""What the real PyTorch makes of exports. Run by tests/pytorch.rs: `real.py train|check DIRECTORY`."""

import os
import pathlib
import sys
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

warnings.simplefilter("ignore")
torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "plain": lambda p: torch.optim.SGD(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
}
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32,
          torch.int64, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
          torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]


def kinds():
    state = {str(dtype).split(".")[1]: torch.arange(7).float().to(dtype) for dtype in DTYPES}
    tied = torch.arange(6.0).reshape(2, 3)
    return state | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "tied.a": tied,
                    "tied.b": tied}


def fresh(name):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    # Frozen, and given to the optimizer all the same.
    model[0].bias.requires_grad_(False)
    return model, OPTIMIZERS[name](model.parameters())


def steps(model, optimizer, seed, count):
    torch.manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor


def same(a, b, what):
    assert list(a) == list(b) or set(a) == set(b), (what, set(a) ^ set(b))
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, (what, name)
        assert torch.equal(bits(a[name]), bits(b[name])), (what, name)


def train(to):
    for name in OPTIMIZERS:
        model, optimizer = fresh(name)
        steps(model, optimizer, 0, 3)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2,
                    "step": 3, "history": [0.5, float("inf")], "note": "é"}, to / f"{name}.torch.pt")
        (to / "parameters").write_text("\n".join(n for n, _ in model.named_parameters()))
    torch.save({"model": kinds()}, to / "kinds.torch.pt")


def as_saved(name, to):
    """A model and optimizer that PyTorch alone has brought back, some steps on."""
    state = torch.load(to / f"{name}.torch.pt", weights_only=True)
    model, optimizer = fresh(name)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    steps(model, optimizer, 1, 4)
    return model.state_dict()


def by_names(name, state, expected, what):
    model, optimizer = fresh(name)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    steps(model, optimizer, 1, 4)
    same(model.state_dict(), expected, what)


def distributed(name, to):
    model, optimizer = fresh(name)
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer),
             "epoch": 0, "step": 0}
    dcp.load(state, checkpoint_id=to / f"{name}.dcp", no_dist=True)
    assert (state["epoch"], state["step"]) == (2, 3), name
    return state


def on_two_ranks(rank, to, port):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{to}/{port}")
    mesh = init_device_mesh("cpu", (2,))
    saved = torch.load(to / "adamw.torch.pt", weights_only=True)["model"]
    shards = {name: distribute_tensor(torch.zeros_like(tensor), mesh, [Shard(0)])
              for name, tensor in saved.items() if tensor.ndim > 0}
    dcp.load({"model": shards}, checkpoint_id=to / "adamw.dcp")
    same({name: tensor.full_tensor() for name, tensor in shards.items()},
         {name: saved[name] for name in shards}, f"rank {rank}")
    dist.barrier()
    # Everything was compared. Threads of gloo now and then abort a process that ends in order.
    os._exit(0)


def check(to):
    for name in OPTIMIZERS:
        expected = as_saved(name, to)
        state = torch.load(to / f"{name}.pt", weights_only=True)
        assert state["values"]["history"] == [0.5, float("inf")] and state["values"]["note"] == "é"
        by_names(name, state, expected, f"{name}.pt")
        by_names(name, distributed(name, to), expected, f"{name}.dcp")
        dcp_to_torch_save(to / f"{name}.dcp", to / f"{name}.converted.pt")
        converted = torch.load(to / f"{name}.converted.pt", weights_only=True)
        same(converted["model"], state["model"], f"{name} converted")
        numbers = torch.load(to / f"{name}.numbers.pt", weights_only=True)
        model, optimizer = fresh(name)
        model.load_state_dict(numbers["model"])
        optimizer.load_state_dict(numbers["optimizer"])
        steps(model, optimizer, 1, 4)
        same(model.state_dict(), expected, f"{name} by numbers")
    state = torch.load(to / "kinds.pt", weights_only=True)["model"]
    same(state, kinds(), "kinds.pt")
    assert state["tied.a"].data_ptr() == state["tied.b"].data_ptr()
    empty = {name: torch.zeros_like(tensor) for name, tensor in kinds().items()}
    dcp.load({"model": empty}, checkpoint_id=to / "kinds.dcp", no_dist=True)
    same(empty, kinds(), "kinds.dcp")
    mp.spawn(on_two_ranks, (to, "meeting"), nprocs=2)


if __name__ == "__main__":
    {"train": train, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]))

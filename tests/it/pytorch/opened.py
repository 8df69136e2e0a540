"""Opens exports with the real PyTorch, and goes on training from them.

`python opened.py DIRECTORY`: expects there `pt/model.pt`, `dcp/checkpoint` and `expected.safetensors`,
exports of one checkpoint of `Net` below, trained here before by `python opened.py DIRECTORY make`.
"""

import os
import sys
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

warnings.filterwarnings("ignore")
root = sys.argv[1]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.zeta = torch.nn.Linear(4, 3)
        self.alpha = torch.nn.Linear(3, 2)
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x):
        return self.alpha(self.norm(self.zeta(x)))


def fresh():
    torch.manual_seed(1)
    model = Net()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)


def train(model, optimizer, first, steps):
    for step in range(first, first + steps):
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(ours, theirs, what):
    assert ours.keys() == theirs.keys(), (what, ours.keys() ^ theirs.keys())
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and ours[name].shape == value.shape, (what, name)
        same_bits = torch.equal(ours[name].contiguous().view(-1).view(torch.uint8) if value.numel()
                                else ours[name], value.contiguous().view(-1).view(torch.uint8)
                                if value.numel() else value)
        assert same_bits, (what, name)


def make():
    model, optimizer = fresh()
    train(model, optimizer, 0, 3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3},
               f"{root}/made.pt")
    save_file(train(model, optimizer, 3, 2), f"{root}/after.safetensors")
    names = [name for name, _ in model.named_parameters()]
    open(f"{root}/parameters.txt", "w").write("\n".join(names) + "\n")


def goes_on(model, optimizer, what):
    same(train(model, optimizer, 3, 2), load_file(f"{root}/after.safetensors"), what)


def opened():
    state = torch.load(f"{root}/trained.pt", weights_only=True)
    model, optimizer = fresh()
    set_state_dict(model, optimizer, model_state_dict=state["model"],
                   optim_state_dict=state["optimizer"])
    goes_on(model, optimizer, "a file, by names")
    state = torch.load(f"{root}/numbered.pt", weights_only=True)
    model, optimizer = fresh()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    goes_on(model, optimizer, "a file, by numbers")
    model, optimizer = fresh()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "epoch": 0}
    dcp.load(state, checkpoint_id=f"{root}/trained.dcp", no_dist=True)
    assert state["epoch"] == 3
    set_state_dict(model, optimizer, model_state_dict=state["model"],
                   optim_state_dict=state["optimizer"])
    goes_on(model, optimizer, "a directory")
    dcp_to_torch_save(f"{root}/trained.dcp", f"{root}/converted.pt")
    converted = torch.load(f"{root}/converted.pt", weights_only=True)
    model, optimizer = fresh()
    set_state_dict(model, optimizer, model_state_dict=converted["model"],
                   optim_state_dict=converted["optimizer"])
    goes_on(model, optimizer, "a directory, converted")


def kinds():
    expected = load_file(f"{root}/kinds.safetensors")
    state = torch.load(f"{root}/kinds.pt", weights_only=True)
    same(state["model"], expected, "kinds of a file")
    assert state["model"]["tied"].data_ptr() == state["model"]["w"].data_ptr(), "tied"
    assert state["values"]["a.bytes"] == bytes([0, 127, 128, 255])
    state = {"model": {name: torch.empty_like(value) for name, value in expected.items()}}
    dcp.load(state, checkpoint_id=f"{root}/kinds.dcp", no_dist=True)
    same(state["model"], expected, "kinds of a directory")


def rank(number):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2]}
    dist.init_process_group("gloo", rank=number, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole = load_file(f"{root}/kinds.safetensors")["w"]
    for dimension in (0, 1):
        own = distribute_tensor(torch.zeros_like(whole), mesh, [Shard(dimension)])
        dcp.load({"model": {"w": own}}, checkpoint_id=f"{root}/kinds.dcp")
        same({"w": own.full_tensor()}, {"w": whole}, dimension)
    dist.barrier()
    # Threads of gloo now and then abort a process that ends in order.
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[2] == "make":
        make()
    else:
        opened()
        kinds()
        mp.spawn(rank, nprocs=2)
        print("opened")

"""How checkpoints are saved by those that are compared, each as its users would call it.

A saver writes checkpoint `step` into `directory` and is done when it returns; whoever can make it
durable by an option of its own is asked to. Every element of every tensor is the step, so that
what a load gives tells whether it is of one step, of another, or of none.
"""

import os
import pathlib
import subprocess
import warnings

import torch

# That there is one process, and that a checkpoint is replaced, is meant.
warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")

TENSORS = 4


def state(step, elements):
    """TENSORS float32 tensors, filled with the step."""
    return {f"t{i}": torch.full((elements,), float(step)) for i in range(TENSORS)}


def step_of(tensors, elements):
    """The step that all elements tell; None if they do not agree."""
    if sorted(tensors) != [f"t{i}" for i in range(TENSORS)]:
        return None
    first = tensors["t0"].flatten()[:1].item() if tensors["t0"].numel() else None
    for tensor in tensors.values():
        if tensor.shape != (elements,) or tensor.dtype != torch.float32:
            return None
        if not bool((tensor == first).all()):
            return None
    return int(first) if first is not None and first == int(first) else None


class Saver:
    """`save` ends with the checkpoint committed, in the saver's own opinion."""

    def save(self, directory, step, elements):
        raise NotImplementedError

    def load(self, directory, elements):
        """The newest step that loads, as (step, None); or (None, why nothing does)."""
        raise NotImplementedError


class TorchSave(Saver):
    """`torch.save` to one path, again and again."""

    name = "torch.save, same path"

    def save(self, directory, step, elements):
        torch.save(state(step, elements), directory / "checkpoint.pt")

    def load(self, directory, elements):
        return check(lambda: torch.load(directory / "checkpoint.pt", weights_only=True), elements)


class TorchSaveRenamed(TorchSave):
    """The careful idiom: another name first, then `os.replace`; no fsync, as mostly seen."""

    name = "torch.save, os.replace"

    def save(self, directory, step, elements):
        torch.save(state(step, elements), directory / "checkpoint.tmp")
        os.replace(directory / "checkpoint.tmp", directory / "checkpoint.pt")


class Safetensors(Saver):
    """`safetensors.torch.save_file` to one path."""

    name = "safetensors, same path"

    def save(self, directory, step, elements):
        from safetensors.torch import save_file

        save_file(state(step, elements), directory / "checkpoint.safetensors")

    def load(self, directory, elements):
        from safetensors.torch import load_file

        return check(lambda: load_file(directory / "checkpoint.safetensors"), elements)


class Dcp(Saver):
    """`torch.distributed.checkpoint.save` with its default of fsynced files, over the one before."""

    name = "DCP, same path"

    def save(self, directory, step, elements):
        import torch.distributed.checkpoint as dcp

        writer = dcp.FileSystemWriter(directory / "checkpoint", sync_files=True)
        dcp.save(state(step, elements), storage_writer=writer, no_dist=True)

    def load(self, directory, elements):
        import torch.distributed.checkpoint as dcp

        def run():
            tensors = state(-1, elements)
            reader = dcp.FileSystemReader(directory / "checkpoint")
            dcp.load(tensors, storage_reader=reader, no_dist=True)
            return tensors

        return check(run, elements)


class Ours(Saver):
    """`tch-checkpoint stress`: one thread as rank, the newest checkpoint stays."""

    name = "tch-checkpoint"

    def __init__(self, command):
        self.command = command

    def run(self, *arguments):
        return subprocess.run([self.command, *map(str, arguments)], capture_output=True, text=True)

    def save(self, directory, step, elements):
        done = self.run("stress", "save", "--dir", directory, "--step", step, "--keep", 1,
                        "--bytes", elements * 4 * TENSORS)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)

    def load(self, directory, elements):
        done = self.run("stress", "load", "--dir", directory)
        loaded = [line.split() for line in done.stdout.splitlines() if line.startswith("LOADED ")]
        if done.returncode == 0 and loaded:
            return int(loaded[-1][1]), None
        return None, (done.stderr or done.stdout).strip().splitlines()[-1:]


def check(load, elements):
    """Runs `load`; ("wrong", …) if it succeeds with tensors of no one step."""
    try:
        tensors = load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any refusal counts; DCP's own is no Exception
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    step = step_of(tensors, elements)
    return ("wrong", "loaded without an error") if step is None else (step, None)


def all_savers(command):
    savers = [TorchSave(), TorchSaveRenamed(), Safetensors(), Dcp(), Ours(command)]
    return savers


def files_of(directory):
    """Every regular file below `directory`, sorted, without locks."""
    files = (p for p in pathlib.Path(directory).rglob("*") if p.is_file() and not p.is_symlink())
    return sorted(p for p in files if p.name != ".tch-checkpoint.lock")

#!/usr/bin/env python3
"""The same faults for everyone: what is left when a bit flips, a process dies, a disk fills up, or
the power goes.

    cargo build --release --no-default-features --features cli
    python3 benches/faults/faults.py --command target/release/tch-checkpoint [--rounds 40]

Needs Linux and a Python with torch and safetensors; all but `flips` and `kills` mount file systems
and so need root, and power cuts xfs_io. Prints one table of Markdown per fault. Each round begins with
one checkpoint that was acknowledged, and ends with a load by the saver's own loader:

kept     the newest acknowledged step, or the one that was being saved, loads
older    only an older one does: an acknowledged checkpoint is lost
nothing  nothing loads
wrong    something loads without an error, and it is of no one step
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from savers import all_savers, files_of

BITS_IN_A_BYTE = 8
ELEMENTS = 1 << 16          # of each tensor: 256 KiB
IMAGE_BYTES = 320 << 20   # the least that XFS takes
OUTCOMES = ["kept", "older", "nothing", "wrong"]


def judge(saver, directory, acknowledged, finished=None, sizes=(ELEMENTS,)):
    """One of OUTCOMES; `finished` saves had returned when the saver ended, of one of `sizes`."""
    loads = [saver.load(directory, elements)[0] for elements in sizes]
    loaded = [step for step in loads if isinstance(step, int)]
    if not loaded:
        return "wrong" if "wrong" in loads else "nothing"
    step = max(loaded)
    if step > (finished or acknowledged) + 1:
        return "wrong"
    return "kept" if step >= acknowledged else "older"


def flips(saver, rounds, dice):
    """One bit of one file is another; whatever is not noticed and not harmless is `wrong`."""
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as top:
        directory = pathlib.Path(top)
        saver.save(directory, 7, ELEMENTS)
        files = files_of(directory)
        for _ in range(rounds):
            at = dice.randrange(sum(f.stat().st_size for f in files) * BITS_IN_A_BYTE)
            for file in files:
                bits = file.stat().st_size * BITS_IN_A_BYTE
                if at < bits:
                    break
                at -= bits
            flip(file, at)
            step, _ = saver.load(directory, ELEMENTS)
            flip(file, at)
            counts["refused" if step is None else "unharmed" if step == 7 else "wrong"] += 1
    return counts


def flip(file, bit):
    with open(file, "r+b") as opened:
        opened.seek(bit // BITS_IN_A_BYTE)
        byte = opened.read(1)[0] ^ (1 << bit % BITS_IN_A_BYTE)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte]))


def saving(saver, directory, first):
    """A process that saves step after step; (its id, a pipe with a line for each that is saved)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    code = 1
    try:
        os.setpgid(0, 0)
        os.close(reader)
        step = first
        while True:
            saver.save(directory, step, ELEMENTS)
            os.write(writer, f"{step}\n".encode())
            step += 1
    except BaseException:  # whatever ends it, the child must not go on with its parent's work
        code = 2
    finally:
        os._exit(code)


def newest(reader, otherwise):
    """The last step that was acknowledged so far, without waiting."""
    os.set_blocking(reader, False)
    lines = []
    with contextlib.suppress(BlockingIOError):
        while block := os.read(reader, 1 << 16):
            lines.append(block)
    return int(b"".join(lines).split()[-1]) if lines else otherwise


def end(child):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def time_of_a_save(saver):
    with tempfile.TemporaryDirectory() as top:
        times = []
        for step in range(1, 5):
            began = time.monotonic()
            saver.save(pathlib.Path(top), step, ELEMENTS)
            times.append(time.monotonic() - began)
        return min(times)


def kills(saver, rounds, dice):
    """SIGKILL at a random moment of saving over the checkpoint before."""
    counts, usual = collections.Counter(), time_of_a_save(saver)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as top:
            directory = pathlib.Path(top)
            saver.save(directory, 1, ELEMENTS)
            child, reader = saving(saver, directory, 2)
            time.sleep(dice.uniform(0, 3 * usual))
            end(child)
            acknowledged = newest(reader, 1)
            os.close(reader)
            counts[judge(saver, directory, acknowledged)] += 1
    return counts


@contextlib.contextmanager
def mounted(*arguments):
    with tempfile.TemporaryDirectory() as top:
        subprocess.run(["mount", *arguments, top], check=True)
        try:
            yield pathlib.Path(top)
        finally:
            subprocess.run(["umount", "-l", top], check=True)


def full(saver, rounds, _):
    """The second checkpoint, twice as large, does not fit, by more or less."""
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as top:
        saver.save(pathlib.Path(top), 1, ELEMENTS)
        need = sum(f.stat().st_size for f in files_of(top))
    for round_ in range(rounds):
        size = int(need * (1.05 + 0.9 * round_ / rounds)) + (128 << 10)
        with mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs") as directory:
            saver.save(directory, 1, ELEMENTS)
            try:
                saver.save(directory, 2, 2 * ELEMENTS)
                acknowledged = 2
            except KeyboardInterrupt:
                raise
            except BaseException:  # of whatever type: it said that it failed
                acknowledged = 1
            sizes = (ELEMENTS, 2 * ELEMENTS)
            counts[judge(saver, directory, acknowledged, sizes=sizes)] += 1
    return counts


def ext4(saver, rounds, dice):
    return power(saver, rounds, dice, ["mkfs.ext4", "-qF"], "loop,data=writeback")


def xfs(saver, rounds, dice):
    return power(saver, rounds, dice, ["mkfs.xfs", "-qf"], "loop")


def power(saver, rounds, dice, make, options):
    """The power of a disk goes while a loop saves; a neighbour has just called fsync."""
    counts, usual = collections.Counter(), time_of_a_save(saver)
    with tempfile.TemporaryDirectory() as top:
        image = pathlib.Path(top) / "image"
        with open(image, "wb") as opened:
            opened.truncate(IMAGE_BYTES)
        subprocess.run([*make, image], check=True)
        for _ in range(rounds):
            with mounted("-o", options, str(image)) as disk:
                for left in disk.glob("ck*"):
                    shutil.rmtree(left)
                directory = disk / "ck"
                directory.mkdir()
                saver.save(directory, 1, ELEMENTS)
                os.sync()
                child, reader = saving(saver, directory, 2)
                time.sleep(max(0.3, 6 * usual) * dice.uniform(0.5, 1.5))
                neighbour(disk)
                acknowledged = newest(reader, 1)
                subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(disk)], check=True)
                end(child)
                finished = newest(reader, acknowledged)
                os.close(reader)
            with mounted("-o", options, str(image)) as disk:
                counts[judge(saver, disk / "ck", acknowledged, finished)] += 1
    return counts


def neighbour(disk):
    """Somebody else's fsync, which makes the journal durable, though not everybody's data."""
    with open(disk / "neighbour", "w") as opened:
        opened.write("x")
        opened.flush()
        os.fsync(opened.fileno())


FAULTS = {
    "flips": (flips, ["refused", "unharmed", "wrong"], "One bit flipped"),
    "kills": (kills, OUTCOMES, "Killed while saving"),
    "full": (full, OUTCOMES, "No space for the second checkpoint"),
    "ext4": (ext4, OUTCOMES, "Power cut while saving, ext4 with data=writeback"),
    "xfs": (xfs, OUTCOMES, "Power cut while saving, XFS"),
}


def table(title, outcomes, rows):
    print(f"\n**{title}**\n")
    print("| | " + " | ".join(outcomes) + " |")
    print("|---|" + "---:|" * len(outcomes))
    for name, counts in rows:
        print(f"| {name} | " + " | ".join(str(counts[o]) for o in outcomes) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", required=True, help="path of tch-checkpoint")
    parser.add_argument("--faults", default=",".join(FAULTS), help="which (default: all)")
    parser.add_argument("--rounds", type=int, default=40, help="of each; ten times as many flips")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not os.access(arguments.command, os.X_OK):
        parser.error(f"{arguments.command} cannot be run: build it first")
    unknown = set(arguments.faults.split(",")) - set(FAULTS)
    if unknown:
        parser.error(f"unknown faults {sorted(unknown)}; there are {', '.join(FAULTS)}")

    import logging

    import torch

    logging.disable()  # DCP prints what its loads ran into

    torch.set_num_threads(1)
    savers = all_savers(os.path.abspath(arguments.command))
    for fault in arguments.faults.split(","):
        run, outcomes, title = FAULTS[fault]
        rounds = arguments.rounds * (10 if fault == "flips" else 1)
        rows = []
        for saver in savers:
            print(f"{fault}: {saver.name}", file=sys.stderr)
            rows.append((saver.name, run(saver, rounds, random.Random(arguments.seed))))
        table(f"{title}, {rounds} rounds", outcomes, rows)
    print(f"\ntorch {torch.__version__}")


if __name__ == "__main__":
    main()

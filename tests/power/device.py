"""A block device for nbdkit's python plugin that writes down, in order, what is written and flushed.

    nbdkit -f -U SOCKET python device.py image=IMAGE log=LOG fails=FILE

The log is a sequence of records: a byte `W` or `F`, then, little endian, offset (8 bytes) and length
(4 bytes), then for `W` the data. A record is in the log before the request is answered, so whoever
sees an effect of the request finds the record.

While FILE exists, writes and flushes fail with EIO, change nothing and are not written down; if there
is a number in it, only so many of them. But a write that goes on where the last one ended is still
carried out: it may be the rest of one request, and a loop device takes a short write for a whole one.
"""

import builtins
import errno
import os
import struct

import nbdkit

API_VERSION = 2

paths = {}


def config(key, value):
    if key not in ("image", "log", "fails"):
        raise ValueError(f"{key}: `image`, `log` and `fails` are what can be given")
    paths[key] = value


def thread_model():
    # One request after the other: the order of the log is the order on the device.
    return nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def open(readonly):
    return {
        "image": os.open(paths["image"], os.O_RDWR),
        "log": os.open(paths["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644),
        # Where the last write ended that was carried out.
        "end": None,
        # Requests that failed.
        "failed": 0,
    }


def close(h):
    os.close(h["image"])
    os.close(h["log"])


def get_size(h):
    return os.fstat(h["image"]).st_size


def can_fua(h):
    # Forced writes arrive as a write and a flush.
    return nbdkit.FUA_EMULATE


def pread(h, buf, offset, flags):
    if os.preadv(h["image"], [buf], offset) != len(buf):
        raise OSError("a read beyond the image")


def fails(h):
    try:
        with builtins.open(paths["fails"]) as file:
            count = file.read()
    except FileNotFoundError:
        return False
    if count and h["failed"] >= int(count):
        return False
    h["failed"] += 1
    return True


def change(h, kind, offset, data):
    if (kind, offset) != (b"W", h["end"]) and fails(h):
        h["end"] = None
        nbdkit.set_error(errno.EIO)
        raise OSError(errno.EIO, "told to fail")
    h["end"] = offset + len(data) if kind == b"W" else None
    entry = kind + struct.pack("<QI", offset, len(data)) + bytes(data)
    if os.write(h["log"], entry) != len(entry):
        raise OSError("the log cannot be written")
    if os.pwrite(h["image"], data, offset) != len(data):
        raise OSError("the image cannot be written")


def pwrite(h, buf, offset, flags):
    change(h, b"W", offset, buf)


def flush(h, flags):
    change(h, b"F", 0, b"")

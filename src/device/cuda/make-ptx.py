#!/usr/bin/env python3
"""Makes fingerprint.ptx of fingerprint.cu with NVRTC, which needs neither a GPU nor a driver.

    pip download --no-deps nvidia-cuda-nvrtc-cu12==12.0.140 && unzip nvidia_cuda_nvrtc_cu12-*.whl
    src/device/cuda/make-ptx.py nvidia/cuda_nvrtc/lib/libnvrtc.so.12 [--check]

The version matters: a driver takes no PTX of a language version newer than itself, and NVRTC 12.0
writes version 8.0, which every driver of CUDA 12 and 13 knows. With --check nothing is written; it
fails if the file would change.
"""

import ctypes
import pathlib
import sys
import zlib

HERE = pathlib.Path(__file__).resolve().parent
OPTIONS = [b"--gpu-architecture=compute_70", b"--std=c++17", b"--device-int128"]


def compiled(nvrtc, source):
    program = ctypes.c_void_p()

    def call(name, *arguments):
        code = getattr(nvrtc, name)(*arguments)
        if code:
            raise SystemExit(f"{name}: NVRTC error {code}\n{log(nvrtc, program)}")

    call("nvrtcCreateProgram", ctypes.byref(program), source, b"fingerprint.cu", 0, None, None)
    options = (ctypes.c_char_p * len(OPTIONS))(*OPTIONS)
    call("nvrtcCompileProgram", program, len(OPTIONS), options)
    return text(nvrtc, program, "nvrtcGetPTX")


def log(nvrtc, program):
    return text(nvrtc, program, "nvrtcGetProgramLog") if program else ""


def text(nvrtc, program, name):
    size = ctypes.c_size_t()
    getattr(nvrtc, name + "Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, name)(program, buffer)
    return buffer.value.decode()


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    source = (HERE / "fingerprint.cu").read_bytes()
    # By which a test without NVRTC knows whether the file is of this source.
    made_of = f"// Made by make-ptx.py of fingerprint.cu with CRC-32 {zlib.crc32(source):08x}\n"
    ptx = made_of + compiled(ctypes.CDLL(sys.argv[1]), source)
    place = HERE / "fingerprint.ptx"
    if "--check" not in sys.argv:
        place.write_text(ptx)
    elif place.read_text() != ptx:
        raise SystemExit(f"{place} is not what {sys.argv[1]} makes of fingerprint.cu")


main()

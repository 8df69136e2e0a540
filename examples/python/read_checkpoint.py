"""The tensors of a checkpoint as numpy arrays: of a directory of any number of ranks, or a file.

    tensors = read_checkpoint("runs/mnist/checkpoint_step_00000300")

What was not committed, is lost, cut, of another save, or does not make up whole tensors is an
error. Sums of the bytes are not checked here: `tch-checkpoint verify` does that. BF16 comes as
float32, exactly; 8-bit floats come as uint8, which are their bits.
"""
import io, json, numpy, pathlib, safetensors

KINDS = {"BOOL": "?", "U8": "u1", "I8": "i1", "F8_E5M2": "u1", "F8_E4M3": "u1", "I16": "<i2",
         "U16": "<u2", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "U32": "<u4", "F32": "<f4",
         "F64": "<f8", "I64": "<i8", "U64": "<u8", "C64": "<c8"}
OFFSETS, SHAPES = "DCP_SHARDING_INFO", "tch_checkpoint.shapes"
FORM, SAVE_ID = "tch_checkpoint.form", "tch_checkpoint.save_id"

def require(holds, message):
    if not holds: raise ValueError(message)

def take(body, fields):  # of the manifest, docs/format.md: n is a number, h 16 bytes, t a text
    for field in fields:
        n = 16 if field == "h" else body.read(1)[0]
        n = int.from_bytes(body.read({251: 2, 252: 4, 253: 8}[n]), "little") if n > 250 else n
        yield n if field == "n" else body.read(n).hex() if field == "h" else body.read(n).decode()

def committed(manifest):  # name, component, save id and length of every data file
    whole = int.from_bytes(manifest[12:20], "little") == len(manifest) - 52
    require(whole and manifest[:12] == b"TCHCKPT\n\2\0\0\0", "no whole manifest of version 2")
    body = io.BytesIO(manifest[20:-32])
    return [list(take(body, "tthnnhnnh"))[:4] for _ in range(list(take(body, "nhnnnnttn"))[-1])]

def read_checkpoint(path):
    path, found = pathlib.Path(path), {}
    folder, files = path.parent, [(path.name, None, None, path.stat().st_size)]
    if path.is_dir(): folder, files = path, committed((path / "manifest.bin").read_bytes())
    for name, _, save_id, length in files:
        safetensors.safe_open(folder / name, "numpy")  # an error unless the header is right
        raw = numpy.memmap(folder / name, mode="r")
        require("/" not in name and raw.size == length, f"{name} has not the length of its save")
        data = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8:data].tobytes())
        said = header.pop("__metadata__", {})
        mine = said.get(SAVE_ID if save_id else FORM) == (save_id or "single")
        require(mine, f"{name} is of another save, or no checkpoint of its own")
        offsets, shapes = (json.loads(said.get(key, "{}")) for key in (OFFSETS, SHAPES))
        for tensor, at in header.items():
            begin, end = at["data_offsets"]
            piece = raw[data + begin:data + end].view(KINDS[at["dtype"]]).reshape(at["shape"])
            if at["dtype"] == "BF16": piece = (piece.astype("<u4") << 16).view("<f4")
            first = offsets.get(tensor, {}).get("saved_offsets", [0] * piece.ndim)
            box = tuple(slice(o, o + n) for o, n in zip(first, piece.shape))
            shape = shapes.get(tensor, piece.shape)
            empty = numpy.empty(shape, piece.dtype), numpy.zeros(shape, bool)
            whole, seen = found.setdefault(tensor, empty)
            fits = whole.dtype == piece.dtype and whole[box].shape == piece.shape
            require(fits and not seen[box].any(), f"{name}: {tensor} does not fit in")
            whole[box], seen[box] = piece, True
    require(all(seen.all() for _, seen in found.values()), "there are tensors with gaps")
    return {tensor: whole for tensor, (whole, _) in found.items()}

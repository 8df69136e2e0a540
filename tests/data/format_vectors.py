#!/usr/bin/env python3
"""Writes format_vectors.tsv: what CPython makes of format strings over numbers.

Usage: python3 tests/data/format_vectors.py > tests/data/format_vectors.tsv

Columns, separated by tabs: template, values (`name=i:5` or `name=f:0.5`, separated by `;`),
result, or ERROR where CPython raises. The fields `x`, `y` and those of FIXED are known to the
test that reads the table. Needs Python 3.10 or later; the output is the same on every run.
"""

import math
import random
import struct
import sys

FIXED = {
    "epoch": 5, "loss": 0.123456, "val_loss": math.nan, "lr": 1e-05, "acc": 0.9876,
    "neg": -0.25, "big": 12345.678, "n": 1234567, "val/loss": 0.5, "inf": math.inf,
}
TEMPLATES = [
    "model_epoch{epoch:02d}", "m{epoch}_loss{loss:.4f}", "{val_loss:.4f}", "{inf:.2f}",
    "{lr:.2e}", "{lr}", "{acc:.1%}", "{neg:+.2f}", "{neg:08.3f}", "{big:,.1f}", "{epoch:.2f}",
    "{loss:02d}", "{epoch:>4}", "{epoch:_<4}", "{epoch:^6}", "{epoch:03}", "{n:_}",
    "{{x}}_{epoch}", "{val/loss:.2f}", "{missing}", "{}", "{0}", "{", "}", "{loss:g}",
    "{acc:.3}", "{acc!r}", "{acc!s}", "{acc!s:>10}", "{acc!r:.3}", "{acc!r:=10}", "{acc!r:+}",
    "{acc!r:10d}", "{acc!r:010}", "{acc!r:_}", "{acc!x}", "{acc!}", "{acc!rr}", "{acc!r:^9s}",
    "{epoch", "epoch}", "{{{epoch}}}", "{{epoch}}", "}}{{", "{epoch:}", "{ epoch}", "{epoch :d}",
    "{epoch:d }", "{epoch:.}", "{epoch:.d}", "{epoch:.2}", "{epoch:.2d}", "{epoch:s}", "{loss:s}",
    "{loss:,_}", "{loss:_,}", "{loss:5,}", "{loss:0}", "{epoch:0}", "{epoch:00}", "{loss:+-}",
    "{loss:é>9}", "{loss:é^10.1f}", "{neg:0=9}", "{neg:x=9}", "{neg:<09}", "{neg:x<09}",
    "{n:014,}", "{n:013,}", "{n:012,}", "{n:011,d}", "{n:010_d}", "{n:+015,}", "{n:x=+15,}",
    "{inf:010}", "{inf:,}", "{inf:010,}", "{val_loss:+010.2f}", "{val_loss:%}", "{inf:E}",
    "{inf:G}", "{val_loss:F}", "{big:#.0f}", "{big:.0f}", "{big:#.0e}", "{big:#g}", "{big:#}",
    "{epoch:#}", "{epoch:#d}", "{epoch:e}", "{epoch:g}", "{epoch:%}", "{epoch:#.3g}", "{epoch:.0%}",
]
FLOATS = [
    0.0, -0.0, 0.5, 1.5, 2.5, 3.5, -0.5, -2.5, 0.05, 0.15, 0.25, 0.35, 0.125, 0.375, 1.0, 10.0,
    100.0, 1000.0, 123456.0, 999999.5, 9999995.0, 0.1, 0.2, 0.3, 1 / 3, 2 / 3, 1e-4, 1e-5,
    9.9999e-5, 0.00012345, 1e15, 1e16, 1e17, 123456789012345678.0, 9007199254740993.0, 1e22, 1e23,
    5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 2.675, 1.005, 0.995, 9.995, 99.95,
    0.9999999, 1e100, -1e-100, math.inf, -math.inf, math.nan, 4.35, 0.6931471805599453, 2.302585,
    1663932842445068.25, 911749768980340.25, 2.0**-44, 2.0**89, 9007199254740992.0, 2.0**122,
]
INTS = [
    0, 1, -1, 5, 9, 10, 12, 99, 100, 999, 1000, -1000, 12345, 999999, 1000000, -1234567,
    2**53, 2**53 + 1, 2**63 - 1, -(2**63), 15, 25, 50, 123456789012,
]


def number(rng):
    """Typical values of a log, edge cases, and any 64 bits."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(FLOATS)
    if kind < 0.40:
        return rng.choice(INTS)
    if kind < 0.50:
        return rng.randrange(-10 ** rng.randrange(1, 18), 10 ** rng.randrange(1, 18))
    if kind < 0.60:
        return rng.randrange(-20000, 20000) / 2 ** rng.randrange(0, 8)
    if kind < 0.75:
        return round(rng.uniform(-100, 100), rng.randrange(0, 8))
    if kind < 0.90:
        return rng.uniform(-1, 1) * 10 ** rng.randrange(-25, 25)
    return struct.unpack("<d", rng.randbytes(8))[0]


def pick(rng, share, choices):
    return rng.choice(choices) if rng.random() < share else ""


def spec(rng):
    """A format of the supported grammar; some are errors for their value, or for any."""
    parts = []
    if rng.random() < 0.4:
        parts += [pick(rng, 0.5, list("x*_ 0é.,+<")), rng.choice("<>=^")]
    parts += [pick(rng, 0.3, "+- "), pick(rng, 0.15, "#"), pick(rng, 0.3, "0")]
    parts += [pick(rng, 0.5, [str(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 20, 33, 64)])]
    parts += [pick(rng, 0.25, ",_")]
    parts += [pick(rng, 0.6, [f".{n}" for n in (0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 12, 15, 16, 17, 18, 30, 64)])]
    parts += [pick(rng, 0.85, list("dffffFeeeEggggG%%"))]
    return "".join(parts)


def evaluate(template, values):
    try:
        return template.format(**values)
    except (ValueError, KeyError, IndexError, OverflowError):
        return "ERROR"


def row(template, values):
    shown = ";".join(
        f"{name}={'i' if isinstance(value, int) else 'f'}:{value!r}" for name, value in values.items()
    )
    return f"{template}\t{shown}\t{evaluate(template, values)}"


def main():
    rng = random.Random(20240229)
    rows = [row(template, FIXED) for template in TEMPLATES]
    rows += [row(t, {"x": v}) for v in FLOATS + INTS for t in ("{x}", "{x:.0f}", "{x:.3g}", "{x:.1%}")]
    for _ in range(3000):
        conversion = pick(rng, 0.05, ["!r", "!s"])
        rows.append(row(f"{{x{conversion}:{spec(rng)}}}", {"x": number(rng)}))
    for _ in range(200):
        template = f"m{{x:{spec(rng)}}}_{{{{{{y:{spec(rng)}}}}}}}"
        rows.append(row(template, {"x": number(rng), "y": number(rng)}))
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()

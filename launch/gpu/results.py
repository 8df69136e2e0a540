#!/usr/bin/env python3
"""Puts the lines of gpu-check.sh together: results.json, and results.md as a table."""

import argparse
import datetime
import json
import os
import sys

SECONDS = [
    ("stall of a save beside training", "stall_async", None, "stall_dcp_async"),
    ("save", "save", "save_torch", "save_dcp"),
    ("load from the page cache, staged and voted", "load_atomic", "load_torch", "load_dcp"),
    ("load from the page cache, in place", "load_in_place", "load_torch", "load_dcp"),
]
# The bound of a stall: this much longer than a copy of the bytes at the measured bandwidth.
STALL_MAX = 1.2


def figures_table(ours, peers):
    """Ours in seconds, and how many times longer the peers take."""
    rows = ["| | ours s | torch.save / load ÷ ours | DCP ÷ ours |", "|---|---|---|---|"]
    times, theirs = ours["seconds"], (peers or {}).get("seconds", {})
    for title, own, plain, dcp in SECONDS:
        ratio = lambda name: f"{theirs[name] / times[own]:.2f}" if name in theirs else "–"
        rows.append(f"| {title} | {times[own]:.3f} | {ratio(plain)} | {ratio(dcp)} |")
    alone, beside = times["pass_alone"], times["pass_beside_overlapped_save"]
    rows.append("")
    rows.append(f"A pass of {alone:.3f} s takes {beside:.3f} s beside an overlapped save, its wait included.")
    down, up = (ours[f"pinned_{way}_bytes_per_s"] / 1e9 for way in ("d2h", "h2d"))
    stall = ours["stall_over_copy"]
    bound = f"the bound of {STALL_MAX} is {'met' if stall <= STALL_MAX else 'NOT met'}"
    rows.append("")
    rows.append(
        f"{ours['bytes'] / 2**30:.2f} GiB; page-locked copies: {down:.1f} GB/s from the device, {up:.1f} to it; "
        f"stall ÷ (bytes ÷ bandwidth): {stall:.2f}, {bound}; "
        f"first save {ours['first_stall_s']:.3f} s."
    )
    return rows


def parsed(line):
    """A check; one that cannot be read is one that failed."""
    try:
        return json.loads(line)
    except ValueError:
        return {"name": "unreadable", "verdict": "failed", "detail": line.strip()[:300], "seconds": 0}


def warnings(logs, name):
    """Lines of its log that warn: what went another way, unseen in the verdict."""
    try:
        with open(os.path.join(logs, f"{name}.log"), encoding="utf-8", errors="replace") as file:
            return [line.strip() for line in file if " WARN " in line or " ERROR " in line]
    except OSError:
        return []


def main():
    parser = argparse.ArgumentParser()
    for name in ("lines", "logs", "out", "device", "gpu", "torch", "memory"):
        parser.add_argument(f"--{name}", required=True)
    flags = parser.parse_args()
    with open(flags.lines, encoding="utf-8") as file:
        checks = [parsed(line) for line in file if line.strip()]
    for check in checks:
        check["warnings"] = warnings(flags.logs, check["name"])
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    machine = {"gpu": flags.gpu, "torch": flags.torch, "cores": os.cpu_count(), "device": flags.device}
    results = {"schema": 1, "date": date, "machine": machine, "checks": checks}
    with open(os.path.join(flags.out, "results.json"), "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)

    rows = [f"{date}, {flags.gpu}, torch {flags.torch}, {os.cpu_count()} cores, device {flags.device}", ""]
    rows += ["| check | verdict | seconds | warnings |", "|---|---|---|---|"]
    rows += [f"| {c['name']} | {c['verdict']} | {c['seconds']:.1f} | {len(c['warnings'])} |" for c in checks]
    passed = {c["name"]: c["detail"] for c in checks if c["verdict"] == "passed"}
    for place, where in (("memory", flags.memory), ("disk", "a folder of the disk")):
        if ours := passed.get(f"figures-{place}"):
            rows += ["", f"In {where}:", ""]
            try:
                rows += figures_table(ours, passed.get(f"peers-{place}"))
            except (KeyError, TypeError, ZeroDivisionError) as error:
                rows += [f"no table: {type(error).__name__} {error}"]
    text = "\n".join(rows) + "\n"
    with open(os.path.join(flags.out, "results.md"), "w", encoding="utf-8") as file:
        file.write(text)
    print(text)
    count = lambda verdict: sum(c["verdict"] == verdict for c in checks)
    print(f"{count('passed')} passed, {count('failed')} failed, {count('skipped')} skipped; {flags.out}/results.json")
    for check in checks:
        if check["verdict"] != "passed":
            print(f"  {check['verdict'].upper()}: {check['name']}: {str(check['detail'])[:300]}")
    sys.exit(1 if count("failed") else 0)


if __name__ == "__main__":
    main()

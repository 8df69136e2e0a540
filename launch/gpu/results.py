#!/usr/bin/env python3
"""Puts the lines of gpu-check.sh together: results.json, and results.md as a table."""

import argparse
import datetime
import json
import os
import sys

SECONDS = [
    ("stall of a save beside training", "stall_async", "stall_dcp_async"),
    ("the same with overlap", "stall_overlapped", "stall_dcp_async"),
    ("save", "save", "save_dcp"),
    ("load, staged and voted", "load_atomic", "load_dcp"),
    ("load, in place", "load_in_place", "load_dcp"),
]


def figures_table(ours, peers):
    """Ours in seconds, and how many times longer the peers take."""
    rows = ["| | ours s | torch.save / load ÷ ours | DCP ÷ ours |", "|---|---|---|---|"]
    times, theirs = ours["seconds"], (peers or {}).get("seconds", {})
    for title, own, dcp in SECONDS:
        plain = {"save": "save_torch", "load_atomic": "load_torch", "load_in_place": "load_torch"}.get(own)
        ratio = lambda name: f"{theirs[name] / times[own]:.2f}" if name in theirs else "–"
        rows.append(f"| {title} | {times[own]:.3f} | {ratio(plain)} | {ratio(dcp)} |")
    down, up = (ours[f"pinned_{way}_bytes_per_s"] / 1e9 for way in ("d2h", "h2d"))
    rows.append("")
    rows.append(
        f"{ours['bytes'] / 2**30:.2f} GiB; page-locked copies: {down:.1f} GB/s from the device, {up:.1f} to it; "
        f"stall ÷ (bytes ÷ bandwidth): {ours['stall_over_copy']:.2f}; first save {ours['first_stall_s']:.3f} s."
    )
    return rows


def main():
    parser = argparse.ArgumentParser()
    for name in ("lines", "out", "device", "gpu"):
        parser.add_argument(f"--{name}", required=True)
    flags = parser.parse_args()
    with open(flags.lines, encoding="utf-8") as file:
        checks = [json.loads(line) for line in file]
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    machine = {"gpu": flags.gpu, "cores": os.cpu_count(), "device": flags.device}
    results = {"schema": 1, "date": date, "machine": machine, "checks": checks}
    with open(os.path.join(flags.out, "results.json"), "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)

    rows = [f"{date}, {flags.gpu}, {os.cpu_count()} cores, device {flags.device}", ""]
    rows += ["| check | verdict | seconds |", "|---|---|---|"]
    rows += [f"| {c['name']} | {c['verdict']} | {c['seconds']:.1f} |" for c in checks]
    passed = {c["name"]: c["detail"] for c in checks if c["verdict"] == "passed"}
    for place in ("memory", "disk"):
        if ours := passed.get(f"figures-{place}"):
            rows += ["", f"In {'/dev/shm' if place == 'memory' else 'a folder of the disk'}:", ""]
            rows += figures_table(ours, passed.get(f"peers-{place}"))
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

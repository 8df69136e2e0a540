"""An SVG of the durable saves of a run: python chart.py results.jsonl > docs/performance.svg

One bar per peer and workload: how many times the raw O_DIRECT write of the same bytes it takes, on a
logarithmic scale, since the peers lie up to a hundredfold apart.
"""
import json
import math
import sys
from html import escape

NAMES = {"raw_direct": "raw O_DIRECT write", "torch_save": "torch.save",
         "safetensors": "safetensors", "dcp": "PyTorch DCP", "torchsnapshot": "torchsnapshot"}
TITLES = {"W1": "GPT-2 124M + Adam, 1.49 GB", "W2": "20,000 tensors of 4 KiB, 82 MB",
          "W3": "4 tensors of 512 MiB, 2.1 GB", "W4": "Llama block + Adam, 1.94 GB"}
OURS = "tch-checkpoint"
LEFT, RIGHT, BAR, GAP, GROUP = 190, 90, 17, 4, 44
WIDTH = 760
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .title { font-weight: 600 } .small { font-size: 11px; fill: #57606a }
  .grid { stroke: #d0d7de } .peer { fill: #b6bfc9 } .ours { fill: #1f6feb } .limit { fill: #57606a }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #3d444d }
    .peer { fill: #59636e } .ours { fill: #4493f8 } .limit { fill: #9198a1 }
  }
"""


def rows_of(path):
    """{workload: [(peer, times raw, seconds)]}, fastest first, of durable saves by one rank."""
    groups = {}
    for line in open(path):
        d = json.loads(line)
        durable_save = d.get("op") == "save" and d.get("durable") == "yes" and "seconds" in d
        if not durable_save or d["ranks"] != 1 or "vs_raw" not in d:
            continue
        if d["peer"] in NAMES or d["peer"] == OURS:
            # The first: runs beside training write the raw bytes once more.
            groups.setdefault(d["workload"], {}).setdefault(d["peer"], (d["vs_raw"], d["seconds"]))
    rows = {w: sorted(((p, *v) for p, v in found.items()), key=lambda row: row[1])
            for w, found in sorted(groups.items()) if w in TITLES}
    if not rows:
        raise SystemExit("no durable saves of W1..W4 beside a raw write in there")
    return rows


def bar(x, y, peer, times, seconds):
    kind = "ours" if peer == OURS else "limit" if peer.startswith("raw_") else "peer"
    # The limit itself is a line's width.
    width = max(x(times) - x(1), 2)
    name = escape(NAMES.get(peer, peer))
    return (f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{name}</text>'
            f'<rect class="{kind}" x="{x(1):.1f}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
            f'<text x="{x(1) + width + 6:.1f}" y="{y + 13}">{times:.2f} × <tspan class="small">'
            f'{seconds:.2f} s</tspan></text>')


def chart(rows):
    most = max(times for found in rows.values() for _, times, _ in found)
    scale = (WIDTH - LEFT - RIGHT) / math.log(most * 1.15)

    def x(times):
        return LEFT + scale * math.log(times)

    y, body = 44, []
    for workload, found in rows.items():
        body.append(f'<text class="title" x="{LEFT}" y="{y}">{escape(TITLES[workload])}</text>')
        y += 9
        for row in found:
            body.append(bar(x, y, *row))
            y += BAR + GAP
        y += GROUP - 9
    bottom = y - GROUP + 12
    grid = "".join(
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="26" y2="{bottom}"/>'
        f'<text class="small" x="{x(t):.1f}" y="{bottom + 14}" text-anchor="middle">{t} ×</text>'
        for t in (1, 2, 5, 10, 20, 50, 100) if t <= most * 1.1)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 24}" role="img" '
            f'aria-label="Time of a durable save, in multiples of a raw write of the same bytes">\n'
            f'<style>{STYLE}</style>\n<text class="title" x="8" y="18">Durable save, in multiples of a '
            f'raw O_DIRECT write of the same bytes (less is better)</text>\n{grid}\n'
            + "\n".join(body) + "\n</svg>")


if __name__ == "__main__":
    print(chart(rows_of(sys.argv[1])))

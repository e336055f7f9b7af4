"""The result as one HTML page that stands alone: a table and plots, no script, nothing to fetch."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from bench import svg, table
from bench.peers import OURS
from bench.summary import ORDER, best_ratio, cells_below_goal, geometric_mean, median_us, rest_text, share_of_bound

Run = dict[str, Any]
Cell = dict[str, Any]

SPREAD = ("p1_us", "p25_us", "p50_us", "p75_us", "p99_us")

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #6b6b6b; --rule: #dcdcdc; --paper: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #a0a0a0; --rule: #3a3a3a; --paper: #161616 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 960px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p, li { max-width: 70ch } .soft { color: var(--soft) }
pre { font: 11.5px/1.45 ui-monospace, monospace; overflow-x: auto;
  border: 1px solid var(--rule); padding: 1em }
svg { width: 100%; height: auto; display: block }
svg.small { width: 31%; min-width: 280px; display: inline-block }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink) } svg.small text { font-size: 14px }
.tick { text-anchor: middle } .end { text-anchor: end } .value { fill: var(--soft) }
.grid { stroke: var(--rule) } .reference { stroke: var(--ink); stroke-dasharray: 4 3 }
polyline { fill: none; stroke: var(--c); stroke-width: 2 } path { stroke: var(--c); fill: none }
.thick { stroke-width: 4 } circle, rect { fill: var(--c) } .key { color: var(--c); margin-right: 1.2em }
.s0 { --c: #d1495b } .s1 { --c: #2e86ab } .s2 { --c: #e58f27 } .s3 { --c: #5b8e55 } .s4 { --c: #8a63a6 }
"""


def render(data: dict[str, Any]) -> str:
    """Return the page."""
    machine = data["machine"]
    parts = [
        f"<h1>{OURS} beside its peers</h1>",
        f'<p class="soft">{escape(machine["processor"])}, {machine["isa"]}, {machine["cores"]} cores; '
        f"{escape(machine['platform'])}; Python {machine['python']}; {data['date']}</p>",
        _legend(),
    ]
    for run in data["runs"]:
        parts += _run_parts(run)
    parts += _thread_parts(data["runs"])
    parts += [f"<h2>All figures</h2><pre>{escape(table.render(data))}</pre>"]
    head = f'<meta charset="utf-8"><title>{OURS} benchmark</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _legend() -> str:
    keys = "".join(f'<span class="key s{i}">● {escape(name)}</span>' for i, name in enumerate(ORDER))
    return f"<p>{keys}</p>"


def _run_parts(run: Run) -> list[str]:
    count = f"{run['threads']} thread" + "s" * (run["threads"] > 1)
    mean = geometric_mean(map(best_ratio, run["cells"]))
    parts = [
        f"<h2>Peer's time over {OURS}'s, {count}</h2>",
        f"<p>Right of the line {OURS} is faster; each dot is the median over the rounds. "
        + (f"Geometric mean against the best peer of each cell: <b>{mean:.2f}</b>; " if mean else "")
        + f"cells below their goal: {len(cells_below_goal(run))} of {len(run['cells'])}.</p>",
        f'<p class="soft">In one process; {waited}.</p>' if (waited := rest_text(run)) else "",
        svg.dots([(c["name"], _ratios(c)) for c in run["cells"]], "×"),
        f"<h2>Share of the least possible time, {count}</h2>",
        f"<p>What the measured limits of this machine allow ({_limits(run)}), over the time {OURS} took. "
        "Cells whose bound is under 50 µs are left out.</p>",
        svg.bars(_shares(run["cells"]), " %", 100.0, 85.0),
        f"<h2>Spread of the latency, {count}</h2>",
        "<p>Single calls over the engine's own median: p1 to p99 (thin), quartiles (thick).</p>",
        svg.ranges([(c["name"], _spread(c)) for c in run["cells"]], "×"),
    ]
    if run["sweeps"]:
        parts += [f"<h2>How time grows, {count}</h2><p>Microseconds per call, H = 128 where it is not varied.</p>"]
        parts += [_growth(run, group, field) for group, field in (("time", "T"), ("width", "B"), ("size", "H"))]
    return parts


def _thread_parts(runs: list[Run]) -> list[str]:
    """Return the plot of what a second thread brings: each engine's time in the first run over its last."""
    if len(runs) < 2:
        return []
    last = {cell["name"]: cell for cell in runs[-1]["cells"]}
    rows = []
    for cell in runs[0]["cells"]:
        pairs = {i: (median_us(cell, e), median_us(last.get(cell["name"], cell), e)) for i, e in enumerate(ORDER)}
        rows.append((cell["name"], {i: a / b for i, (a, b) in pairs.items() if a is not None and b is not None}))
    title = f"Time with {runs[0]['threads']} over time with {runs[-1]['threads']} threads"
    return [f"<h2>{title}</h2><p>How much each engine gains from threads.</p>", svg.dots(rows, "×")]


def _ratios(cell: Cell) -> dict[int, float]:
    return {i: cell["ratios"][name] for i, name in enumerate(ORDER) if name in cell["ratios"]}


def _shares(cells: Iterable[Cell]) -> list[tuple[str, float]]:
    found = [(c["name"], share_of_bound(c)) for c in cells if c["bound_us"]["total"] > 50]
    return [(name, 100 * share) for name, share in found if share is not None]


def _spread(cell: Cell) -> dict[int, list[float]]:
    return {
        i: [cell["engines"][name][q] / cell["engines"][name]["p50_us"] for q in SPREAD]
        for i, name in enumerate(ORDER)
        if median_us(cell, name) is not None
    }


def _growth(run: Run, group: str, field: str) -> str:
    cells = [c for c in run["sweeps"] if c["case"]["group"] == group]
    found = {i: [(c["case"][field], median_us(c, e)) for c in cells] for i, e in enumerate(ORDER)}
    series = {i: [(x, y) for x, y in line if y is not None] for i, line in found.items()}
    return svg.lines({i: line for i, line in series.items() if line}, field, "µs")


def _limits(run: Run) -> str:
    levels = ", ".join(f"{v['name']} {v['gbps']:.0f} GB/s" for v in run["roofline"]["levels"])
    return f"{run['roofline']['gflops']:.0f} GFLOP/s; {levels}"

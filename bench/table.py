"""The result as text for a terminal."""

from __future__ import annotations

from typing import Any

from bench.peers import OURS
from bench.summary import (
    best_ratio,
    cells_below_goal,
    engines,
    geometric_mean,
    rest_text,
    share_of_bound,
    time_text,
    where,
)

Run = dict[str, Any]


def render(data: dict[str, Any]) -> str:
    """Return the whole result: the machine, and for each thread count its limits, cells and streams."""
    return "\n".join([where(data), *(line for run in data["runs"] for line in _run_lines(run))])


def _run_lines(run: Run) -> list[str]:
    lines = [
        "",
        f"== {run['threads']} thread(s): " + ", ".join(f"{n} {v}" for n, v in run["versions"].items()),
    ]
    limits = ", ".join(f"{v['name']} {v['gbps']:.0f} GB/s" for v in run["roofline"]["levels"])
    peak, rates = (
        run["roofline"]["gflops"],
        f"{run['roofline']['sigmoids']:.1f} sigmoids or {run['roofline']['tanhs']:.1f} tanhs",
    )
    lines += [f"   FMA peak {peak:.0f} GFLOP/s; {rates} a ns; read {limits}"]
    lines += [f"   {waited}"] if (waited := rest_text(run)) else []
    lines += [f"   {name}: {'; '.join(settings.values())}" for name, settings in run["settings"].items()]
    for title, section in (("cell", "cells"), ("sweep", "sweeps")):
        if run[section]:
            lines += ["", *aligned([_heading(title, run), *(_cell(c, run) for c in run[section])])]
    if run["cells"]:
        lines += ["", *_verdict(run)]
    if run["streams"]:
        lines += ["", "per sample", *aligned(_streams(run["streams"]))]
    for row in run["manners"]:
        lines += ["", row["name"], *aligned(_manners(row))]
    for row in run.get("starts", ()):
        lines += ["", row["name"], *aligned(_starts(row))]
    return lines


def _heading(title: str, run: Run) -> list[str]:
    peers = [name for name in engines(run) if name != OURS]
    return [title, OURS, "p99", "cpu/wall", "of bound", *peers, "best", "goal"]


def _cell(cell: dict[str, Any], run: Run) -> list[str]:
    ours = cell["engines"].get(OURS, {})
    share, best = share_of_bound(cell), best_ratio(cell)
    row = [cell["name"]]
    if "median_us" in ours:
        row += [time_text(ours["median_us"]), time_text(ours["p99_us"])]
        row += [f"{ours['cpu_us'] / ours['median_us']:.2f}", f"{share:.0%}"]
    else:
        row += [ours.get("missing", "-")[:40], "", "", ""]
    row += [_peer(cell, name) for name in engines(run) if name != OURS]
    if best is None:
        return [*row, "-", f"{cell['goal']:.2f}"]
    return [*row, f"{best:.2f}", f"{cell['goal']:.2f}{'' if best >= cell['goal'] else ' missed'}"]


def _peer(cell: dict[str, Any], name: str) -> str:
    found = cell["engines"].get(name, {})
    if "median_us" not in found:
        return "refused" if found.get("missing") else "-"
    ratio = cell["ratios"].get(name)
    return time_text(found["median_us"]) + (f" ({ratio:.2f}x)" if ratio else "")


def _verdict(run: Run) -> list[str]:
    mean = geometric_mean(map(best_ratio, run["cells"]))
    missed = cells_below_goal(run)
    slower = [c for c in run["cells"] if (r := best_ratio(c)) is not None and r < 1]
    lines = [f"   geometric mean of best peer / {OURS}: {mean:.2f}"] if mean else []
    lines += [f"   below goal: {len(missed)} of {len(run['cells'])}; slower than a peer: {len(slower)}"]
    reasons = {
        f"   {name} - {cell['name']}: {found['missing']}"
        for cell in run["cells"] + run["sweeps"]
        for name, found in cell["engines"].items()
        if "missing" in found
    }
    return lines + sorted(reasons)


def _streams(rows: list[dict[str, Any]]) -> list[list[str]]:
    names = list(rows[0]["engines"])
    lines = [["model", *names]]
    for row in rows:
        found = [row["engines"][name] for name in names]
        lines.append([row["name"], *(f"{e['sample_us']:.3f} µs" if "sample_us" in e else "-" for e in found)])
    return lines


def _manners(row: dict[str, Any]) -> list[list[str]]:
    lines = [["engine", "alone", "crowded", "growth", "of the mean", "after a pause", "CPU when idle"]]
    for name, found in row["engines"].items():
        alone, crowded, pause = (time_text(found[key]) for key in ("alone_us", "crowded_us", "after_pause_us"))
        growth = (f"{found[key]:.2f}x" for key in ("growth", "growth_of_mean"))
        lines.append([name, alone, crowded, *growth, pause, f"{found['idle_cpu']:.1%}"])
    return lines


def _starts(row: dict[str, Any]) -> list[list[str]]:
    lines = [["process", "first result", "of which load", "memory", "at most"]]
    for kind, found in row["engines"].items():
        times = (f"{found[key]:.3f} s" for key in ("total", "load"))
        lines.append([kind, *times, *(f"{found[key]:.0f} MB" for key in ("resident", "peak"))])
    return lines


def aligned(rows: list[list[str]]) -> list[str]:
    """Return rows of texts as lines, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "   " + "  ".join(t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]

"""The site's page of benchmarks and its pictures, made from a result; nothing of it is typed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench import svg, table
from bench.peers import OURS
from bench.summary import ORDER, best_ratio, cells_below_goal, engines, geometric_mean, median_us, where

Run = dict[str, Any]

STYLE = (
    "svg{font:11px system-ui,sans-serif;background:#fff}text{fill:#1c1c1c}.small text{font-size:13px}.small .key"
    "{font-size:12px}"
    ".tick{text-anchor:middle}.end{text-anchor:end}.grid{stroke:#dcdcdc}.reference{stroke:#1c1c1c;stroke-dasharray:4 3}"
    "polyline{fill:none;stroke:var(--c);stroke-width:2}circle,rect{fill:var(--c)}"
    ".s0{--c:#d1495b}.s1{--c:#2e86ab}.s2{--c:#e58f27}.s3{--c:#5b8e55}.s4{--c:#8a63a6}"
    "@media (prefers-color-scheme:dark){svg{background:#161616}text{fill:#e8e8e8}.grid{stroke:#3a3a3a}"
    ".reference{stroke:#e8e8e8}}"
)
LEGEND = 28
SWEEPS = {"time": ("T", "time steps"), "width": ("B", "rows of a batch"), "size": ("H", "hidden units")}


def files(data: dict[str, Any]) -> dict[str, str]:
    """Return the files of the site, by their names in its folder."""
    found, parts = {}, [_head(data)]
    for run in data["runs"]:
        pictures = _pictures(run)
        found |= {f"pictures/{name}.svg": picture for name, (picture, _) in pictures.items()}
        parts.append(_section(run, {name: text for name, (_, text) in pictures.items()}))
    parts.append(f"## All figures\n\n```\n{table.render(data)}\n```\n")
    return found | {"benchmarks.md": "\n".join(parts)}


def _head(data: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["runs"][0]["versions"].items())
    return (
        f"# Benchmarks\n\nMeasured on: **{where(data)}**, Python {data['machine']['python']}; {versions}.\n\n"
        "All engines run in one process, in turns, on the same weights and inputs; each result is compared with a "
        "float64 oracle before it is timed. `python -m bench` measures on your machine; `bench/README.md` in the "
        "repository says how it is done and why it is fair. Page and pictures are made by `python -m bench --publish`."
        "\n"
    )


def _section(run: Run, pictures: dict[str, str]) -> str:
    mean = geometric_mean(map(best_ratio, run["cells"]))
    lines = [f"## {_threads(run)}\n"]
    if mean:
        lines.append(
            f"The best peer of each cell takes {mean:.2f} times as long in the geometric mean of {len(run['cells'])} "
            f"cells; {len(cells_below_goal(run))} of them are below the goal that the project asks of them.\n"
        )
    lines += [f"[![{text}](pictures/{name}.svg)](pictures/{name}.svg)\n" for name, text in pictures.items()]
    return "\n".join(lines)


def _pictures(run: Run) -> dict[str, tuple[str, str]]:
    """Return pictures and their texts by name."""
    count, found = run["threads"], {}
    rows = [(c["name"], {i: c["ratios"][e] for i, e in enumerate(ORDER) if e in c["ratios"]}) for c in run["cells"]]
    if rows:
        title = f"Each peer's time over {OURS}'s with {_threads(run)}: right of the line {OURS} is faster"
        found[f"bench-ratios-{count}"] = alone(svg.dots(rows, "×"), title, _names(run)), title
    for group, (field, words) in SWEEPS.items():
        cells = [c for c in run["sweeps"] if c["case"]["group"] == group]
        lines = {i: [(c["case"][field], median_us(c, e)) for c in cells] for i, e in enumerate(ORDER)}
        known = {i: [(x, y) for x, y in line if y is not None] for i, line in lines.items()}
        if drawn := {i: line for i, line in known.items() if line}:
            title = f"Microseconds a call by {words}, {_threads(run)}"
            found[f"bench-{group}-{count}"] = alone(svg.lines(drawn, words, "µs"), title, _names(run)), title
    return found


def _names(run: Run) -> dict[int, str]:
    """Return the engines of a run by the number of their series."""
    return {ORDER.index(name): name for name in engines(run)}


def _threads(run: Run) -> str:
    return f"{run['threads']} thread" + "s" * (run["threads"] > 1)


def alone(picture: str, title: str, names: Mapping[int, str]) -> str:
    """Return a plot that stands in a file of its own: with its colours, and their names above it."""
    size = re.search(r'viewBox="0 0 (\d+) (\d+)"', picture)
    assert size is not None
    width, height = (int(number) for number in size.groups())
    step = min(130, width // len(names))
    keys = "".join(
        f'<circle class="s{series}" cx="{12 + i * step}" cy="{-LEGEND + 14}" r="4"/>'
        f'<text class="key" x="{20 + i * step}" y="{-LEGEND + 18}">{name}</text>'
        for i, (series, name) in enumerate(names.items())
    )
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 {-LEGEND} {width} {height + LEGEND}"'
    start = picture.replace(size.group(), f'{box} width="{min(width * 3 // 2, 960)}"', 1)
    return start.replace(">", f"><title>{title}</title><style>{STYLE}</style>{keys}", 1) + "\n"

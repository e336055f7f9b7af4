"""Pictures as SVG that stands alone: no dependency, no script, readable in the dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from fastlstm.reporting.tables import time_text

__all__ = ["histogram_svg", "shares_svg"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 800, 400, 64, 24, 46, 48
STYLE = (
    "svg{font:13px system-ui,sans-serif;background:#fff}text{fill:#222}.grid{stroke:#ddd}.bar{fill:#2a78b8}"
    ".part{fill:#2a78b8;stroke:#fff}.part.b{fill:#4b93cc}.part.c{fill:#8a8f98}.on{fill:#fff}"
    ".mark{stroke:#c33;stroke-dasharray:4 3}.axis{fill:#666}.title{font-size:15px}"
    "@media (prefers-color-scheme:dark){svg{background:#16181c}text{fill:#ddd}.grid{stroke:#333}.axis{fill:#999}"
    ".part{stroke:#16181c}.on{fill:#fff}}"
)


def histogram_svg(counts: Sequence[int], edges: Sequence[float], marks: Mapping[str, float], title: str = "") -> str:
    """Return a histogram whose axes are both logarithmic: a single slow call shows.

    Parameters
    ----------
    counts : sequence of int
    edges : sequence of float
        One more than the counts, in microseconds, above zero.
    marks : mapping of str to float
        Lines to draw, in microseconds.
    title : str
    """
    first, last = min([edges[0], *marks.values()]), max([edges[-1], *marks.values()])
    low, high = math.log(first), math.log(last)
    most = max(10, *counts)
    bottom = HEIGHT - BOTTOM

    def x(value: float) -> float:
        return LEFT + (WIDTH - RIGHT - LEFT) * (math.log(value) - low) / (high - low)

    def y(count: float) -> float:
        # Half a call is the bottom, so that one call has some height.
        return bottom - (bottom - TOP) * math.log(count / 0.5) / math.log(most / 0.5)

    parts = [f'<text class="title" x="{LEFT}" y="22">{escape(title)}</text>']
    for power in range(int(math.log10(most)) + 1):
        at = y(10.0**power)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
        parts.append(f'<text class="axis" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10**power:,}</text>')
    parts += [
        f'<text class="axis" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
        for tick in _ticks(first, last)
    ]
    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            tip = f"<title>{time_text(1e-6 * start)} to {time_text(1e-6 * end)}: {count:,} calls</title>"
            width = max(x(end) - x(start) - 0.5, 0.5)
            size = f'x="{x(start):.1f}" y="{y(count):.1f}" width="{width:.1f}" height="{bottom - y(count):.1f}"'
            parts.append(f'<rect class="bar" {size}>{tip}</rect>')
    for number, (name, value) in enumerate(marks.items()):
        at = x(value)
        parts.append(f'<line class="mark" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        anchor = "end" if at > WIDTH - 140 else "start"
        shift = -4 if anchor == "end" else 4
        height = TOP + 12 + 16 * number
        label = f"{escape(name)} {time_text(1e-6 * value)}"
        parts.append(f'<text x="{at + shift:.1f}" y="{height}" text-anchor="{anchor}">{label}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">µs a call</text>')
    parts.append(f'<text class="axis" x="{LEFT - 8}" y="{TOP - 8}" text-anchor="end">calls</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def shares_svg(parts: Sequence[tuple[str, str, float]], title: str = "") -> str:
    """Return shares of a whole on two levels: groups, and below each its members, all as wide as their share.

    Parameters
    ----------
    parts : sequence of (str, str, float)
        Group, member, share; those of a group need not stand together.
    title : str
    """
    groups: dict[str, list[tuple[str, float]]] = {}
    for group, member, share in parts:
        groups.setdefault(group, []).append((member, share))
    width, row, left = WIDTH - LEFT // 2 - RIGHT, 34, LEFT // 2
    drawn = [f'<text class="title" x="{left}" y="22">{escape(title)}</text>']
    at = float(left)
    for number, (group, members) in enumerate(groups.items()):
        whole = sum(share for _, share in members)
        drawn.append(_box(at, TOP, whole * width, row, "part" if number % 2 else "part b", group, whole))
        for member, share in members:
            drawn.append(_box(at, TOP + row, share * width, row, "part c", member, share))
            at += share * width
    height = TOP + 2 * row + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<style>{STYLE}</style>{''.join(drawn)}</svg>\n"
    )


def _box(x: float, y: float, width: float, height: float, style: str, name: str, share: float) -> str:
    text = f"{name} {100 * share:.1f} %"
    box = f'<rect class="{style}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}"/>'
    room = int(width / 7.5)  # characters
    words = text if len(text) <= room else name if len(name) <= room else ""
    label = f'<text class="on" x="{x + 5:.1f}" y="{y + height / 2 + 4:.0f}">{escape(words)}</text>' if words else ""
    return f"<g><title>{escape(text)}</title>{box}{label}</g>"


def _ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]

"""A line chart, with bars below it, as an SVG file: written by hand so that it needs no plotting package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

__all__ = ["Bars", "Line", "line_chart"]

WIDTH, HEIGHT = 960, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 64, 40
GROUP, ROW, NAME = 38, 22, 110  # heights of a group's heading and of a bar, width of a bar's name


@dataclass(frozen=True)
class Line:
    """One curve of a chart: its name in the legend, its points and its colour."""

    name: str
    x: npt.NDArray[np.floating]
    y: npt.NDArray[np.floating]
    colour: str


@dataclass(frozen=True)
class Bars:
    """A group of bars: its heading, and each one's length and what stands at its end, by name."""

    title: str
    values: Mapping[str, tuple[float, str]]


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    bars: Sequence[Bars] = (),
    foot: str = "",
) -> str:
    """Return an SVG document with `lines` drawn over a grid at the ticks, and groups of bars below.

    The ticks set the range of the y axis; the points of the first line set that of the x axis. The longest bar of a
    group fills the width; the first bar has the last line's colour.
    """
    x_low, x_high = float(lines[0].x.min()), float(lines[0].x.max())
    y_low, y_high = min(y_ticks), max(y_ticks)

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + _height(bars, foot)}" role="img" '
        f'font-family="sans-serif" font-size="13" fill="#333"><title>{escape(title)}</title>',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="16">{escape(title)}</text>',
    ]
    for y in y_ticks:
        parts.append(f'<path d="M{LEFT} {down(y):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{down(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        parts.append(f'<path d="M{across(x):.1f} {HEIGHT - BOTTOM}v5" stroke="#333"/>')
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 16}" text-anchor="middle">{x:g}</text>')
    for position, line in enumerate(lines):
        points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(line.x, line.y, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="1.5"/>')
        left = LEFT + 240 * position
        parts.append(f'<path d="M{left} 44h24" stroke="{line.colour}" stroke-width="3"/>')
        parts.append(f'<text x="{left + 32}" y="48">{escape(line.name)}</text>')
    parts += _bars(bars, lines[-1].colour)
    if foot:
        parts.append(f'<text x="{LEFT}" y="{HEIGHT + _height(bars, foot) - 14}" font-size="12">{escape(foot)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _height(bars: Sequence[Bars], foot: str) -> int:
    """Return what groups of bars and a foot add to the height."""
    return sum(GROUP + ROW * len(group.values) for group in bars) + (36 if foot else 0)


def _bars(bars: Sequence[Bars], colour: str) -> list[str]:
    parts, top = [], HEIGHT
    for group in bars:
        parts.append(f'<text x="{LEFT}" y="{top + 22}" font-size="14">{escape(group.title)}</text>')
        most = max(length for length, _ in group.values.values())
        for row, (name, (length, text)) in enumerate(group.values.items()):
            y = top + GROUP - 6 + ROW * row
            wide = max(2.0, (WIDTH - LEFT - RIGHT - NAME - 90) * length / most)
            fill = colour if row == 0 else "#8a8f98"
            parts.append(f'<text x="{LEFT}" y="{y + 13}">{escape(name)}</text>')
            parts.append(f'<rect x="{LEFT + NAME}" y="{y}" width="{wide:.1f}" height="16" fill="{fill}"/>')
            parts.append(f'<text x="{LEFT + NAME + wide + 8:.1f}" y="{y + 13}">{escape(text)}</text>')
        top += GROUP + ROW * len(group.values)
    return parts

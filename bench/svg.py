"""Plots as SVG text: dots by row, bars by row, ranges by row, and lines. No dependency, no script.

Every plot takes plain data and returns one ``<svg>`` element, sized by its viewBox; colours come from the CSS
classes ``s0``, ``s1``, ... of the page, in the order of the series.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

__all__ = ["bars", "dots", "lines", "ranges"]

WIDTH, RIGHT, ROW, TOP, BOTTOM = 960, 60, 18, 12, 34
LETTER = 6.5
"""The room for a letter of a label, in 11 pixels: the names take 5.9 a letter in DejaVu Sans, which is a wide font."""

Scale = Callable[[float], float]
Row = tuple[str, Mapping[int, float]]
RangeRow = tuple[str, Mapping[int, Sequence[float]]]


def dots(rows: Sequence[Row], unit: str, reference: float = 1.0) -> str:
    """Draw one line of dots a row, on a logarithmic axis with a vertical line at `reference`."""
    values = [v for _, series in rows for v in series.values()]
    if not values:
        return ""
    x, ticks = _log_axis([*values, reference / 1.2, reference * 1.2], _left(rows), WIDTH - RIGHT)
    marks = [_line(x(reference), TOP, x(reference), _height(rows) - BOTTOM, "reference")]
    for y, (_, series) in _at(rows):
        marks += [_dot(x(value), y, 4, f"{value:.2f}{unit}", f"s{number}") for number, value in series.items()]
    return _by_row(rows, x, ticks, unit, marks)


def bars(rows: Sequence[tuple[str, float]], unit: str, full: float, mark: float) -> str:
    """Draw one bar a row from 0 on a linear axis that reaches at least `full`, with a line at `mark`."""
    if not rows:
        return ""
    most, left = max(full, *(value for _, value in rows)), _left(rows)

    def x(value: float) -> float:
        return left + (WIDTH - RIGHT - left) * value / most

    ticks = [full * k / 5 for k in range(int(5 * most / full) + 1)]
    marks = [_line(x(mark), TOP, x(mark), _height(rows) - BOTTOM, "reference")]
    for y, (_, value) in _at(rows):
        marks.append(
            f'<rect class="s0" x="{left:.1f}" y="{y - 5}" width="{x(value) - left:.1f}" height="10"/>'
            f'<text class="value" x="{x(value) + 4:.1f}" y="{y + 4}">{value:.0f}{unit}</text>'
        )
    return _by_row(rows, x, ticks, unit, marks)


def ranges(rows: Sequence[RangeRow], unit: str) -> str:
    """Draw the spread of each series in a row on a logarithmic axis.

    A series is five numbers, say p1, p25, p50, p75 and p99: a thin line, a thick one, and a dot.
    """
    values = [v for _, series in rows for numbers in series.values() for v in numbers]
    if not values:
        return ""
    tall = max(ROW, 7 * max(len(series) for _, series in rows) + 8)
    x, ticks = _log_axis(values, _left(rows), WIDTH - RIGHT)
    marks: list[str] = []
    for middle, (_, series) in _at(rows, tall):
        for place, (number, (low, q1, median, q3, high)) in enumerate(series.items()):
            y = middle + 7 * (place - (len(series) - 1) / 2)
            marks.append(
                f'<g class="s{number}"><path d="M{x(low):.1f} {y}H{x(high):.1f}"/>'
                f'<path class="thick" d="M{x(q1):.1f} {y}H{x(q3) + 1:.1f}"/>'
                f"{_dot(x(median), y, 2.5, f'{low:.3g} / {median:.3g} / {high:.3g}{unit}')}</g>"
            )
    return _by_row(rows, x, ticks, unit, marks, tall)


def lines(series: Mapping[int, Sequence[tuple[float, float]]], x_title: str, y_title: str) -> str:
    """Draw one polyline with dots a series, both axes logarithmic; 430 wide."""
    points = [p for line in series.values() for p in line]
    if not points:
        return ""
    left, right, top, bottom = 62, 420, 12, 210
    x, x_ticks = _log_axis([p[0] for p in points], left, right, base=2)
    y, y_ticks = _log_axis([p[1] for p in points], bottom, top)
    parts = [_line(x(t), top, x(t), bottom, "grid") + _text(x(t), bottom + 16, f"{t:g}", "tick") for t in x_ticks]
    parts += [_line(left, y(t), right, y(t), "grid") + _text(left - 6, y(t) + 4, f"{t:g}", "end") for t in y_ticks]
    parts += [_text((left + right) / 2, bottom + 34, x_title, "tick"), _text(left, 8, y_title, "start")]
    for number, line in series.items():
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        knots = "".join(_dot(x(a), y(b), 3, f"{b:.3g}") for a, b in line)
        parts.append(f'<g class="s{number}"><polyline points="{path}"/>{knots}</g>')
    return f'<svg class="small" viewBox="0 0 430 250" role="img">{"".join(parts)}</svg>'


def _by_row(
    rows: Sequence[tuple[str, object]],
    x: Scale,
    ticks: list[float],
    unit: str,
    marks: list[str],
    tall: int = ROW,
) -> str:
    height = _height(rows, tall)
    parts = [_line(x(t), TOP, x(t), height - BOTTOM, "grid") for t in ticks]
    parts += [_text(x(t), height - BOTTOM + 16, f"{t:g}{unit}", "tick") for t in ticks]
    parts += [_text(_left(rows) - 8, y + 4, label, "end") for y, (label, _) in _at(rows, tall)]
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts + marks)}</svg>'


def _left(rows: Sequence[tuple[str, object]]) -> float:
    """Return where the plot begins: right of the longest label."""
    return 16 + LETTER * max(len(label) for label, _ in rows)


def _at(rows: Sequence[tuple[str, object]], tall: int = ROW) -> list[tuple[int, tuple[str, object]]]:
    return [(TOP + tall * i + tall // 2, row) for i, row in enumerate(rows)]


def _height(rows: Sequence[object], tall: int = ROW) -> int:
    return TOP + tall * len(rows) + BOTTOM


def _log_axis(values: Sequence[float], low: float, high: float, base: int = 10) -> tuple[Scale, list[float]]:
    """Return the scale from the values' range to [low, high], and its ticks."""
    first, last = math.log(min(values)), math.log(max(values))
    spread = max(last - first, 0.1)
    first, last = first - 0.04 * spread, first + 1.04 * spread

    def scale(value: float) -> float:
        return low + (high - low) * (math.log(value) - first) / (last - first)

    steps = (1.0,) if base == 2 or last - first > 9 else (1.0, 2.0, 5.0)
    powers = range(math.floor(first / math.log(base)), math.ceil(last / math.log(base)) + 1)
    ticks = [step * float(base) ** power for power in powers for step in steps]
    return scale, [t for t in ticks if first <= math.log(t) <= last]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _dot(x: float, y: float, radius: float, tip: str, kind: str = "dot") -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{_title(tip)}</circle>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"

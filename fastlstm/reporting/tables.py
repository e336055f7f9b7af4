"""Rows of data as a table, aligned text for a terminal or HTML for a notebook; times with a unit that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["facts_html", "table", "table_html", "time_text"]

Rows = Sequence[Mapping[str, Any]]


def time_text(seconds: float) -> str:
    """Return a time in the unit that fits it, from ns to s, as in "58.21 s"."""
    unit, factor = next((u, f) for u, f in _UNITS if seconds * f >= 1 or u == "ns")
    return f"{seconds * factor:.4g} {unit}"


_UNITS = (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9))


def table(rows: Rows, columns: Sequence[str]) -> str:
    """Return rows as aligned text; numbers to the right."""
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max([len(c), *(len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    number = _numbers(rows, columns)

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, number, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(list(columns)), line(["-" * w for w in widths]), *map(line, cells)])


def table_html(rows: Rows, columns: Sequence[str], caption: str = "") -> str:
    """Return rows as an HTML table; numbers to the right."""
    sides = ["right" if number else "left" for number in _numbers(rows, columns)]
    head = "".join(
        f'<th scope="col" style="text-align:{s}">{escape(c)}</th>' for c, s in zip(columns, sides, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(
            f'<td style="text-align:{side}">{escape(_text(row.get(column, "")))}</td>'
            for column, side in zip(columns, sides, strict=True)
        ) + "</tr>"
        for row in rows
    )  # fmt: skip
    return f"<table>{_caption(caption)}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts_html(facts: Mapping[str, Any], caption: str = "") -> str:
    """Return facts by name as an HTML table of two columns; of a fact with several lines, each is one."""
    left, rows = 'style="text-align:left"', ""
    for name, fact in facts.items():
        lines = fact if isinstance(fact, list | tuple) else [fact]
        text = "<br/>".join(escape(_text(line)) for line in lines)
        rows += f'<tr><th scope="row" {left}>{escape(name)}</th><td {left}>{text}</td></tr>'
    return f"<table>{_caption(caption)}<tbody>{rows}</tbody></table>"


def _caption(text: str) -> str:
    return f'<caption style="text-align:left">{escape(text)}</caption>' if text else ""


def _numbers(rows: Rows, columns: Sequence[str]) -> list[bool]:
    """Return which columns hold numbers."""
    return [bool(rows) and isinstance(rows[0].get(column), int | float) for column in columns]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

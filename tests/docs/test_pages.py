"""Pages that everybody can read: headings in order, pictures with words, contrast, a way for each kind of user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fastlstm.cli.chart import Bars, Line, line_chart
from fastlstm.reporting.picture import histogram_svg, shares_svg

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LEAST = 4.5  # of contrast between text and what it stands on: WCAG 2.1, level AA


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_headings_go_down_by_one_and_pictures_have_words(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    levels = [len(found) for found in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
        assert len(words.split()) > 3, target
        assert (page.parent / target).is_file()


def test_every_kind_of_user_is_one_link_away_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in ("pytorch", "keras", "audio", "embedded", "server"):
        assert f"(docs/tutorials/{page}.md)" in text
    for page in ("scoring", "coming-from", "deployment", "streaming", "benchmarks"):
        assert f"(docs/{page}.md)" in text


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def schemes(style: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the background and the colours of text of a picture, by day and by night."""
    day, _, night = style.partition("@media")
    for part in (day, night):
        background = re.search(r"background:(#\w+)", part)
        texts = re.findall(r"(?:text|\.axis|\.tick|\.end)\{(?:[^}]*;)?fill:(#\w+)", part)
        if background:
            yield background[1], texts


def pictures() -> Iterator[str]:
    yield histogram_svg([1, 2], [1.0, 2.0, 3.0], {"p50": 1.5})
    yield shares_svg([("lstm", "recurrent.lstm", 1.0)])
    yield from (path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.svg")))


def test_text_in_pictures_has_contrast_by_day_and_by_night() -> None:
    seen = 0
    for picture in pictures():
        root = ElementTree.fromstring(picture)
        style = "".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}style"))
        for background, texts in schemes(style):
            for colour in texts:
                assert contrast(background, colour) >= LEAST, (background, colour)
                seen += 1
    assert seen > 20
    # White on the parts of a profile, dark on the white of a chart.
    for part in ("#2a78b8", "#4b93cc"):
        assert contrast("#fff", part) >= 3, part  # bold, and its words stand below it too
    assert contrast("#fff", "#333") >= LEAST


def test_charts_say_what_they_are() -> None:
    import numpy as np

    line = Line("a", np.array([0.0, 1.0]), np.array([0.0, 1.0]), "#c2410c")
    bars = [Bars("Time of it", {"fastlstm": (1.0, "1 µs"), "other": (2.0, "2 µs")})]
    root = ElementTree.fromstring(line_chart("What it is", [line], [0, 1], [0, 1], bars, "where"))
    assert root.get("role") == "img"
    assert root[0].text == "What it is"
    rectangles = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("height") == "16"]
    ours, theirs = (float(r.get("width") or 0) for r in rectangles)
    assert theirs == pytest.approx(2 * ours, rel=1e-3)

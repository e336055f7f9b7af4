"""The table in converters/README.md is the one that the code gives."""

from __future__ import annotations

from pathlib import Path

from fastlstm.converters import table
from fastlstm.converters.keras.load import KINDS

README = Path(__file__).parents[2] / "converters" / "README.md"


def test_readme_is_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    assert table.updated(text) == text, "run: python -m fastlstm.converters.table converters/README.md"


def test_every_layer_that_is_read_has_a_row() -> None:
    text = table.render()
    assert all(f"| `{name}` |" in text for name in KINDS)

"""Every public name stands in the API reference, is documented in full, and has an example that runs."""

from __future__ import annotations

import doctest
import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest

import fastlstm

os.environ.setdefault("KERAS_BACKEND", "torch")

DOCS = Path(__file__).parents[2] / "docs"
NAMES = [name for name in fastlstm.__all__ if name != "__version__"]
SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)
NOT_FOR_USERS = {"waiting", "keep_first_call", "streaming_engine"}


def sections(thing: Any) -> set[str]:
    return set(SECTION.findall(inspect.getdoc(thing) or ""))


def parameters(thing: Any) -> list[str]:
    found = inspect.signature(thing).parameters.values()
    return [parameter.name for parameter in found if parameter.name not in ("self", "cls", "options", "args", "kwargs")]


def methods(kind: type) -> dict[str, Any]:
    """Return the public methods and properties of a class of ours."""
    own = {name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")}
    return {
        name: value.fget if isinstance(value, property) else getattr(kind, name)
        for name, value in own.items()
        if name not in NOT_FOR_USERS and (isinstance(value, property) or callable(getattr(kind, name)))
    }


def test_dir_shows_public_names_and_nothing_else() -> None:
    assert dir(fastlstm) == sorted([*fastlstm.__all__, "__version__", "ray"])


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    named = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    named |= set(re.findall(r"\b(\w+(?:Error|Warning))\b", text))
    assert set(NAMES) <= named


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_in_full(name: str) -> None:
    thing = getattr(fastlstm, name)
    text, found = inspect.getdoc(thing) or "", sections(thing)
    assert "Examples" in found
    if issubclass(thing, Exception) if inspect.isclass(thing) else False:
        return
    if inspect.isclass(thing):
        assert found & {"Parameters", "Attributes"}
        for label, method in methods(thing).items():
            assert inspect.getdoc(method), label
    else:
        assert {"Parameters", "Returns", "Raises"} <= found
        for parameter in parameters(thing):
            assert re.search(rf"\b{parameter}\b", text), parameter


@pytest.mark.parametrize("name", NAMES)
def test_an_example_does_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(getattr(fastlstm, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert not said, "".join(said)

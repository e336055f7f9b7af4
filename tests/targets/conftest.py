"""What the tests of exported code share: a model for every target, and a way to compile."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from exported import RUN, late, recurrent

import fastlstm

Compile = Callable[..., Path]


@pytest.fixture(scope="session")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LSTM of 20 units for every target that can be run."""
    folder = tmp_path_factory.mktemp("exports") / "amp"
    fastlstm.export(recurrent("lstm", 20), folder, targets=tuple(RUN), name="amp")
    return folder


@pytest.fixture(scope="session")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream with a hop and a delay, for the same targets."""
    folder = tmp_path_factory.mktemp("waiting") / "amp"
    fastlstm.export(late(), folder, targets=tuple(RUN), name="amp")
    return folder


@pytest.fixture(params=["everywhere", "waiting"])
def stream(request: pytest.FixtureRequest) -> Path:
    """Each of the two, one after the other."""
    return Path(request.getfixturevalue(request.param))


@pytest.fixture
def compile_c(tmp_path: Path) -> Compile:
    """Compile and link C for this machine; returns the program."""

    def build(*words: str | Path, compiler: str = "cc") -> Path:
        program = tmp_path / "program"
        done = subprocess.run(
            [compiler, *map(str, words), "-o", str(program)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return program

    return build

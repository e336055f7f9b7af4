"""A converted model and a series for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import ONNX

from fastlstm.cli import main


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("model") / "m.fastlstm")
    assert main(["convert", ONNX, "-o", path]) == 0
    return path


@pytest.fixture
def series(tmp_path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).standard_normal((1, 40, 1)).astype(np.float32))
    return path

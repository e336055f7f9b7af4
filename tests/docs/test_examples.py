"""Every Python block and every fastlstm command of the documentation runs, from the top of its page to the end.

A line ``#> text`` in a block is what the line above it prints.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import fastlstm
from fastlstm.cli import main

os.environ.setdefault("KERAS_BACKEND", "torch")

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {"scoring.md"}  # tests/scoring/test_docs.py has the data and the clusters that its blocks ask for
PAGES = sorted(
    path
    for path in (DOCS.parent / "README.md", *DOCS.rglob("*.md"))
    if path.name not in ELSEWHERE and BLOCK.search(path.read_text(encoding="utf-8"))
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    names: dict[str, Any] = READERS.get(page.name, dict)()
    for block in BLOCK.finditer(text):
        if block[1] == "sh":
            for line in block[2].strip().splitlines():
                program, *words = shlex.split(line, comments=True)
                assert program == "fastlstm"
                assert main(words) == 0, line
        else:
            line = text.count("\n", 0, block.start(2))
            code = compile("\n" * line + block[2], str(page), "exec")  # errors name the page's own lines
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, names)
            expected = re.findall(r"^ *#> (.*)$", block[2], re.MULTILINE)
            assert printed.getvalue().splitlines() == expected


class Halving(torch.nn.Module):
    """Frames [batch, time, 3] through a convolution that looks two frames ahead and leaves out every other one."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv1d(3, 4, 5, stride=2, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x.transpose(1, 2)).transpose(1, 2)


def a_readers_stream() -> dict[str, Any]:
    """Return what the page on streams takes for granted: two models of the reader's own, and frames."""
    shapes = {"weight_ih_l0": (32, 3), "weight_hh_l0": (32, 8), "bias_ih_l0": (32,), "bias_hh_l0": (32,)}
    weights = {f"lstm.{name}": np.full(shape, 0.1, np.float32) for name, shape in shapes.items()}
    model = fastlstm.from_state_dict(weights, layers="lstm", batch_first=True)
    halving = fastlstm.from_torch(Halving(), (torch.zeros(2, 64, 3),))
    frames = np.zeros((64, 3), np.float32)
    return {
        "model": model, "halving": halving, "frame": frames[0], "chunk": frames, "frames": frames[:2],
        "long": frames[:20], "short": frames[:5], "np": np, "fastlstm": fastlstm,
    }  # fmt: skip


def recurrent_model() -> onnx.ModelProto:
    """Return an LSTM over x [time, batch, 3]."""
    shapes = {"W": (1, 32, 3), "R": (1, 32, 8), "B": (1, 64)}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", *shapes], ["y"], hidden_size=8)],
        "readers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["time", 1, "batch", 8])],
        [numpy_helper.from_array(np.full(shape, 0.1, np.float32), name) for name, shape in shapes.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def a_readers_model() -> dict[str, Any]:
    """Return what the README takes for granted: a model file, a module, weights, frames."""
    onnx.save(recurrent_model(), "model.onnx")
    weights = {name: np.full(shape, 0.1, np.float32) for name, shape in SHAPES.items()}
    return {
        "x": np.zeros((5, 1, 3), np.float32), "frames": np.zeros((64, 3), np.float32), "fastlstm": fastlstm,
        "module": torch.nn.GRU(3, 8), "example": torch.zeros(5, 2, 3), **weights,
    }  # fmt: skip


SHAPES = {"weight_ih": (32, 3), "weight_hh": (32, 8), "bias": (32,)}
READERS = {"streaming.md": a_readers_stream, "README.md": a_readers_model}

"""Kernels one by one, with pytest-benchmark: ``pytest bench/``.

A kernel runs as it does in a model: one instruction of a layer's program, over all time steps, without Python
around it. Store a run with ``--benchmark-save=NAME`` and compare with ``--benchmark-compare``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import fastlstm
from bench.cases import Case
from fastlstm.conformance import ulp
from fastlstm.graph.quantise import PRECISIONS
from fastlstm.runtime.program import BoundProgram
from fastlstm.runtime.segment import Segment

CASES = (
    Case("sequence", "LSTM", 100, 1, 1, 20),
    Case("sequence", "LSTM", 100, 1, 10, 64),
    Case("sequence", "LSTM", 100, 1, 128, 128),
    Case("sequence", "LSTM", 100, 1, 512, 512),
    Case("batch", "LSTM", 100, 8, 128, 128),
    Case("batch", "LSTM", 100, 32, 256, 256),
    Case("sequence", "GRU", 100, 1, 256, 256),
    Case("batch", "GRU", 100, 32, 256, 256),
    Case("sequence", "RNN", 100, 1, 256, 256),
    Case("batch", "RNN", 100, 32, 256, 256),
    Case("projected", "LSTM", 100, 1, 512, 512, projection=256),
)


def kernels(case: Case, precision: str) -> list[tuple[str, Callable[[], Any]]]:
    """Return the kernels that multiply, in the order they run, each with a call that runs it over the sequence."""
    (segment,) = fastlstm.Model(case.graph(), precision=precision).plan.parts
    assert isinstance(segment, Segment)
    sizes, arrays = {"T": case.T, "B": case.B}, {"x": case.x()}
    for name, (_, axes, features) in segment.outputs.items():
        arrays[name] = np.empty([sizes.get(axis, features) for axis in axes], np.float32)
    found = []
    for stage in segment.program.stages:
        for step in stage.instructions:
            if step.macs:
                program = BoundProgram(replace(segment.program, stages=(replace(stage, instructions=(step,)),)), case.B)
                for name, (slot, axes, _) in (segment.inputs | segment.outputs).items():
                    program.bind(slot, arrays[name], axes.index("T"), axes.index("B"))
                    program.keep(slot, arrays[name])
                found.append((step.kernel, partial(program.run, case.T)))
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("number", [0, -1], ids=["input", "recurrent"])
def test_kernel(benchmark: Any, case: Case, number: int, precision: str) -> None:
    name, run = kernels(case, precision)[number]
    benchmark.extra_info.update(kernel=name)
    assert benchmark(run) == 0


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh"])
def test_activation(benchmark: Any, name: str) -> None:
    x = np.random.default_rng(0).standard_normal(ulp.BLOCK).astype(np.float32)
    run = ulp.Mapped(name)
    benchmark(run, x)
    assert ulp.largest_error(name, run, x)[0] <= 2

"""A few of the models that `make differ` draws, the seeds that failed once among them; and what check mode sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx_differ
import pytest
import torch_differ

HERE = Path(__file__).parent
CHECKED = {**os.environ, "FASTLSTM_CHECK": "1"}

FAILED_ONNX = (6, 17, 30)  # while all layers of a segment shared one set of lengths
FAILED_TORCH = (1, 4, 8, 11, 12, 22)
ONNX = (*FAILED_ONNX, 3, 5, 11, 23, 37)
TORCH = (*FAILED_TORCH, 2, 9)


@pytest.mark.parametrize("seed", ONNX)
def test_onnx_models_agree_with_the_reference_and_onnxruntime(seed: int) -> None:
    assert onnx_differ.difference(onnx_differ.draw(seed)) == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", TORCH)
def test_torchscript_modules_agree_with_torch(seed: int) -> None:
    assert torch_differ.difference(torch_differ.draw(seed)) == ""


def test_lies_about_shapes_are_refused_or_computed_as_they_say() -> None:
    """In check mode and between protected pages; a crash ends the process that draws them, and is counted."""
    command = [sys.executable, HERE, "--kind", "lies", "--count", "60", "--seed", "91"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "60 cases, 0 failed" in found.stdout


OUT_OF_BOUNDS = """
import numpy as np
from fastlstm.program import layout
from fastlstm.target import machine
from fastlstm.program.arguments.rows import Move
from fastlstm.program.program import Instruction, Program, Slot, Stage
from fastlstm.program.memory import address_of
from fastlstm.runtime.program import BoundProgram
slots = [Slot("x", "row", 8), Slot("y", "row", 8)]
step = Instruction("movement.move", (), Move(0, 1, 0, 0, {count}))
program = BoundProgram(Program(machine.detect(), tuple({slots}), (Stage(layout.ONCE, (step,)),)), 1)
print("assembled", flush=True)
program.run(1)
print("ran")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=CHECKED)


def test_an_instruction_that_would_leave_its_rows_is_not_assembled() -> None:
    assert "ran" in run(OUT_OF_BOUNDS.format(count=8, slots="slots")).stdout
    found = run(OUT_OF_BOUNDS.format(count=9, slots="slots"))
    assert found.returncode == 1
    assert "9 floats of a row of 'x', which has 8" in found.stderr


@pytest.mark.skipif(os.name != "posix", reason="pages are protected by mprotect")
def test_a_kernel_that_leaves_its_memory_stops_there() -> None:
    code = OUT_OF_BOUNDS.format(count=1 << 12, slots="[Slot('x', 'row', 4096), Slot('y', 'row', 4096)]")
    assert "ran" in run(code).stdout
    small = "program._table[1, layout.SLOT_BASE] = address_of(program.rows(1)) + 4 * 4096\nprogram.run(1)"
    found = run(code.replace("program.run(1)", small))
    assert "assembled" in found.stdout
    assert found.returncode < 0, "the process is stopped by a signal"

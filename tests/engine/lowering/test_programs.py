"""Programs are values: written by one process, read and bound by another, they give the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.errors import FileFormatError
from fastlstm.executor import Executor
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.lowering.plan import make_plan
from fastlstm.lowering.tapes.steps import Recorded
from fastlstm.lowering.tapes.tape import record
from fastlstm.program.memory import memory_of
from fastlstm.program.program import Program, place
from fastlstm.runtime.segment import Segment
from fastlstm.target import TARGETS

RNG = np.random.default_rng(0)
FORMATS = ("float32", "int16", "int8")


def weights(*shape: int) -> np.ndarray:
    return RNG.uniform(-0.4, 0.4, shape).astype(np.float32)


def segment_of(precision: str, **more: object) -> Segment:
    layer = fastlstm.LSTM(weights(4 * 48, 5), weights(4 * 48, 48), weights(4 * 48), precision=precision, **more)
    (segment,) = layer._model(False, False).plan.parts
    assert isinstance(segment, Segment)
    return segment


BIND = """
import sys
from pathlib import Path
import numpy as np
from fastlstm.program.program import Program
from fastlstm.runtime.program import BoundProgram
folder = Path(sys.argv[1])
program = Program.from_bytes((folder / "program").read_bytes())
given = np.load(folder / "x.npy")
"""

RUN_SEGMENT = (
    BIND
    + """
T, B, _ = given.shape
y = np.zeros((T, B, 48), np.float32)
bound = BoundProgram(program, B)
for slot, array in ((int(sys.argv[2]), given), (int(sys.argv[3]), y)):
    bound.bind(slot, array, 0, 1)
bound.run(T)
np.save(folder / "y.npy", y)
"""
)

RUN_TAPE = (
    BIND
    + """
source, out, offset = map(int, sys.argv[2:])
program.scratch[source][: given.size] = given.reshape(-1)
BoundProgram(program, 1).run(1)
np.save(folder / "y.npy", program.scratch[out].reshape(-1)[offset // 4 :])
"""
)


def elsewhere(script: str, folder: Path, program: Program, x: np.ndarray, *numbers: int) -> np.ndarray:
    (folder / "program").write_bytes(program.to_bytes())
    np.save(folder / "x.npy", x)
    subprocess.run([sys.executable, "-c", script, str(folder), *map(str, numbers)], check=True)
    return np.load(folder / "y.npy")


@pytest.mark.parametrize("precision", FORMATS)
def test_a_segment_that_another_process_wrote_gives_the_same_bits(precision: str, tmp_path: Path) -> None:
    segment = segment_of(precision)
    x = RNG.standard_normal((9, 3, 5)).astype(np.float32)
    ((name, (source, _, _)),) = segment.inputs.items()
    wanted = segment.run({name: x})
    ((shown, (out, _, _)),) = segment.outputs.items()
    np.testing.assert_array_equal(elsewhere(RUN_SEGMENT, tmp_path, segment.program, x, source, out), wanted[shown])


def attention() -> Graph:
    """Return a convolution, a layer and attention over its outputs: what runs as a tape."""
    nodes = (
        Node("Conv", ("x", "kernel"), ("c",), {"pads": [1, 1]}),
        Node("Relu", ("c",), ("r",)),
        Node("Transpose", ("r",), ("t",), {"perm": [2, 0, 1]}),
        Node(
            "LSTM", ("t", "w", "u"), ("y",),
            {"hidden_size": 20, "directions": ["forward"], "clip": None, "input_forget": 0,
             "activations": [[["Sigmoid", None, None], ["Tanh", None, None], ["Tanh", None, None]]]},
        ),
        Node("Transpose", ("y",), ("b",), {"perm": [1, 0, 2]}),
        Node("Transpose", ("b",), ("k",), {"perm": [0, 2, 1]}),
        Node("MatMul", ("b", "k"), ("s",)),
        Node("Softmax", ("s",), ("p",), {"axis": -1}),
        Node("MatMul", ("p", "b"), ("out",)),
    )  # fmt: skip
    constants = {"kernel": weights(6, 3, 3), "w": weights(1, 80, 6), "u": weights(1, 80, 20)}
    return Graph(
        (TensorSpec("x", (2, 3, 11), "float32"),), (TensorSpec("out", (2, 11, 20), "float32"),), nodes, constants
    )


def test_a_tape_that_another_process_wrote_gives_the_same_bits(tmp_path: Path) -> None:
    x = RNG.standard_normal((2, 3, 11)).astype(np.float32)
    tape, (wanted,) = record(Executor(attention()), {"x": x}, {})
    (step,) = tape.steps
    assert isinstance(step, Recorded)
    program, out = step.program.program, tape.outputs[0].array
    numbers = {id(array): n for n, array in enumerate(program.scratch)}
    source, target = numbers[id(memory_of(tape.inputs[0]))], numbers[id(memory_of(out))]
    found = elsewhere(RUN_TAPE, tmp_path, program, x, source, target, place(out).offset)
    np.testing.assert_array_equal(found[: wanted.size].reshape(wanted.shape), wanted)


def test_programs_that_do_the_same_are_equal_and_print_the_same() -> None:
    program = segment_of("int8").program
    again = Program.from_bytes(program.to_bytes())
    assert again == program
    assert hash(again) == hash(program)
    assert str(again) == str(program)
    assert again != replace(program, target=TARGETS["aarch64"])
    assert "recurrent.lstm" in str(program)
    assert len(repr(program)) < 100


def test_a_damaged_program_is_refused() -> None:
    content = segment_of("float32").program.to_bytes()
    for damaged in (b"", content[:20], content[: len(content) // 2], b"x" + content):
        with pytest.raises(FileFormatError, match="to_bytes"):
            Program.from_bytes(damaged)


def test_planning_for_another_processor_asks_nothing_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fastlstm.GRU(weights(3 * 40, 5), weights(3 * 40, 40))
    graph = layer._model(False, False).graph
    monkeypatch.setattr("fastlstm.target.machine.detect", lambda: pytest.fail("this machine was asked"))
    for name in ("x86-64-v4", "aarch64", "riscv64", "cortex-m4"):
        (segment,) = make_plan(graph, TARGETS[name]).parts
        assert isinstance(segment, Segment)
        assert segment.program.target.name == name
        again = Program.from_bytes(segment.program.to_bytes())
        assert again == segment.program
    with pytest.raises(pytest.fail.Exception, match="this machine was asked"):
        Executor(graph)


HASHES = """
import hashlib, numpy as np, fastlstm
rng, kept = np.random.default_rng(0), []
for layers, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
    sizes = {"weight_ih_l0": (gates * 5, 3), "weight_hh_l0": (gates * 5, 5), "bias_ih_l0": (gates * 5,)}
    sizes["bias_hh_l0"] = (gates * 5,)
    weights = {f"layer.{name}": rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    found = set()
    for _ in range(24):  # each time the arrays lie elsewhere
        kept += [np.zeros(n, np.float32) for n in rng.integers(1, 60, 7)]
        model = fastlstm.from_state_dict(weights, layers=layers, batch_first=True)
        found |= {hashlib.sha256(part.program.to_bytes()).hexdigest() for part in model.plan.parts}
    print(layers, *sorted(found))
"""


def test_programs_are_the_same_bytes_in_every_process() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", HASHES],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert [len(line.split()) for line in found[0].splitlines()] == [2, 2, 2]

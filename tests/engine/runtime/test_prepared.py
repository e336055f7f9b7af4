"""First calls that are kept: the same bits as a model that is planned, and never those of anything else."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_layer import FEATURES, HIDDEN, Arrays, graph_of, inputs_of

import fastlstm
from fastlstm import AssumptionWarning, FileFormatError, InputError, Model
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.model import _Waiting
from fastlstm.runtime import prepared

T, B = 5, 2


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep calls in a folder of the test's own."""
    monkeypatch.setattr(prepared, "_folder", lambda: tmp_path / "calls")
    return tmp_path / "calls"


def arrays_for(graph: Graph, steps: int, batch: int) -> Arrays:
    return inputs_of(graph, steps, batch, np.random.default_rng(steps))


def kept(model: Model) -> bool:
    return isinstance(model._executor, _Waiting)


def same(one: Any, other: Any) -> bool:
    return {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in other.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Model(graph_of()).save(tmp_path / "m.fastlstm")
    return tmp_path / "m.fastlstm"


def run(path: Path, **options: Any) -> tuple[Model, Arrays]:
    """Return a model as a new process loads it, and its outputs."""
    model = fastlstm.load(path, **options)
    return model, model.run(arrays_for(graph_of(), T, B))


VARIANTS: dict[str, dict[str, Any]] = {
    "states": {},
    "lengths": {"lengths": "int32"},
    "both directions, masked": {"directions": 2, "masked": True},
    "ids, the last step": {"ids": "int32", "last": True, "states": False},
    "GRU, batch first": {"op": "GRU", "batch_first": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"precision": "int8", "threads": 2}], ids=["plain", "int8"])
def test_a_kept_call_gives_the_bits_of_the_planned_model(variant: str, options: Arrays, tmp_path: Path) -> None:
    graph = graph_of(**VARIANTS[variant])
    Model(graph).save(tmp_path / "m.fastlstm")
    inputs = arrays_for(graph, T, B)
    first, second = (fastlstm.load(tmp_path / "m.fastlstm", **options) for _ in range(2))
    assert not kept(first)
    assert not kept(second)
    expected = first.run(inputs)
    third = fastlstm.load(tmp_path / "m.fastlstm", **options)
    assert kept(third)
    for _ in range(2):
        assert same(third.run(inputs), expected)
    assert same(third.run(arrays_for(graph, 3, B)), first.run(arrays_for(graph, 3, B)))
    assert kept(third)  # another number of time steps is no reason to plan
    assert same(third.run(arrays_for(graph, T, 3)), first.run(arrays_for(graph, T, 3)))
    assert not kept(third)
    assert same(third.run(inputs), expected)


def test_everything_else_that_is_asked_of_the_model_is_answered(path: Path) -> None:
    run(path)
    plain = Model(graph_of())
    for asked in (
        lambda model: model.inputs,
        lambda model: model.notes,
        lambda model: repr(model),
        lambda model: str(model.plan),
        lambda model: same(copy.copy(model).run(arrays_for(graph_of(), T, B)), run(path)[1]),
    ):
        model = fastlstm.load(path)
        assert kept(model)
        assert asked(model) == asked(plain)
        assert not kept(model)
    model = fastlstm.load(path)
    frame = np.ones((B, FEATURES), np.float32)
    np.testing.assert_array_equal(model.stream(B).step({"x": frame}), plain.stream(B).step({"x": frame}))
    with pytest.raises(InputError, match="no input 'y'"):
        fastlstm.load(path).run({"y": frame})
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fastlstm.load(path).nothing  # noqa: B018


def test_a_kept_call_is_for_what_was_asked_of_what_file_by_what_sources(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(path)
    assert kept(fastlstm.load(path))
    assert not kept(fastlstm.load(path, precision="int8"))
    assert not kept(fastlstm.load(path, threads=2))
    assert not kept(fastlstm.load(path, precision={"layer": "int8"}))
    for owner, name, other in (
        (prepared, "__version__", "0.0.1"),
        (prepared, "_modules", lambda: "others"),
        (np, "__version__", "1.0"),
        (prepared, "CHECKING", True),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(owner, name, other)
            assert not kept(fastlstm.load(path))
    graph = graph_of()
    Model(graph.replace(constants={**graph.constants, "w": 2 * graph.constants["w"]})).save(path)
    _, outputs = run(path)
    path.unlink()
    Model(graph).save(path)
    assert not same(outputs, run(path)[1])


def test_a_changed_module_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    module = tmp_path / "inner" / "module.py"
    module.write_text("a = 1\n")
    monkeypatch.setattr(prepared, "__file__", str(tmp_path / "runtime" / "prepared.py"))
    modules = prepared._modules.__wrapped__
    before = modules()
    assert modules() == before
    os.utime(module, ns=(1, 1))
    later = modules()
    module.write_text("a = 12\n")
    os.utime(module, ns=(1, 1))
    assert len({before, later, modules()}) == 3


def test_the_model_stays_what_it_was_when_its_file_is_replaced(path: Path) -> None:
    _, expected = run(path)
    model = fastlstm.load(path)
    assert kept(model)
    path.write_bytes(b"nothing")
    assert model.inputs[0].name == "x"
    assert same(model.run(arrays_for(graph_of(), T, B)), expected)
    with pytest.raises(FileFormatError):
        fastlstm.load(path)


def test_what_is_damaged_or_may_be_somebody_elses_is_not_used(path: Path, folder: Path) -> None:
    _, expected = run(path)
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for at in [0, 8, 40, len(whole) - 1, *rng.integers(0, len(whole), 5)]:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert not kept(fastlstm.load(path))
    for size in (0, 30, 4096, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert not kept(fastlstm.load(path))
    file.write_bytes(whole)
    assert kept(fastlstm.load(path))
    file.chmod(0o666)
    assert not kept(fastlstm.load(path))
    assert same(run(path)[1], expected)  # and writes it anew
    assert kept(fastlstm.load(path))


def test_a_folder_that_cannot_be_written_is_no_error(path: Path, folder: Path) -> None:
    folder.write_text("no folder")
    _, expected = run(path)
    assert same(run(path)[1], expected)


def test_the_oldest_calls_make_room(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(path)
    (old,) = folder.iterdir()
    os.utime(old, (1, 1))
    monkeypatch.setattr(prepared, "MOST_BYTES", 3 * old.stat().st_size // 2)
    run(path, precision="int8")
    assert old not in list(folder.iterdir())
    assert kept(fastlstm.load(path, precision="int8"))
    monkeypatch.setattr(prepared, "LARGEST", 1000)
    run(path)
    assert not kept(fastlstm.load(path))


def test_models_that_are_more_than_a_segment_are_planned(tmp_path: Path, folder: Path) -> None:
    constants = {"w": np.ones((HIDDEN, HIDDEN), np.float32)}
    graph = Graph(
        (TensorSpec("x", (HIDDEN, "n")),),
        (TensorSpec("y", (HIDDEN, "n")),),
        (Node("MatMul", ("w", "x"), ("y",)),),
        constants,
    )
    Model(graph).save(tmp_path / "m.fastlstm")
    for _ in range(2):
        model = fastlstm.load(tmp_path / "m.fastlstm")
        assert not kept(model)
        model.run({"x": np.ones((HIDDEN, 2), np.float32)})
    assert not folder.exists()


def test_notes_are_warned_of_again(tmp_path: Path) -> None:
    graph = graph_of(states=False)
    wide = {name: np.where(array > 1, np.float32(np.inf), array) for name, array in graph.constants.items()}
    Model(graph.replace(constants=wide)).save(tmp_path / "m.fastlstm")
    said = []
    for expected in (False, True):
        with pytest.warns(AssumptionWarning, match="kept its weights") as caught:
            model = fastlstm.load(tmp_path / "m.fastlstm", precision="int8")
        assert kept(model) == expected
        assert {warning.filename for warning in caught} == {__file__}
        said.append([str(warning.message) for warning in caught])
        model.run(arrays_for(graph, T, B))
    assert said[0] == said[1]


def test_a_start_by_a_kept_call_imports_no_part_that_plans(path: Path, tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, fastlstm; from fastlstm import load\n"
        "given = dict(np.load(sys.argv[2])); print(load(sys.argv[1]).run(given)['y'].tobytes().hex())\n"
        "print(*sorted(name for name in sys.modules if name.startswith(('fastlstm.', 'numba', 'llvmlite'))))"
    )
    np.savez(tmp_path / "x.npz", **arrays_for(graph_of(), T, B))
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "x.npz")]
    first, second = (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines() for _ in range(2)
    )
    assert first[0] == second[0]
    assert "fastlstm.passes" in first[1].split()
    heavy = (
        "executor", "files.fileformat", "graph", "kernels.compiler", "lowering", "operators", "passes",
        "program.arguments", "program.program", "streaming", "verification",
    )  # fmt: skip
    assert not {f"fastlstm.{name}" for name in heavy} & set(second[1].split())
    assert not {"numba", "llvmlite"} & set(second[1].split())

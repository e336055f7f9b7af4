"""ONNX files are not trusted: damage and malice are one clear error each, quickly and in little memory."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastlstm
from fastlstm.converters.onnx.load import from_onnx, load
from fastlstm.errors import FastLSTMError, FileFormatError, InputError, UnsupportedError
from fastlstm.operators import sizes

FLOAT = TensorProto.FLOAT


def lstm(**weights: Any) -> Any:
    """An LSTM of hidden size 2 whose weights can be replaced by other tensors."""
    shapes = {"W": (1, 8, 3), "R": (1, 8, 2), "B": (1, 16)}
    tensors = [weights.get(n) or numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in shapes.items()]
    node = helper.make_node("LSTM", ["x", "W", "R", "B"], ["", "y"], name="layer", hidden_size=2)
    return wrapped([node], tensors)


def wrapped(nodes: list[Any], tensors: list[Any] = (), functions: list[Any] = ()) -> Any:  # type: ignore[assignment]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["time", 1, 3])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        list(tensors),
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)


def external(location: str, length: str = "96", offset: str = "0") -> Any:
    tensor = TensorProto(name="W", data_type=FLOAT, dims=[1, 8, 3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_a_file_cut_at_any_place_is_damaged(tmp_path: Path) -> None:
    data, path = lstm().SerializeToString(), tmp_path / "cut.onnx"
    for part in range(10):
        path.write_bytes(data[: len(data) * part // 10])
        with pytest.raises(FileFormatError):
            load(path)


def test_a_name_that_is_no_text_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "name.onnx"
    path.write_bytes(lstm().SerializeToString().replace(b"time", b"t\xcbme"))
    with pytest.raises(FileFormatError, match="not UTF-8"):
        load(path)


def test_random_bytes_are_an_error_of_ours_or_still_a_model(tmp_path: Path) -> None:
    data, path = lstm().SerializeToString(), tmp_path / "changed.onnx"
    choose, refused = random.Random(0), 0
    for _ in range(500):
        changed = bytearray(data)
        for _ in range(choose.choice([1, 3, 20])):
            changed[choose.randrange(len(changed))] = choose.randrange(256)
        path.write_bytes(changed)
        refused += is_refused(path)
    assert refused > 100


def is_refused(path: Path) -> bool:
    try:
        load(path)
    except FastLSTMError:
        return True
    return False


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("This is no model.")
    with pytest.raises(FileFormatError):
        load(path)
    with pytest.raises(InputError, match="ModelProto"):
        from_onnx(b"bytes")
    with pytest.raises(FileFormatError, match="no graph"):
        from_onnx(onnx.ModelProto())


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin", "sub/../../secret.bin", ""])
def test_external_data_outside_the_folder_is_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(96))
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")
    path = folder / "model.onnx"
    path.write_bytes(lstm(W=external(location)).SerializeToString())
    with pytest.raises(FileFormatError, match="model's own folder"):
        load(path)


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (external("missing.bin"), "missing"),
        (external("W.bin", length="95"), "96 bytes"),
        (external("W.bin", offset="8"), "holds 96 bytes"),
        (external("W.bin", offset="-8"), "holds 96 bytes"),
        (external("W.bin", offset="many"), "numbers"),
    ],
)
def test_external_data_of_the_wrong_size_is_refused(tmp_path: Path, tensor: Any, named: str) -> None:
    (tmp_path / "W.bin").write_bytes(bytes(96))
    path = tmp_path / "model.onnx"
    path.write_bytes(lstm(W=tensor).SerializeToString())
    with pytest.raises(FileFormatError, match=named):
        load(path)


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    weight = np.arange(24, dtype=np.float32)
    (tmp_path / "W.bin").write_bytes(weight.tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(lstm(W=external("W.bin")).SerializeToString())
    i, o, f, c = np.split(weight.reshape(1, 8, 3), 4, axis=1)
    np.testing.assert_array_equal(load(path).constants["layer.w_ih"], np.concatenate([i, f, c, o], axis=1))


def test_a_model_in_memory_must_have_its_external_data_loaded() -> None:
    with pytest.raises(UnsupportedError, match="path"):
        from_onnx(lstm(W=external("W.bin")))


BILLION = TensorProto(name="W", data_type=FLOAT, dims=[1 << 30, 1 << 30], raw_data=b"1234")
SHAPE = numpy_helper.from_array(np.array([1, 1 << 30, 3], np.int64), "shape")
LAYER = helper.make_node("LSTM", ["x", "W", "R"], ["", "y"], name="layer", hidden_size=2)
R = numpy_helper.from_array(np.ones((1, 8, 2), np.float32), "R")


def doubling() -> Any:
    """40 Concat nodes, each of the one before with itself: 2^40 elements."""
    names = ["R", *(f"t{i}" for i in range(39)), "W"]
    return wrapped([*(helper.make_node("Concat", [a, a], [b], axis=1) for a, b in pairwise(names)), LAYER], [R])


def calling() -> Any:
    """30 functions, each calling the next one twice: 2^30 nodes."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(30):
        op, domain = (f"f{level + 1}", "own") if level < 29 else ("Relu", "")
        body = [
            helper.make_node(op, ["a"], ["t"], domain=domain),
            helper.make_node(op, ["t"], ["b"], domain=domain),
        ]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], body, opsets))
    return wrapped([helper.make_node("f0", ["x"], ["y"], domain="own")], functions=functions)


@pytest.mark.parametrize(
    "proto",
    [
        lstm(W=BILLION),
        wrapped([helper.make_node("ConstantOfShape", ["shape"], ["W"]), LAYER], [SHAPE, R]),
        wrapped([helper.make_node("Expand", ["R", "shape"], ["W"]), LAYER], [SHAPE, R]),
        doubling(),
    ],
)
def test_what_would_take_much_memory_is_refused_cheaply(proto: Any) -> None:
    tracemalloc.start()
    with pytest.raises(FastLSTMError):
        from_onnx(proto)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 256 << 20


def test_functions_that_multiply_are_refused_soon() -> None:
    start = time.process_time()
    with pytest.raises(UnsupportedError, match="nodes"):
        from_onnx(calling())
    assert time.process_time() - start < 10  # seconds, about 2, where 2^30 nodes would take hours


def test_a_function_that_calls_itself_is_refused() -> None:
    opsets = [helper.make_opsetid("own", 1)]
    body = [helper.make_node("again", ["a"], ["b"], domain="own")]
    function = helper.make_function("own", "again", ["a"], ["b"], body, opsets)
    with pytest.raises(FileFormatError, match="calls itself"):
        from_onnx(wrapped([helper.make_node("again", ["x"], ["y"], domain="own")], functions=[function]))


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        ([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
          helper.make_node("Relu", ["b"], ["y"])], "cyclic"),
        ([helper.make_node("Add", ["x", "nowhere"], ["y"])], "nowhere"),
        ([helper.make_node("Relu", ["x"], ["x"])], "'x' is defined twice"),
        ([helper.make_node("Relu", ["x"], ["a"])], "'y'"),
        ([helper.make_node("Add", ["x"], ["y"])], "lacks its input"),
        ([helper.make_node("Relu", ["x", "x"], ["y"])], "1 input"),
        ([helper.make_node("Transpose", ["x"], ["y"], perm=1.5)], "perm"),
        ([helper.make_node("Concat", ["x", "x"], ["y"])], "lacks the attribute 'axis'"),
    ],
)  # fmt: skip
def test_a_graph_that_does_not_hold_together_is_refused(nodes: list[Any], named: str) -> None:
    with pytest.raises(FileFormatError, match=named):
        from_onnx(wrapped(nodes))


@pytest.mark.parametrize("trips", [None, 1 << 60])
@pytest.mark.parametrize("decides", ["handed on", "constant"])
def test_a_loop_that_nothing_ends_is_refused(trips: int | None, decides: str) -> None:
    true = numpy_helper.from_array(np.array(True), "true")
    condition = "going" if decides == "handed on" else "inner_true"
    body = helper.make_graph(
        [helper.make_node("Identity", [condition], ["goes_on"]), helper.make_node("Add", ["a", "a"], ["twice"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("twice", FLOAT, None),
        ],
        [numpy_helper.from_array(np.array(True), "inner_true")],
    )
    node = helper.make_node("Loop", ["trips" if trips else "", "true", "x"], ["y"], name="endless", body=body)
    tensors = [true, *([numpy_helper.from_array(np.array(trips), "trips")] if trips else [])]
    with pytest.raises(UnsupportedError, match=r"'endless' has .* and no condition that could end it"):
        fastlstm.Model(from_onnx(wrapped([node], tensors)))


def test_a_loop_that_decides_never_to_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "MAX_ROUNDS", 1000)
    body = helper.make_graph(
        [
            helper.make_node("GreaterOrEqual", ["i", "zero"], ["goes_on"]),
            helper.make_node("Mul", ["a", "half"], ["less"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("less", FLOAT, None),
        ],
        [numpy_helper.from_array(np.array(0), "zero"), numpy_helper.from_array(np.array(0.5, np.float32), "half")],
    )
    node = helper.make_node("Loop", ["", "", "x"], ["y"], name="endless", body=body)
    model = fastlstm.Model(from_onnx(wrapped([node])))
    for _ in range(2):
        with pytest.raises(InputError, match="a loop may run 1,000 rounds; this one goes on"):
            model(np.ones((2, 1, 3), np.float32))

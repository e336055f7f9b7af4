"""Each operator stands once and says all of itself; shape rules agree with what operators compute."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from fastlstm import operators
from fastlstm.conformance.onnx import cases
from fastlstm.converters.onnx.load import from_onnx
from fastlstm.errors import FastLSTMError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec
from fastlstm.lowering.segments.rows import BINARY, ROWS, UNARY
from fastlstm.lowering.tapes import EMITTERS
from fastlstm.model import Model
from fastlstm.operators import ELEMENTWISE, OPERATORS, Function, Lowering, Operation, Stream
from fastlstm.operators.values import ValueInfo
from fastlstm.passes import shapes
from fastlstm.streaming import timeline_rules

CONVERTERS = Path(__file__).parents[3] / "converters"

CONTROL = {"If", "Loop", "Scan"}


def test_every_operator_has_a_meaning_and_a_shape_rule_or_a_reason():
    without = {name for name, operator in OPERATORS.items() if operator.compute is None}
    assert without == set(RECURRENT_OPS)  # their equations are those of `fastlstm.operators.reference`
    untold = {name for name, operator in OPERATORS.items() if not callable(operator.infer)}
    assert all(is_sentence(OPERATORS[name].infer) for name in untold)
    assert untold >= CONTROL


def test_every_operator_has_kernels_or_a_reason():
    for name, operator in OPERATORS.items():
        lowering = operator.lowering
        emitted = isinstance(lowering, Function | Operation) or lowering is Lowering.TAPE
        assert emitted == (name in EMITTERS), name
        assert (lowering is Lowering.LOOP) == (name in CONTROL), name
        assert (lowering is Lowering.RECURRENT) == (name in RECURRENT_OPS), name
        assert not isinstance(lowering, str) or is_sentence(lowering), name


def test_segments_have_rows_of_operators_with_kernels_alone():
    for name in ROWS:
        lowering = OPERATORS[name].lowering
        assert isinstance(lowering, Function | Operation) or lowering is Lowering.TAPE or name in ELEMENTWISE, name
        assert not isinstance(lowering, Function | Operation) or lowering.rows == (name in {*UNARY, *BINARY}), name


def test_every_operator_goes_on_in_time_or_says_why_not():
    ways = {operator.stream for operator in OPERATORS.values() if isinstance(operator.stream, Stream)}
    assert ways == set(Stream) == set(timeline_rules.RULES)
    assert all(is_sentence(op.stream) for op in OPERATORS.values() if op.stream not in ways)


def is_sentence(reason: object) -> bool:
    """Whether a reason says something: some words, which stand inside a sentence of an error or a page."""
    return isinstance(reason, str) and len(reason.split()) > 1 and not reason.endswith(".")


def test_every_name_that_a_converter_emits_is_an_operator():
    named = [(name, f"{path.name}:{line}") for path in CONVERTERS.rglob("*.py") for name, line in emitted(path)]
    assert [where for name, where in named if name not in OPERATORS] == []
    assert len({name for name, _ in named}) > 60


def emitted(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the operators of the nodes that a converter's source adds by name; of others, `validated` refuses them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args:
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if function in ("node", "nodes_out", "like", "Node") and isinstance(first, ast.Constant):
                yield str(first.value), node.lineno


def contradiction(info: ValueInfo, array: np.ndarray) -> str:
    """Return what is said of a value and does not hold of it."""
    if info.dtype is not None and info.dtype != array.dtype.name:
        return f"dtype {info.dtype}, computed {array.dtype.name}"
    if info.shape is not None:
        if len(info.shape) != array.ndim:
            return f"shape {info.shape}, computed {array.shape}"
        if any(isinstance(d, int) and d != n for d, n in zip(info.shape, array.shape, strict=True)):
            return f"shape {info.shape}, computed {array.shape}"
    if info.numbers is not None and info.numbers != [int(v) for v in array.ravel()]:
        return f"content {info.numbers}, computed {array.ravel()}"
    return ""


def followed(graph: Graph, arrays: list, open_inputs: bool) -> list[str]:
    """Run a graph node by node; return the contradictions to what is inferred from its inputs."""
    values = dict(zip([spec.name for spec in graph.inputs], arrays, strict=True)) | dict(graph.constants)
    given = [ValueInfo(array.shape, array.dtype.name) if open_inputs else ValueInfo.of_array(array) for array in arrays]
    known = shapes.infer(graph, inputs=given)
    wrong = []
    for node in graph.nodes:
        if node.op in RECURRENT_OPS or node.op in CONTROL:
            return wrong
        results = operators.evaluate(node, [values[name] if name else None for name in node.inputs])
        for name, result in zip(node.outputs, results, strict=False):
            values[name] = result
            if name and isinstance(result, np.ndarray) and (said := contradiction(known[name], result)):
                wrong.append(f"{node.op} '{name}': {said}")
    return wrong


@pytest.fixture(scope="module")
def onnx_cases():
    """ONNX's own cases of one node that are read here: name, model, inputs."""
    claimed = {case.name for case in cases() if case.is_claimed and case.subject and not case.reason}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            (case.name, case.model, case.data_sets[0][0])
            for case in load_model_tests(kind="node")
            if case.name in claimed
        ]


def test_shape_rules_hold_for_onnx_s_own_cases(onnx_cases):
    wrong, checked = [], set()
    for name, model, inputs in onnx_cases:
        arrays = [numpy_helper.to_array(value) if hasattr(value, "raw_data") else value for value in inputs]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            continue
        try:
            graph = from_onnx(model)
            for open_inputs in (True, False):
                wrong += [f"{name}: {said}" for said in followed(graph, arrays, open_inputs)]
        except FastLSTMError:
            continue
        checked |= {node.op for node in graph.nodes}
    assert wrong == []
    assert len(checked) > 120


@pytest.mark.parametrize("axis", [0, -1])
def test_a_number_has_one_axis_to_reduce(axis: int) -> None:
    # Keras exports such nodes where PyTorch's max(0) takes the largest of one number.
    axes = np.array([axis])
    node = Node("ReduceMax", ("x", "axes"), ("y",), {"keepdims": 0})
    graph = Graph((TensorSpec("x", (), "int64"),), (TensorSpec("y", (), "int64"),), (node,), {"axes": axes})
    found = Model(graph).run({"x": np.array(7)})["y"]
    assert found.shape == ()
    assert found == 7

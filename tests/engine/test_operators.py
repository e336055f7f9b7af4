"""The tables of operators agree with one another, and shape rules with what operators compute."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from fastlstm import operators
from fastlstm.converters.onnx.load import from_onnx
from fastlstm.errors import FastLSTMError
from fastlstm.graph import RECURRENT_OPS, Graph
from fastlstm.onnx_conformance import cases
from fastlstm.operators.values import RULES, ValueInfo
from fastlstm.passes import shapes
from fastlstm.passes.infer_signal import UNTOLD

CONTROL = {"If", "Loop", "Scan"}


def test_every_operator_has_a_shape_rule():
    assert sorted(operators.SUPPORTED - CONTROL - set(RULES)) == []
    assert set(UNTOLD) <= operators.SUPPORTED


def test_every_shape_rule_is_that_of_an_operator():
    of_activations = {"Affine", "GeluTanh", "Linear", "ScaledTanh", "Silu"}  # written by passes and converters
    assert sorted(set(RULES) - operators.SUPPORTED - set(RECURRENT_OPS) - of_activations) == []


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

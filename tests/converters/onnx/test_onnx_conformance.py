"""ONNX's own test cases through the backend: all that are claimed pass, and the page that says so is true."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.backend.test import BackendTest
from onnx.backend.test.loader import load_model_tests

from fastlstm import onnx_backend
from fastlstm.conformance import onnx as onnx_conformance
from fastlstm.converters.onnx.load import from_onnx
from fastlstm.errors import FastLSTMError, InputError

PAGE = Path(__file__).parents[3] / "docs" / "onnx.md"


@cache
def cases() -> list[onnx_conformance.Case]:
    return onnx_conformance.cases()


def suite() -> dict[str, type]:
    """Return ONNX's test classes with the cases that are claimed and not excluded."""
    names = [re.escape(case.name) for case in cases() if case.is_claimed and not case.reason]
    runner = BackendTest(onnx_backend.FastLSTMBackend, __name__)
    runner.include(f"^({'|'.join(names)})_cpu$")
    classes: dict[str, type] = runner.test_cases
    for tests in classes.values():
        for name, function in list(vars(tests).items()):
            if getattr(function, "__unittest_skip__", False):
                delattr(tests, name)
    return classes


globals().update(suite())


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_every_recurrent_case_is_among_them(op: str) -> None:
    about = [case for case in cases() if op in case.operators]
    assert len(about) >= 4
    assert all(case.is_claimed and not case.reason for case in about)


def test_what_is_excluded_fails() -> None:
    excluded = [case for case in cases() if case.is_claimed and case.reason]
    assert {case.name for case in excluded} == set(onnx_conformance.outcome(excluded))


def test_the_page_is_up_to_date() -> None:
    version = re.search(r"onnx (\d\S*),", PAGE.read_text())
    assert version is not None
    assert version.group(1) == onnx.__version__, "python -m fastlstm.conformance.onnx --write docs/onnx.md"
    assert PAGE.read_text() == onnx_conformance.table(cases(), failed={})


def test_every_case_is_read_or_refused_with_a_sentence() -> None:
    def refusal(model: Any) -> str:
        try:
            from_onnx(model)
        except FastLSTMError as error:
            return str(error)
        return ""

    models = [case.model for case in load_model_tests(kind="node") if case.model is not None]
    refused = [sentence for sentence in map(refusal, models) if sentence]
    assert all(sentence.endswith(".") for sentence in refused)
    # What is refused is mostly element types that NumPy lacks; see `supported`.
    assert len(refused) < 0.3 * len(models)


def lstm() -> Any:
    return helper.make_node("LSTM", ["X", "W", "R"], ["", "Y_h"], hidden_size=4)


def arrays() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 2, 5), (1, 16, 5), (1, 16, 4))]


def test_a_node_runs_alone_and_its_outputs_have_names() -> None:
    outputs = onnx_backend.run_node(lstm(), arrays())
    assert outputs["Y_h"].shape == (1, 2, 4)
    np.testing.assert_array_equal(outputs[0], outputs.Y_h)
    np.testing.assert_array_equal(onnx_backend.run_node(lstm(), dict(zip("XWR", arrays(), strict=True)))[0], outputs[0])


def test_a_node_may_take_a_sequence() -> None:
    node = helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)
    (y,) = onnx_backend.run_node(node, [[np.zeros((1, 2), np.float32), np.ones((2, 2), np.float32)]])
    assert y.tolist() == [[0, 0], [1, 1], [1, 1]]


def test_a_model_is_prepared_once_and_run_by_order_or_by_name() -> None:
    X, W, R = arrays()
    values = [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, None, 5])]
    out = helper.make_tensor_value_info("Y_h", TensorProto.FLOAT, None)
    constants = [onnx.numpy_helper.from_array(W, "W"), onnx.numpy_helper.from_array(R, "R")]
    model = helper.make_model(helper.make_graph([lstm()], "g", values, [out], constants))
    prepared = onnx_backend.prepare(model, "CPU", threads=1)
    np.testing.assert_array_equal(prepared.run([X])[0], onnx_backend.run_model(model, {"X": X})[0])
    np.testing.assert_array_equal(prepared.run(X)[0], prepared.run([X])[0])
    assert onnx_backend.is_compatible(model)
    assert onnx_backend.supports_device("CPU")
    assert not onnx_backend.supports_device("CUDA:1")
    for call in (
        lambda: prepared.run([X, X]),
        lambda: prepared.run([X], streams=2),
        lambda: onnx_backend.prepare(model, "CUDA"),
        lambda: onnx_backend.prepare(model, optimise=True),
        lambda: onnx_backend.run_node(lstm(), arrays()[:2]),
    ):
        with pytest.raises(InputError):
            call()

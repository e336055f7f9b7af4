"""ONNX's own test cases: recurrent ones agree, and of the others none breaks the converter."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from onnx.backend.test.loader import load_model_tests

from fastlstm import reference
from fastlstm.converters.onnx_ import from_onnx
from fastlstm.errors import FastLSTMError


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases divide by zero on purpose
        return [case for case in load_model_tests(kind="node") if case.model is not None]


@pytest.mark.parametrize("prefix", ["test_lstm_", "test_gru_", "test_simple_rnn_"])
def test_recurrent_cases_agree(cases: list[Any], prefix: str) -> None:
    chosen = [case for case in cases if case.name.startswith(prefix)]
    assert len(chosen) >= 4
    for case in chosen:
        inputs, outputs = case.data_sets[0]
        graph = from_onnx(case.model)
        feeds = {spec.name: array for spec, array in zip(graph.inputs, inputs, strict=True)}
        found = reference.run(graph, feeds)
        for spec, expected in zip(graph.outputs, outputs, strict=True):
            # The cases were computed in float32: a few roundings apart from float64.
            np.testing.assert_allclose(found[spec.name], expected, rtol=1e-4, atol=1e-5, err_msg=case.name)


def refusal(model: Any) -> str:
    try:
        from_onnx(model)
    except FastLSTMError as error:
        return str(error)
    return ""


def test_every_case_is_read_or_refused_with_a_sentence(cases: list[Any]) -> None:
    refused = [sentence for sentence in (refusal(case.model) for case in cases) if sentence]
    assert all(sentence.endswith(".") for sentence in refused)
    # What is refused is mostly element types that NumPy lacks; see `supported`.
    assert len(refused) < 0.3 * len(cases)

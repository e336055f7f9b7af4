"""Comparing: what is equal holds, what is not is found and placed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastlstm.errors import InputError
from fastlstm.files.fileformat import GoldenSample
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.operators import reference
from fastlstm.verification import comparison
from fastlstm.verification.runners import Runner, RunnerError, reference_runner

nan, inf = np.nan, np.inf


def lstm_attrs(size):
    return {
        "hidden_size": size,
        "directions": ["forward"],
        "activations": default_activations("LSTM"),
        "clip": None,
        "input_forget": 0,
    }


def model_graph(scale=1.0) -> Graph:
    rng = np.random.default_rng(0)
    H, I = 4, 3  # noqa: E741
    return Graph(
        inputs=(TensorSpec("x", ("time", "batch", I)),),
        outputs=(TensorSpec("out", ("time", "batch", 2)),),
        nodes=(
            Node("LSTM", ("x", "w_ih", "w_hh"), ("y", "h", "c"), lstm_attrs(H), "lstm"),
            Node("Dense", ("y", "w"), ("logits",), {}, "head"),
            Node("Tanh", ("logits",), ("out",), {}, "squash"),
        ),
        constants={
            "w_ih": rng.standard_normal((1, 4 * H, I)),
            "w_hh": rng.standard_normal((1, 4 * H, H)),
            "w": rng.standard_normal((H, 2)) * scale,
        },
    )


def one(expected, got, **tolerance):
    (difference,) = comparison.compare({"y": np.array(expected)}, {"y": np.array(got)}, **tolerance).outputs
    return difference


def test_the_worst_element_is_found_and_placed():
    found = one([[1.0, 2.0], [3.0, 400.0]], [[1.0, 2.1], [3.0, 400.05]], atol=0.01, rtol=0.001)
    assert not found.holds
    assert found.where == (0, 1)
    assert (found.expected, found.got) == (2.0, 2.1)
    assert found.max_abs == pytest.approx(0.1)
    assert found.ratio == pytest.approx(0.1 / 0.012)
    assert found.mean_abs == pytest.approx(0.15 / 4)
    assert "at [0, 1] expected 2, got 2.1" in str(found)


@pytest.mark.parametrize(
    ("expected", "got", "holds"),
    [
        ([1.0], [1.0 + 1e-5], True),
        ([1.0], [1.0 + 1.2e-4], False),
        ([0.0], [1e-5], True),
        ([0.0], [1.1e-5], False),
        ([nan, 1.0], [nan, 1.0], True),
        ([nan], [1.0], False),
        ([1.0], [nan], False),
        ([inf, -inf], [inf, -inf], True),
        ([inf], [-inf], False),
        ([inf], [3e38], False),
        ([1.0], [inf], False),
        ([True, False], [True, False], True),
        ([3], [4], False),
        (5.0, 5.0, True),
        (np.zeros((0, 3)), np.zeros((0, 3)), True),
        (np.zeros((0, 3)), np.zeros((0, 2)), False),
        ([[1.0]], [1.0], False),
    ],
)
def test_what_holds(expected, got, holds):
    found = one(expected, got)
    assert found.holds is holds
    json.dumps(found.as_data(), allow_nan=False)


def test_nan_mismatches_are_counted():
    found = one([nan, nan, 1.0, 2.0], [nan, 0.0, nan, 2.0])
    assert found.nan_mismatches == 2
    assert "2 elements are NaN on one side only" in str(found)


def test_zero_tolerance_asks_for_equality():
    assert one([1.0], [1.0], atol=0, rtol=0).holds
    assert not one([1.0], [np.nextafter(1.0, 2)], atol=0, rtol=0).holds


@pytest.mark.parametrize("tolerance", [{"atol": -1.0}, {"rtol": float("nan")}])
def test_tolerances_that_nothing_could_exceed_are_refused(tolerance):
    with pytest.raises(InputError, match="numbers that are not negative"):
        one([1.0], [2.0], **tolerance)


def test_outputs_of_one_side_only_do_not_hold():
    found = comparison.compare({"a": np.ones(1), "b": np.ones(1)}, {"b": np.ones(1), "c": np.ones(1)})
    assert [(d.name, d.holds) for d in found.outputs] == [("a", False), ("b", True), ("c", False)]
    assert not found.holds


def test_the_worst_of_several_runs_is_kept():
    runs = [comparison.compare({"y": np.ones(1)}, {"y": np.array([1 + d])}) for d in (1e-6, 3e-6, 2e-6)]
    assert comparison.Comparison.worst(runs).outputs[0].max_abs == pytest.approx(3e-6)


def test_verify_finds_a_changed_weight():
    graph = model_graph()
    expected = reference_runner(graph)
    same = comparison.compare_runs(graph, expected, lambda inputs: reference.run(graph, inputs))
    assert same.holds
    assert len(same.samples) == 3
    assert len({sample.inputs["x"].shape for sample in same.samples}) == 3
    other = comparison.compare_runs(graph, expected, lambda inputs: reference.run(model_graph(1.01), inputs))
    assert not other.holds
    assert other.worst.outputs[0].ratio > 1


def test_verify_looks_for_sizes_that_the_model_takes():
    def picky(inputs):
        if inputs["x"].shape[:2] != (64, 1):
            raise RunnerError("only 64 steps")
        return {"out": inputs["x"]}

    found = comparison.compare_runs(model_graph(), Runner("picky", picky), lambda inputs: {"out": inputs["x"]})
    assert [sample.inputs["x"].shape for sample in found.samples] == [(64, 1, 3)]

    def refuse(inputs):
        raise RunnerError("It is Sunday.")

    with pytest.raises(RunnerError, match="It is Sunday"):
        comparison.compare_runs(model_graph(), Runner("closed", refuse), refuse)


def test_verify_takes_given_inputs():
    graph = model_graph()
    given = [{"x": np.ones((2, 1, 3), np.float32)}]
    found = comparison.compare_runs(graph, reference_runner(graph), lambda i: reference.run(graph, i), given=given)
    assert len(found.samples) == 1
    assert found.samples[0].inputs is given[0]


def test_replay_compares_with_what_was_stored():
    graph = model_graph()
    inputs = {"x": np.ones((3, 2, 3), np.float32)}
    outputs = reference.run(graph, inputs)
    wrong = {"out": outputs["out"] + 1}
    good, bad = comparison.replay(
        lambda i: reference.run(graph, i), [GoldenSample(inputs, outputs), GoldenSample(inputs, wrong)]
    )
    assert good.holds
    assert not bad.holds


def test_the_first_layer_that_differs_is_named():
    graph, inputs = model_graph(), {"x": np.ones((3, 2, 3), np.float32)}

    def other_head(exposed, given):
        return reference.run(exposed.replace(constants=model_graph(1.01).constants), given)

    layers = comparison.compare_layers(graph, other_head, inputs)
    assert [layer.node.op for layer in layers] == ["LSTM", "Dense", "Tanh"]
    assert [layer.holds for layer in layers] == [True, False, False]
    assert str(layers[1]).startswith("Dense 'head' – logits: largest difference")


def test_a_source_without_a_program_falls_back_to_the_reference(tmp_path):
    runner, reason = comparison.expected_runner(tmp_path / "weights.safetensors", model_graph())
    assert runner.name == "the float64 reference"
    assert "holds no program" in reason


def test_input_errors_of_the_reference_are_told():
    graph = model_graph()
    with pytest.raises((RunnerError, InputError)):
        comparison.compare_runs(graph, reference_runner(graph), lambda i: i, given=[{"x": np.ones(3, np.float32)}])

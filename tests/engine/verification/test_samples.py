"""Made-up inputs: of the right shape and dtype, of values that the model can take, the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm.errors import InputError
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.verification.samples import open_dimensions, sample_inputs, time_steps


def graph_of(inputs, nodes=(), constants=None) -> Graph:
    return Graph(tuple(inputs), (), tuple(nodes), constants or {})


def test_open_dimensions_are_given_sizes():
    graph = graph_of([TensorSpec("x", ("batch", "time", 3)), TensorSpec("h", (1, "batch", 4), "float64")])
    assert open_dimensions(graph) == ("batch", "time")
    found = sample_inputs(graph, batch=5, time=7)
    assert found["x"].shape == (5, 7, 3)
    assert found["h"].shape == (1, 5, 4)
    assert found["x"].dtype == np.float32
    assert found["h"].dtype == np.float64
    assert sample_inputs(graph, {"time": 2})["x"].shape == (2, 2, 3)


def test_nameless_dimensions_agree_between_inputs():
    graph = graph_of([TensorSpec("a", ("unk__1", "unk__2", 3)), TensorSpec("b", ("unk__3", 4))])
    found = sample_inputs(graph, batch=5, time=7)
    assert found["a"].shape == (5, 7, 3)
    assert found["b"].shape == (5, 4)


def test_the_seed_decides():
    graph = graph_of([TensorSpec("x", (4, 4))])
    np.testing.assert_array_equal(sample_inputs(graph, seed=1)["x"], sample_inputs(graph, seed=1)["x"])
    assert (sample_inputs(graph, seed=1)["x"] != sample_inputs(graph, seed=2)["x"]).all()


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32"])
def test_ids_are_within_the_embedding(dtype):
    nodes = [
        Node("Transpose", ("ids",), ("turned",), {"perm": [1, 0]}),
        Node("Cast", ("turned",), ("whole",), {"to": "int32"}),
        Node("Gather", ("table", "whole"), ("embedded",), {"axis": 0}),
    ]
    graph = graph_of([TensorSpec("ids", ("batch", "time"), dtype)], nodes, {"table": np.ones((9, 4))})
    ids = sample_inputs(graph, batch=30, time=30)["ids"]
    assert set(np.unique(ids)) == set(range(9))
    assert ids.dtype == np.dtype(dtype)


def test_lengths_are_within_the_steps():
    attrs = {"hidden_size": 2, "directions": ["forward"], "activations": default_activations("LSTM")}
    nodes = [Node("LSTM", ("x", "w", "r", "", "lengths"), ("y",), attrs)]
    specs = [TensorSpec("x", ("time", "batch", 3)), TensorSpec("lengths", ("batch",), "int64")]
    lengths = sample_inputs(graph_of(specs, nodes), batch=200, time=6)["lengths"]
    assert set(np.unique(lengths)) == set(range(1, 7))


def test_whole_numbers_of_unknown_meaning_are_small():
    graph = graph_of([TensorSpec("n", (50,), "int64"), TensorSpec("flag", (50,), "bool")])
    found = sample_inputs(graph)
    assert set(np.unique(found["n"])) == {0, 1}
    assert found["flag"].dtype == np.bool_


def test_what_cannot_be_made_is_told():
    graph = graph_of([TensorSpec("x", ("time", 1 << 20))])
    with pytest.raises(InputError, match="no open dimension 'steps'; the model's are: time"):
        sample_inputs(graph, {"steps": 3})
    with pytest.raises(InputError, match="too large"):
        sample_inputs(graph, {"time": 1 << 20})
    with pytest.raises(InputError, match="does not say the rank of its input 'x'"):
        sample_inputs(graph_of([TensorSpec("x", ("...",))]))


def test_steps_are_those_of_the_recurrent_layer():
    attrs = {"hidden_size": 2, "directions": ["forward"], "activations": default_activations("LSTM")}
    nodes = [
        Node("Transpose", ("x",), ("turned",), {"perm": [1, 0, 2]}),
        Node("LSTM", ("turned", "w", "r"), ("y",), attrs),
    ]
    constants = {"w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32)}
    graph = graph_of([TensorSpec("x", ("batch", "time", 3))], nodes, constants)
    assert time_steps(graph, sample_inputs(graph, batch=4, time=9)) == 9
    assert time_steps(graph_of([]), {}) == 1


def test_a_number_that_chooses_is_one_that_the_model_compares_with():
    nodes = [Node("Equal", ("rate", "sixteen"), ("is",)), Node("Equal", ("rate", "eight"), ("or",))]
    constants = {"sixteen": np.array(16000), "eight": np.array([8000])}
    specs = [TensorSpec("rate", (), "int64")]
    found = {int(sample_inputs(graph_of(specs, nodes, constants), seed=seed)["rate"]) for seed in range(20)}
    assert found == {16000, 8000}


def test_the_rows_of_a_state_are_those_of_the_input():
    specs = [TensorSpec("x", ("unk__1", "unk__2")), TensorSpec("state", (2, "unk__3", 8))]
    found = sample_inputs(graph_of(specs), batch=3, time=7)
    assert found["x"].shape == (3, 7)
    assert found["state"].shape == (2, 3, 8)

"""What exporters put around recurrent layers goes: layouts, states of zeros, lengths, the last step."""

from __future__ import annotations

import numpy as np
import pytest
from pass_graphs import FEATURES, H, constant, ints, lstm, model, onnx_y, ops_of, optimised, weights

from fastlstm.graph import Node


def test_forward_y_squeezed_is_y():
    nodes, target = onnx_y()
    graph = model(
        [lstm("x"), *nodes, Node("Squeeze", ("l.Y", "one"), ("out",)), Node("Tanh", ("out",), ("z",))],
        {**weights(), **target, "one": ints(1)},
        ["out", "z"],
        [("x", ("time", "batch", FEATURES))],
    )
    plain = optimised(graph)
    assert ops_of(plain) == ["LSTM", "Tanh"]
    assert plain.nodes[0].outputs[0] == plain.nodes[1].inputs[0] == "out"


def test_bidirectional_y_merged_by_a_constant_reshape_is_y():
    nodes, target = onnx_y(directions=2)
    merge = [
        Node("Transpose", ("l.Y",), ("t",), {"perm": [0, 2, 1, 3]}),
        Node("Reshape", ("t", "merge"), ("out",)),
    ]
    graph = model(
        [lstm("x", directions=("forward", "reverse")), *nodes, *merge],
        {**weights(directions=2), **target, "merge": ints(0, 0, -1)},
        ["out"],
        [("x", ("time", "batch", FEATURES))],
    )
    assert ops_of(optimised(graph)) == ["LSTM"]


def test_bidirectional_y_merged_by_a_computed_reshape_is_y():
    nodes, target = onnx_y(directions=2)
    cuts = [Node("Slice", ("s", f"i{i}", f"i{i + 1}"), (f"d{i}",)) for i in range(4)]
    merge = [
        Node("Transpose", ("l.Y",), ("t",), {"perm": [0, 2, 1, 3]}),
        Node("Shape", ("t",), ("s",)),
        *cuts,
        Node("Mul", ("d2", "d3"), ("m",)),
        Node("Concat", ("d0", "d1", "m"), ("target",), {"axis": 0}),
        Node("Reshape", ("t", "target"), ("out",)),
    ]
    numbers = {f"i{i}": ints(i) for i in range(5)}
    graph = model(
        [lstm("x", directions=("forward", "reverse")), *nodes, *merge],
        {**weights(directions=2), **target, **numbers},
        ["out"],
        [("x", ("time", "batch", FEATURES))],
    )
    assert ops_of(optimised(graph)) == ["LSTM"]


def test_directions_sliced_apart_and_joined_again_are_y():
    nodes, target = onnx_y(directions=2)
    halves = []
    for d in range(2):
        halves += [
            Node("Slice", ("l.Y", f"i{d}", f"i{d + 1}", "i1"), (f"s{d}",)),
            Node("Squeeze", (f"s{d}", "i1"), (f"y{d}",)),
        ]
    graph = model(
        [
            lstm("x", directions=("forward", "reverse")),
            *nodes,
            *halves,
            Node("Concat", ("y0", "y1"), ("out",), {"axis": 2}),
        ],
        {**weights(directions=2), **target, **{f"i{i}": ints(i) for i in range(3)}},
        ["out"],
        [("x", ("time", "batch", FEATURES))],
    )
    assert ops_of(optimised(graph)) == ["LSTM"]


def zeros_by_constant_of_shape():
    return [
        Node("Shape", ("x",), ("s",)),
        Node("Gather", ("s", "zero"), ("b",), {"axis": 0}),
        Node("Unsqueeze", ("b", "zeros1"), ("b1",)),
        Node("Concat", ("one", "b1", "h"), ("t",), {"axis": 0}),
        Node("ConstantOfShape", ("t",), ("h0",), {"value": 0.0, "dtype": "float32"}),
    ]


def zeros_by_expand_and_slice():
    return [
        Node("Shape", ("x",), ("b1",), {"start": 0, "end": 1}),
        Node("Concat", ("two", "b1", "h"), ("t",), {"axis": 0}),
        Node("Expand", ("f0", "t"), ("all",)),
        Node("Slice", ("all", "one", "two", "zeros1"), ("h0",)),
    ]


def zeros_by_unsqueeze_of_a_cast_shape():
    return [
        Node("Shape", ("x",), ("s",)),
        Node("Cast", ("s",), ("s32",), {"to": 6}),
        Node("Slice", ("s32", "zeros1", "one", "zeros1"), ("b1",)),
        Node("Concat", ("b1", "h32"), ("t32",), {"axis": 0}),
        Node("Cast", ("t32",), ("t",), {"to": 7}),
        Node("Expand", ("f0", "t"), ("flat",)),
        Node("Unsqueeze", ("flat", "zeros1"), ("h0",)),
    ]


def zeros_by_tile():
    return [
        Node("Shape", ("x",), ("b1",), {"start": 0, "end": 1}),
        Node("Concat", ("one", "b1", "one"), ("t",), {"axis": 0}),
        Node("Tile", ("row0", "t"), ("h0",)),
    ]


def zeros_by_multiplication():
    return [
        Node("Transpose", ("x",), ("xt",), {"perm": [1, 0, 2]}),
        Node("ReduceMax", ("xt", "zeros_2"), ("m",)),
        Node("Mul", ("m", "row0"), ("h0",)),
    ]


ZEROS = [
    zeros_by_constant_of_shape,
    zeros_by_expand_and_slice,
    zeros_by_unsqueeze_of_a_cast_shape,
    zeros_by_tile,
    zeros_by_multiplication,
]


@pytest.mark.parametrize("zeros", ZEROS, ids=lambda f: f.__name__)
def test_zero_states_become_absent_however_they_are_written(zeros):
    constants = {
        **weights(),
        "zero": np.array(0),
        "zeros1": ints(0),
        "zeros_2": ints(0, 2),
        "one": ints(1),
        "two": ints(2),
        "h": ints(H),
        "h32": np.array([H], np.int32),
        "f0": np.array(0, np.float32),
        "row0": np.zeros((1, 1, H), np.float32),
    }
    graph = model(
        [
            *zeros(),
            Node("Transpose", ("x",), ("tm",), {"perm": [1, 0, 2]}),
            lstm("tm", states=("h0", "h0")),
        ],
        constants,
        ["l.y"],
    )
    plain = optimised(graph)
    assert ops_of(plain) == ["Transpose", "LSTM"]
    assert plain.nodes[1].inputs[4:] == ()


def test_learned_states_stay():
    graph = model(
        [lstm("x", states=("h0", "c0"))],
        {**weights(), "h0": constant(1, 1, H), "c0": constant(1, 1, H)},
        ["l.y"],
        [("x", ("time", "batch", FEATURES))],
    )
    assert optimised(graph).nodes[0].inputs[6:] == ("h0", "c0")


def test_lengths_equal_to_the_time_dimension_become_absent_and_others_stay():
    def graph(length):
        node = lstm("x")
        node = Node(node.op, (*node.inputs[:4], "n"), node.outputs, node.attrs)
        return model(
            [
                Node("Shape", ("x",), ("t",), {"start": 0, "end": 1}),
                Node("Shape", ("x",), ("b",), {"start": 1, "end": 2}),
                Node("Expand", (length, "b"), ("n",)),
                node,
            ],
            {**weights(), "two": ints(2)},
            ["l.y"],
            [("x", ("time", "batch", FEATURES))],
        )

    assert ops_of(optimised(graph("t"))) == ["LSTM"]
    kept = optimised(graph("two"), sizes=({"batch": 2, "time": 5},))
    assert kept.nodes[-1].input(4) == "n"


def test_batch_first_wrappers_cancel_across_residual_normalisation_and_head():
    constants = {
        **weights("a", features=H),
        **weights("b", features=H),
        "scale": constant(H),
        "shift": constant(H),
        "w": constant(H, 2),
        "bias": constant(2),
    }
    graph = model(
        [
            Node("Transpose", ("x",), ("x.t",), {"perm": [1, 0, 2]}),
            lstm("x.t", "a"),
            Node("Transpose", ("a.y",), ("a.back",), {"perm": [1, 0, 2]}),
            Node("Add", ("a.back", "x"), ("sum",)),
            Node("LayerNormalization", ("sum", "scale", "shift"), ("n",), {"axis": -1, "epsilon": 1e-5}),
            Node("Transpose", ("n",), ("n.t",), {"perm": [1, 0, 2]}),
            lstm("n.t", "b"),
            Node("Transpose", ("b.y",), ("b.back",), {"perm": [1, 0, 2]}),
            Node("Concat", ("b.back", "a.back"), ("cat",), {"axis": 2}),
            Node("Relu", ("b.back",), ("relu",)),
            Node("MatMul", ("relu", "w"), ("m",)),
            Node("Add", ("bias", "m"), ("d",)),
            Node("Softmax", ("d",), ("out",), {"axis": 2}),
        ],
        constants,
        ["out", "cat"],
        [("x", ("batch", "time", H))],
    )
    plain = optimised(graph)
    expected = "Transpose LSTM Add LayerNormalization LSTM Concat Transpose Relu Dense Softmax Transpose"
    assert ops_of(plain) == expected.split()
    assert plain.nodes[-1].outputs == ("out",)


LAST = {
    "gather": [Node("Gather", ("y", "minus"), ("out",), {"axis": 1})],
    "slice and squeeze": [
        Node("Slice", ("y", "minus1", "far", "one"), ("s",)),
        Node("Squeeze", ("s", "one"), ("out",)),
    ],
    "gather of one and squeeze": [
        Node("Gather", ("y", "minus1"), ("s",), {"axis": 1}),
        Node("Squeeze", ("s", "one"), ("out",)),
    ],
    "computed index": [
        Node("Shape", ("y",), ("sh",)),
        Node("Gather", ("sh", "at1"), ("t",), {"axis": 0}),
        Node("Sub", ("t", "at1"), ("i",)),
        Node("Gather", ("y", "i"), ("out",), {"axis": 1}),
    ],
}


@pytest.mark.parametrize("last", LAST.values(), ids=LAST)
def test_the_last_step_is_a_gather_at_minus_one_on_the_time_axis(last):
    constants = {
        "minus": np.array(-1),
        "minus1": ints(-1),
        "far": ints(2**63 - 1),
        "one": ints(1),
        "at1": np.array(1),
    }
    graph = model(
        [
            Node("Transpose", ("x",), ("t0",), {"perm": [1, 0, 2]}),
            lstm("t0"),
            Node("Transpose", ("l.y",), ("y",), {"perm": [1, 0, 2]}),
            *last,
        ],
        {**weights(), **constants},
        ["out"],
    )
    plain = optimised(graph)
    assert ops_of(plain) == ["Transpose", "LSTM", "Gather"]
    gather = plain.nodes[-1]
    assert gather.inputs[0] == "l.y"
    assert gather.attrs["axis"] == 0
    assert plain.constants[gather.inputs[1]].shape == ()
    assert int(plain.constants[gather.inputs[1]]) == -1


def test_the_state_of_one_layer_is_taken_from_that_layer():
    graph = model(
        [
            lstm("x", "a"),
            lstm("a.y", "b"),
            Node("Concat", ("a.h", "b.h"), ("h",), {"axis": 0}),
            Node("Gather", ("h", "minus"), ("out",), {"axis": 0}),
        ],
        {**weights("a"), **weights("b", features=H), "minus": np.array(-1)},
        ["out"],
        [("x", ("time", "batch", FEATURES))],
    )
    plain = optimised(graph)
    assert ops_of(plain) == ["LSTM", "LSTM", "Squeeze"]
    assert plain.nodes[-1].inputs[0] == "b.h"

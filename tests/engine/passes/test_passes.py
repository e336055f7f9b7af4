"""optimise() keeps the meaning exactly and brings exporters' graphs to the form that the planner reads."""

from __future__ import annotations

import time

import numpy as np
import pytest
from pass_graphs import FEATURES, constant, ints, model, ops_of, optimised

from fastlstm import passes
from fastlstm.errors import UnsupportedError
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.operators import dims
from fastlstm.passes import shapes


@pytest.mark.parametrize(("alpha", "beta", "trans"), [(1.0, 1.0, 1), (1.0, 1.0, 0), (0.5, 2.0, 1)])
def test_gemm_is_dense(alpha, beta, trans):
    weight = constant(2, FEATURES) if trans else constant(FEATURES, 2)
    graph = model(
        [Node("Gemm", ("x", "w", "b"), ("out",), {"alpha": alpha, "beta": beta, "transB": trans})],
        {"w": weight, "b": constant(1, 2)},
        ["out"],
        [("x", ("batch", FEATURES))],
    )
    plain = optimised(graph)
    assert ops_of(plain) == ["Dense"]
    assert plain.constants[plain.nodes[0].inputs[2]].shape == (2,)


@pytest.mark.parametrize("turned", [False, True])
def test_a_value_times_its_sigmoid_is_swish(turned):
    product = Node("Mul", ("s", "x") if turned else ("x", "s"), ("out",))
    nodes, given = [Node("Sigmoid", ("x",), ("s",)), product], [("x", ("batch", FEATURES))]
    assert ops_of(optimised(model(nodes, {}, ["out"], given))) == ["Swish"]
    assert ops_of(optimised(model(nodes, {}, ["out", "s"], given))) == ["Sigmoid", "Mul"]


def test_rows_of_a_table_of_bytes_are_picked_as_floats():
    table = np.arange(-100, 100, dtype=np.int8).reshape(50, 4)
    nodes = [Node("Gather", ("table", "x"), ("rows",)), Node("Cast", ("rows",), ("out",), {"to": 1})]
    plain = optimised(model(nodes, {"table": table}, ["out"], [TensorSpec("x", ("batch", 5), "int64")]))
    assert ops_of(plain) == ["Gather"]
    picked = plain.constants[plain.nodes[0].inputs[0]]
    assert picked.dtype == np.float32
    np.testing.assert_array_equal(picked, table)


def test_a_factor_that_would_be_rounded_is_not_folded_into_the_weights():
    graph = model(
        [Node("Gemm", ("x", "w"), ("out",), {"alpha": 0.1})],
        {"w": constant(FEATURES, 2)},
        ["out"],
        [("x", ("batch", FEATURES))],
    )
    assert ops_of(optimised(graph)) == ["Gemm"]


def test_a_dense_layer_over_flattened_time_and_batch_keeps_the_sequence():
    graph = model(
        [
            Node("Shape", ("x",), ("s",)),
            Node("Slice", ("s", "i0", "i2"), ("bt",)),
            Node("Concat", ("bt", "o"), ("target",), {"axis": 0}),
            Node("Reshape", ("x", "flat"), ("f",)),
            Node("MatMul", ("f", "w"), ("m",)),
            Node("Add", ("m", "b"), ("a",)),
            Node("Relu", ("a",), ("r",)),
            Node("Reshape", ("r", "target"), ("out",)),
        ],
        {
            "i0": ints(0),
            "i2": ints(2),
            "o": ints(2),
            "flat": ints(-1, FEATURES),
            "w": constant(FEATURES, 2),
            "b": constant(2),
        },
        ["out"],
    )
    assert ops_of(optimised(graph)) == ["Dense", "Relu"]


def normalisation_by_division():
    return [
        Node("ReduceMean", ("x", "last"), ("mean",)),
        Node("Sub", ("x", "mean"), ("d",)),
        Node("Pow", ("d", "two"), ("sq",)),
        Node("ReduceMean", ("sq", "last"), ("var",)),
        Node("Add", ("var", "eps"), ("ve",)),
        Node("Sqrt", ("ve",), ("sd",)),
        Node("Div", ("d", "sd"), ("n",)),
        Node("Mul", ("n", "scale"), ("sc",)),
        Node("Add", ("sc", "shift"), ("out",)),
    ]


def normalisation_by_tf2onnx():
    return [
        Node("GlobalAveragePool", ("x",), ("mean",)),
        Node("Neg", ("mean",), ("neg",)),
        Node("Sub", ("x", "mean"), ("d",)),
        Node("Mul", ("d", "d"), ("sq",)),
        Node("GlobalAveragePool", ("sq",), ("var",)),
        Node("Add", ("var", "eps"), ("ve",)),
        Node("Sqrt", ("ve",), ("sd",)),
        Node("Reciprocal", ("sd",), ("inv",)),
        Node("Mul", ("inv", "scale"), ("m",)),
        Node("Mul", ("x", "m"), ("xm",)),
        Node("Mul", ("neg", "m"), ("mm",)),
        Node("Add", ("mm", "shift"), ("b",)),
        Node("Add", ("xm", "b"), ("out",)),
    ]


@pytest.mark.parametrize("nodes", [normalisation_by_division, normalisation_by_tf2onnx])
def test_layer_normalisation_written_out_is_recognised(nodes):
    constants = {
        "last": ints(-1),
        "two": np.array(2, np.float32),
        "eps": np.array(1e-3, np.float32),
        "scale": constant(1, 1, FEATURES),
        "shift": constant(FEATURES),
    }
    plain = optimised(model(nodes(), constants, ["out"]))
    assert ops_of(plain) == ["LayerNormalization"]
    assert plain.nodes[0].attrs["epsilon"] == pytest.approx(1e-3)


def test_a_branch_on_a_constant_is_inlined_under_new_names():
    def branch(op):
        return Graph((), (TensorSpec("r", ("?",)),), (Node(op, ("x",), ("r",)),))

    graph = model(
        [
            Node("If", ("yes",), ("a",), {"then_branch": branch("Relu"), "else_branch": branch("Neg")}),
            Node("If", ("no",), ("b",), {"then_branch": branch("Relu"), "else_branch": branch("Neg")}),
            Node("Add", ("a", "b"), ("out",)),
        ],
        {"yes": np.array(True), "no": np.array(False)},
        ["out"],
    )
    assert ops_of(optimised(graph)) == ["Relu", "Neg", "Add"]


def test_a_body_reads_the_values_that_took_the_place_of_others():
    body = Graph(
        (TensorSpec("i", (), "int64"), TensorSpec("go", (), "bool"), TensorSpec("s", ("?",))),
        (TensorSpec("go2", (), "bool"), TensorSpec("s2", ("?",)), TensorSpec("copy", ("?",))),
        (
            Node("Identity", ("go",), ("go2",)),
            Node("Add", ("s", "same"), ("s2",)),
            Node("Identity", ("same",), ("copy",)),
        ),
    )
    graph = model(
        [
            Node("Transpose", ("x",), ("t",), {"perm": [1, 0, 2]}),
            Node("Transpose", ("t",), ("same",), {"perm": [1, 0, 2]}),
            Node("Loop", ("n", "", "x"), ("out", "all"), {"body": body}),
        ],
        {"n": np.array(3)},
        ["out", "all"],
    )
    plain = optimised(graph)
    assert ops_of(plain) == ["Loop"]


def test_constants_are_folded_but_never_blown_up():
    graph = model(
        [
            Node("Transpose", ("w",), ("wt",), {"perm": [1, 0]}),
            Node("MatMul", ("x", "wt"), ("m",)),
            Node("ConstantOfShape", ("huge",), ("z",), {"value": 0.0, "dtype": "float32"}),
            Node("Slice", ("z", "i0", "i1"), ("z1",)),
        ],
        {"w": constant(2, FEATURES), "huge": ints(10**6, 10**6), "i0": ints(0), "i1": ints(1)},
        ["m", "z1"],
    )
    plain = passes.optimise(graph)
    assert "Dense" in ops_of(plain)
    assert "ConstantOfShape" in ops_of(plain)
    assert sum(a.nbytes for a in plain.constants.values()) < 1000


def test_many_small_steps_do_not_blow_a_constant_up():
    doubled = [Node("Concat", (f"v{i}", f"v{i}"), (f"v{i + 1}",), {"axis": 0}) for i in range(40)]
    graph = model([*doubled, Node("Add", ("x", "v40"), ("y",))], {"v0": constant(1)}, ["y"])
    plain = passes.optimise(graph)
    assert "Concat" in ops_of(plain)
    assert sum(a.nbytes for a in plain.constants.values()) < 2**26


def test_symbolic_shapes_are_canonical():
    graph = model(
        [
            Node("Reshape", ("x", "flat"), ("f",)),
            Node("Concat", ("x", "x"), ("twice",), {"axis": 1}),
            Node("Slice", ("x", "i1", "far", "i1"), ("rest",)),
            Node("Reshape", ("twice", "flat"), ("g",)),
        ],
        {"flat": ints(-1, FEATURES), "i1": ints(1), "far": ints(2**63 - 1)},
        ["f", "twice", "rest", "g"],
    )
    known = shapes.infer(graph)
    assert known["f"].shape == ("batch*time", FEATURES)
    assert known["twice"].shape == ("batch", "2*time", FEATURES)
    assert known["g"].shape == ("2*batch*time", FEATURES)
    assert known["rest"].shape == ("batch", "max(time - 1, 0)", FEATURES)


def test_an_operator_that_nobody_knows_is_refused_where_it_enters():
    with pytest.raises(UnsupportedError, match="'m': the operator is not supported"):
        model([Node("Mystery", ("x",), ("m",)), Node("Relu", ("m",), ("out",))], {}, ["out"])
    with pytest.raises(UnsupportedError, match="'approximate' should be none, tanh; got 'rough'"):
        model([Node("Gelu", ("x",), ("out",), {"approximate": "rough"})], {}, ["out"])


def test_what_is_not_needed_goes_and_what_is_not_understood_stays():
    graph = model(
        [Node("Unique", ("x",), ("m",)), Node("Relu", ("x",), ("dead",)), Node("Relu", ("m",), ("out",))],
        {"unread": constant(2)},
        ["out"],
    )
    plain = passes.optimise(graph)
    assert ops_of(plain) == ["Unique", "Relu"]
    assert not plain.constants


def test_an_input_passed_through_keeps_the_outputs_name():
    graph = model([Node("Dropout", ("x",), ("out",))], {}, ["out"])
    assert ops_of(optimised(graph)) == ["Identity"]


def test_thousands_of_nodes_take_seconds_at_most():
    nodes, value = [], "x"
    for i in range(1500):
        nodes += [
            Node("Transpose", (value,), (f"t{i}",), {"perm": [1, 0, 2]}),
            Node("Relu", (f"t{i}",), (f"r{i}",)),
        ]
        value = f"r{i}"
    start = time.perf_counter()
    plain = passes.optimise(model(nodes, {}, [value]))
    # Measured at about 0.3 s; the bound leaves room for a busy machine and catches quadratic work.
    assert time.perf_counter() - start < 5
    assert set(ops_of(plain)) == {"Relu"}


@pytest.mark.parametrize("axes", [[0, 0], [5], [-9]])
def test_axes_that_do_not_fit_leave_the_shape_unknown(axes):
    nodes = (Node("Unsqueeze", ("x", "axes"), ("y",)),)
    graph = Graph((TensorSpec("x", ("batch", 3)),), (TensorSpec("y", ()),), nodes, {"axes": np.array(axes)})
    assert shapes.infer(graph)["y"].shape is None


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ("12*b*floor((t - 80)/40) + 12*b", "12*floor((t - 80)/40) + 12", "b"),
        ("t*t + 2*t + 1", "t + 1", "t + 1"),
        ("4*t + 2", 2, "2*t + 1"),
        ("4*t + 1", 2, None),
        ("t + 1", "t", None),
        ("t", "t + 1", None),
        (6, 0, None),
    ],
)
def test_sizes_divide_as_polynomials(a: dims.Dim, b: dims.Dim, wanted: dims.Dim | None) -> None:
    assert dims.divide(a, b) == wanted
    if wanted is not None:
        assert dims.multiply(wanted, b) == a

"""Operators outside segments have kernels: right, the same bits however they are run, and recorded once a shape."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import operators
from fastlstm.executor import Executor
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.lowering.tapes import HEAVY, convolution
from fastlstm.model import Model
from fastlstm.operators import reference
from fastlstm.operators.activations import ACTIVATIONS

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# operator, attributes, shape of x, further inputs (constants; a tuple is the shape of a second input)
CASES: list[tuple[str, dict[str, Any], tuple[int, ...], list[Any]]] = [
    ("Conv", {"pads": [1, 1]}, (2, 5, 19), [normal(7, 5, 3), normal(7)]),
    ("Conv", {"strides": [2], "dilations": [2], "pads": [2, 0]}, (1, 4, 70), [normal(3, 4, 5)]),
    ("Conv", {"group": 4, "pads": [2, 2]}, (3, 4, 33), [normal(4, 1, 5), normal(4)]),
    ("Conv", {"group": 2}, (1, 6, 9), [normal(40, 3, 2)]),
    ("Conv", {"strides": [128]}, (1, 1, 640), [normal(258, 1, 256)]),
    ("Conv", {"pads": [1, 0, 1, 2], "strides": [1, 2]}, (2, 3, 7, 21), [normal(6, 3, 3, 3), normal(6)]),
    ("Conv", {"auto_pad": "SAME_UPPER"}, (1, 2, 5, 40), [normal(2, 2, 2, 4)]),
    ("Conv", {"dilations": [2, 1]}, (1, 3, 9, 4), [normal(50, 3, 3, 2), normal(50)]),
    ("ConvTranspose", {"strides": [2], "pads": [1, 1], "output_padding": [1]}, (2, 4, 9), [normal(4, 3, 3), normal(3)]),
    ("ConvTranspose", {"strides": [1, 2], "pads": [0, 2, 0, 2], "group": 2}, (1, 4, 3, 17), [normal(4, 2, 1, 5)]),
    ("Dense", {}, (3, 5, 11), [normal(11, 70), normal(70)]),
    ("MatMul", {}, (2, 3, 60, 7), [(2, 3, 7, 21)]),
    ("MatMul", {}, (3, 4, 7), [(7, 5)]),
    ("MatMul", {}, (4, 7), [(3, 7, 5)]),
    ("MatMul", {}, (2, 1, 4, 7), [(3, 7, 5)]),
    ("Add", {}, (2, 3, 4), [(3, 1)]),
    ("Mul", {}, (5, 1, 4, 1, 3), [(2, 1, 6, 3)]),
    ("Sub", {}, (7,), [normal(7)]),
    ("Div", {}, (3, 17), [normal(1)]),
    ("PRelu", {}, (2, 3, 5), [normal(3, 1)]),
    ("Tanh", {}, (3, 37), []),
    ("Abs", {}, (3, 37), []),
    ("Neg", {}, (3, 37), []),
    ("Floor", {}, (3, 37), []),
    ("Round", {}, (3, 37), []),
    ("Reciprocal", {}, (3, 37), []),
    ("HardSwish", {}, (3, 37), []),
    ("Swish", {}, (3, 37), []),
    ("Swish", {"alpha": 1.7}, (3, 37), []),
    ("Swish", {"alpha": -0.5}, (3, 37), []),
    ("Gelu", {"approximate": "tanh"}, (3, 37), []),
    ("Clip", {}, (3, 37), [np.float32(-0.5), np.float32(0.25)]),
    ("Pow", {}, (3, 37), [np.float32(2)]),
    ("BatchNormalization", {"epsilon": 1e-3}, (2, 3, 8, 5), [normal(3), normal(3), normal(3), np.ones(3, np.float32)]),
    ("LayerNormalization", {"axis": 1}, (3, 4, 5), [normal(4, 5), normal(4, 5)]),
    ("Softmax", {"axis": 1}, (3, 20, 5), []),
    ("Softmax", {"axis": 1}, (3, 37, 50), []),
    ("Softmax", {"axis": 0}, (37, 50), []),
    ("Concat", {"axis": 0}, (2, 21, 3, 18), [(1, 21, 3, 18)]),
    ("LogSoftmax", {"axis": -1}, (3, 20), []),
    ("ReduceMean", {"keepdims": 0}, (3, 4, 5), [ints(0, 2)]),
    ("ReduceSum", {}, (3, 4, 5), []),
    ("ReduceMax", {}, (3, 4, 5), [ints(-2)]),
    ("ReduceL2", {}, (3, 4, 5), [ints(-1)]),
    ("GlobalAveragePool", {}, (3, 4, 5, 6), []),
    ("MaxPool", {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [0, 1, 1, 1]}, (2, 3, 7, 9), []),
    ("MaxPool", {"kernel_shape": [2], "strides": [2]}, (2, 3, 70), []),
    ("MaxPool", {"kernel_shape": [3, 2], "strides": [3, 3], "dilations": [1, 2], "ceil_mode": 1}, (1, 3, 8, 50), []),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}, (2, 3, 8, 38), []),
    ("AveragePool", {"kernel_shape": [3, 4], "pads": [1, 2, 2, 1], "strides": [1, 2]}, (1, 3, 8, 21), []),
    ("AveragePool", {"kernel_shape": [3], "pads": [1, 1], "count_include_pad": 1, "ceil_mode": 1}, (1, 3, 21), []),
    ("Transpose", {"perm": [2, 0, 1]}, (3, 4, 5), []),
    ("Slice", {}, (3, 9, 5), [ints(7), ints(-20), ints(1), ints(-3)]),
    ("Gather", {"axis": 1}, (3, 9, 5), [ints(4, 0, -1, 1, 3)]),
    ("Gather", {"axis": -1}, (3, 9, 5), [np.array(-2)]),
    ("Gather", {"axis": 2}, (3, 2, 9), [ints(0, 1, 2, 3, 4, 5, 3, 4, 5).reshape(3, 3)]),
    ("Gather", {"axis": 1}, (3, 9, 5), [ints(1, 3, 5, 7).reshape(2, 2)]),
    ("Einsum", {"equation": "btgi,gih->btgh"}, (2, 3, 4, 5), [normal(4, 5, 6)]),
    ("Einsum", {"equation": "bhqd,bkhd->bqhk"}, (2, 3, 7, 5), [(2, 6, 3, 5)]),
    ("Einsum", {"equation": "ab,cb->ca"}, (30, 7), [normal(70, 7)]),
    ("Concat", {"axis": 1}, (3, 2, 5), [(3, 4, 5), normal(3, 1, 5)]),
    ("Pad", {}, (3, 4), [ints(1, 0, 2, 3), np.float32(1.5)]),
    ("Pad", {"mode": "reflect"}, (1, 7, 6), [ints(0, 3, 2, 0, 1, 5)]),
    ("Expand", {}, (3, 1, 5), [ints(2, 3, 4, 5)]),
    ("Reshape", {}, (3, 4, 5), [ints(0, -1, 2)]),
    ("Split", {"axis": 1, "num_outputs": 1}, (3, 4), []),
    ("ScatterND", {}, (4, 5, 3), [ints(0, 1, 0, 2, 3, 0).reshape(3, 2), (3, 3)]),
]


def test_a_sequence_keeps_its_tensors_when_their_memory_is_used_again():
    nodes = [Node("Tanh", ("x",), ("t",)), Node("SplitToSequence", ("t",), ("s",), {"axis": 0, "keepdims": 0})]
    nodes += [Node("Exp", ("x",), ("a",)), Node("Exp", ("a",), ("b",)), Node("ReduceSum", ("b",), ("c",))]
    nodes += [Node("SequenceAt", ("s", "one"), ("y",))]
    specs = (TensorSpec("y", (4,)), TensorSpec("c", (1, 1)))
    graph = Graph((TensorSpec("x", (3, 4)),), specs, tuple(nodes), {"one": np.array(1)})
    x = normal(3, 4)
    np.testing.assert_allclose(Executor(graph).run({"x": x})[0], np.tanh(x[1]), rtol=1e-6)


def graph_of(case: tuple[str, dict[str, Any], tuple[int, ...], list[Any]]) -> tuple[Graph, dict[str, np.ndarray]]:
    """Return a graph of one node behind a Tanh and a Transpose there and back, and inputs for it."""
    op, attrs, shape, more = case
    inputs, constants, names = {"x": normal(*shape)}, {}, ["moved"]
    for i, value in enumerate(more):
        names.append(f"in{i}")
        if isinstance(value, tuple):
            inputs[f"in{i}"] = normal(*value)
        else:
            constants[f"in{i}"] = np.asarray(value)
    nodes = (Node("Transpose", ("x",), ("turned",), {"perm": [*range(len(shape))][::-1]}),)
    nodes += (Node("Tanh", ("turned",), ("bounded",)),)
    nodes += (Node("Transpose", ("bounded",), ("moved",), {"perm": [*range(len(shape))][::-1]}),)
    nodes += (Node(op, tuple(names), ("y",), attrs),)
    specs = tuple(TensorSpec(name, array.shape) for name, array in inputs.items())
    return Graph(specs, (TensorSpec("y", ("...",)),), nodes, constants), inputs


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[2]))}")
def test_kernels_agree_with_float64_and_replay_the_same_bits(case):
    graph, inputs = graph_of(case)
    executor = Executor(graph)
    (first,) = executor.run(inputs)
    (tape,) = next(iter(executor.tapes._kept.values()))
    assert len(tape.steps) == 1, "everything should be in one native call"
    node = graph.nodes[-1]
    wide = {"moved": np.tanh(inputs["x"].astype(np.float64))}
    for name, array in {**inputs, **graph.constants}.items():
        wide[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
    expected, *_ = operators.evaluate(node, [wide[name] for name in node.inputs])
    assert first.shape == expected.shape
    assert first.dtype == np.float32
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-5)
    executor.run({name: array + 1 for name, array in inputs.items()})  # what lies in memory now is another run's
    (again,) = executor.run(inputs)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(Executor(graph, threads=3).run(inputs)[0], first)


def test_every_operator_with_a_kernel_is_tried():
    # Of the others `tests/kernels/test_activations.py` tries each, or they are tried as part of these.
    assert {case[0] for case in CASES} >= HEAVY - ACTIVATIONS.keys() - {
        *("Erf", "Sqrt", "Log", "ReduceSumSquare", "Identity", "Flatten", "Squeeze", "Unsqueeze"),
    }


@pytest.mark.parametrize("channels", [3, 40])
def test_both_orders_of_a_convolution_have_the_same_bits(channels, monkeypatch):
    x, weight = normal(2, 12, 50), normal(channels, 12, 9)
    node = Node("Conv", ("x", "w"), ("y",), {"pads": [4, 4]})
    graph = Graph((TensorSpec("x", (2, 12, 50)),), (TensorSpec("y", ("...",)),), (node,), {"w": weight})
    results = []
    for order in ((True, 1), (True, 3), (False, 1), (False, 4)):
        monkeypatch.setattr(convolution, "_order", lambda *_, order=order: order)
        results.append(Executor(graph).run({"x": x})[0])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def crnn() -> Model:
    """Convolution over time, batch normalisation, pooling, an LSTM and a dense layer with softmax."""
    constants = {
        "w": normal(6, 5, 3),
        **{f"bn{i}": np.abs(normal(6)) + 0.1 for i in range(4)},
        "w_ih": normal(1, 4 * 40, 6) / 3,
        "w_hh": normal(1, 4 * 40, 40) / 6,
        "dense": normal(40, 7),
    }
    lstm = {"hidden_size": 40, "directions": ["forward"], "activations": default_activations("LSTM")}
    lstm |= {"clip": None, "input_forget": 0}
    nodes = (
        Node("Conv", ("x", "w"), ("c",), {"pads": [1, 1]}),
        Node("BatchNormalization", ("c", "bn0", "bn1", "bn2", "bn3"), ("n",)),
        Node("MaxPool", ("n",), ("p",), {"kernel_shape": [2], "strides": [2]}),
        Node("Transpose", ("p",), ("s",), {"perm": [2, 0, 1]}),
        Node("LSTM", ("s", "w_ih", "w_hh"), ("h", "", "c_n"), lstm),
        Node("MatMul", ("h", "dense"), ("d",)),
        Node("Softmax", ("d",), ("y",), {"axis": -1}),
    )
    outputs = (TensorSpec("y", ("time", "batch", 7)), TensorSpec("c_n", (1, "batch", 40)))
    return Model(Graph((TensorSpec("x", ("batch", 5, "frames")),), outputs, nodes, constants), threads=2)


def test_a_row_has_the_same_bits_alone_and_in_any_batch_on_any_number_of_threads():
    model, x = crnn(), normal(9, 5, 60)
    whole = model.run({"x": x})
    for row in (0, 4, 8):
        alone = model.run({"x": x[row : row + 1]})
        np.testing.assert_array_equal(alone["y"][:, 0], whole["y"][:, row])
        np.testing.assert_array_equal(alone["c_n"][:, 0], whole["c_n"][:, row])
    np.testing.assert_array_equal(Model(model.graph).run({"x": x})["y"], whole["y"])


def test_a_model_may_be_called_from_several_threads():
    model = crnn()
    inputs = [normal(1 + i % 2, 5, 40) for i in range(8)]
    expected = [model.run({"x": x})["y"] for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(30) if not np.array_equal(model.run({"x": inputs[i]})["y"], expected[i]))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_memory_of_tapes_is_bounded():
    model = crnn()
    for frames in range(10, 90):
        model.run({"x": normal(1, 5, frames)})
    kept = model._executor.tapes._kept
    assert len(kept) <= 32


def test_a_result_is_the_callers_own():
    model, x = crnn(), normal(1, 5, 20)
    first = model.run({"x": x})["y"]
    copy = first.copy()
    model.run({"x": x + 1})
    np.testing.assert_array_equal(first, copy)


def test_shapes_that_depend_on_data_are_found_anew():
    """The tape of a shape is right only as long as what comes out of NumPy has the sizes it had."""
    nodes = (
        Node("Relu", ("x",), ("r",)),
        Node("NonZero", ("r",), ("places",)),
        Node("Transpose", ("places",), ("rows",), {"perm": [1, 0]}),
        Node("GatherND", ("x", "rows"), ("picked",), {}),
        Node("Tanh", ("picked",), ("y",)),
    )
    executor = Executor(Graph((TensorSpec("x", (4, 5)),), (TensorSpec("y", ("...",)),), nodes))
    for _ in range(4):
        x = normal(4, 5)
        np.testing.assert_allclose(executor.run({"x": x})[0], np.tanh(x[x > 0]), rtol=1e-5)


def test_an_input_that_only_chooses_a_branch_is_a_constant_of_the_tape():
    def branch(factor: float) -> Graph:
        nodes = (Node("Mul", ("x", "by"), ("scaled",)), Node("Tanh", ("scaled",), ("out",)))
        return Graph((), (TensorSpec("out", ("...",)),), nodes, {"by": np.float32(factor).reshape(1)})

    nodes = (
        Node("Equal", ("rate", "sixteen"), ("is",)),
        Node("If", ("is",), ("y",), {"then_branch": branch(2.0), "else_branch": branch(3.0)}),
    )
    inputs = (TensorSpec("x", ("n",)), TensorSpec("rate", (), "int64"))
    graph = Graph(inputs, (TensorSpec("y", ("...",)),), nodes, {"sixteen": np.array(16000)})
    model, x = fastlstm.Model(graph), normal(11)
    for rate in (16000, 8000, 16000, 44100):
        factor = 2.0 if rate == 16000 else 3.0
        y = model.run({"x": x, "rate": np.array(rate)})["y"]
        np.testing.assert_allclose(y, np.tanh(factor * x), rtol=1e-5, atol=1e-6)


def test_ids_outside_an_embedding_table_are_told_and_do_not_stick():
    lstm = {"hidden_size": 4, "directions": ["forward"], "activations": default_activations("LSTM")}
    lstm |= {"clip": None, "input_forget": 0}
    nodes = (
        Node("Gather", ("table", "ids"), ("rows",), {"axis": 0}),
        Node("LSTM", ("rows", "w", "r"), ("h",), lstm),
        Node("ReduceMax", ("h", "axes"), ("y",), {"keepdims": 0}),
    )
    constants = {"table": normal(6, 3), "w": normal(1, 16, 3), "r": normal(1, 16, 4), "axes": ints(0)}
    graph = Graph((TensorSpec("ids", ("t", "b"), "int64"),), (TensorSpec("y", ("b", 4)),), nodes, constants)
    model = fastlstm.Model(graph)
    good = np.array([[0, 5], [2, 3]])
    first = model(good)
    for _ in range(2):
        with pytest.raises(fastlstm.InputError, match="embedding table"):
            model(good + 1)
        np.testing.assert_array_equal(model(good), first)


@pytest.mark.parametrize(
    ("op", "attrs", "constants", "says"),
    [
        ("Conv", {}, {"w": normal(4, 3, 9)}, "Conv node"),
        ("Conv", {}, {"w": normal(4, 3, 1), "b": normal(3)}, "Conv node"),
        ("ReduceMean", {}, {"axes": ints(3)}, "ReduceMean node"),
        ("Softmax", {"axis": 5}, {}, "Softmax node"),
        ("Pad", {}, {"pads": ints(0, 0, 0, 0, 0, 1 << 40)}, "Pad node"),
        ("BatchNormalization", {}, {name: normal(2) for name in "abcd"}, "BatchNormalization node"),
        ("Gather", {"axis": 1}, {"i": ints(0, 7)}, "Gather node"),
    ],
)
@pytest.mark.parametrize("shape", [(1, 3, 8), ("n", "c", "t")], ids=["known", "open"])
def test_what_does_not_fit_is_said_by_the_node_and_reads_no_memory_of_others(op, attrs, constants, says, shape):
    node = Node(op, ("x", *constants), ("y",), attrs, "here")
    graph = Graph((TensorSpec("x", shape),), (TensorSpec("y", ("...",)),), (node,), constants)
    with pytest.raises(fastlstm.FastLSTMError, match=says):
        Executor(graph).run({"x": normal(1, 3, 8)})


def test_batch_normalisation_becomes_part_of_the_convolution_before_it():
    model, x = crnn(), normal(2, 5, 30)
    assert "BatchNormalization" not in [node.op for node in model.plan.graph.nodes]
    expected = reference.run(model.graph, {"x": x})
    for name, got in model.run({"x": x}).items():
        np.testing.assert_allclose(got, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("op", "attrs"), [("MatMul", {}), ("Einsum", {"equation": "ab,bc->ac"})])
def test_a_product_over_no_values_is_zero(op: str, attrs: dict[str, Any]) -> None:
    """Its memory held what another product had left there."""
    nodes = (
        Node("Tanh", ("x",), ("t",)),
        Node("MatMul", ("t", "w"), ("m",)),
        Node("Slice", ("x", "none", "none", "second"), ("no x",)),
        Node("Slice", ("w", "none", "none", "none"), ("no w",)),
        Node(op, ("no x", "no w"), ("p",), attrs),
        Node("Add", ("p", "m"), ("y",)),
    )
    inputs = (TensorSpec("x", ("a", "b")), TensorSpec("w", ("b", "c")))
    graph = Graph(inputs, (TensorSpec("y", ("...",)),), nodes, {"none": ints(0), "second": ints(1)})
    feeds = {"x": normal(2, 3), "w": normal(3, 4)}
    np.testing.assert_allclose(Model(graph).run(feeds)["y"], reference.run(graph, feeds)["y"], rtol=1e-5)

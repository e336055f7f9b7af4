"""Convolutions and pooling in compiled kernels: right for every window, the same bits however they are run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fastlstm import operators
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.executor import Executor
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.lowering.tapes import convolution, planes, recorder
from fastlstm.model import Model
from fastlstm.operators import reference

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def kernel_of(*shape: int) -> np.ndarray:
    """Return weights whose sums have about the size of what they are applied to, so that tolerances hold for all."""
    return normal(*shape) / np.float32(np.sqrt(np.prod(shape[1:])))


def graph_of(op: str, attrs: dict[str, Any], shape: tuple[int, ...], *constants: np.ndarray) -> Graph:
    names = [f"c{i}" for i in range(len(constants))]
    node = Node(op, ("x", *names), ("y",), attrs, "here")
    size = tuple(f"d{i}" if i not in (1,) else n for i, n in enumerate(shape))
    return Graph(
        (TensorSpec("x", size),), (TensorSpec("y", ("...",)),), (node,), dict(zip(names, constants, strict=True))
    )


@st.composite
def convolutions(draw: st.DrawFn, transposed: bool = False) -> tuple[dict[str, Any], tuple[int, ...], list[np.ndarray]]:
    """Return attributes, the shape of x and the constants of a convolution with at least one output."""
    rank = draw(st.integers(1, 2))
    several = lambda low, high: draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))  # noqa: E731
    kernel, strides, dilations = several(1, 4), several(1, 3), several(1, 3)
    groups, each, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        outputs *= draw(st.sampled_from([4, 9]))
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = several(0, 3) + several(0, 3)
    sizes = [
        draw(st.integers(max(1, n - a - b), n + 40 // rank)) for n, a, b in zip(span, pads, pads[rank:], strict=False)
    ]
    attrs: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": groups}
    if transposed:
        cut = [min(p, (n - 1) // 2) for p, n in zip(pads, span * 2, strict=True)]
        attrs |= {"pads": cut, "output_padding": [draw(st.integers(0, s - 1)) for s in strides]}
    elif draw(st.integers(0, 3)):
        attrs["pads"] = pads
    else:
        attrs["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
    weight = (groups * each, outputs, *kernel) if transposed else (groups * outputs, each, *kernel)
    constants = [kernel_of(*weight)] + ([normal(groups * outputs)] if draw(st.booleans()) else [])
    return attrs, (draw(st.integers(1, 3)), groups * each, *sizes), constants


def check(op: str, attrs: dict[str, Any], shape: tuple[int, ...], constants: list[np.ndarray]) -> None:
    """Compare with float64; rows alone, more threads and a tape that is run again give the same bits."""
    graph, x = graph_of(op, attrs, shape, *constants), normal(*shape)
    expected, *_ = operators.evaluate(
        graph.nodes[0], [x.astype(np.float64), *(c.astype(np.float64) for c in constants)]
    )
    executor = Executor(graph)
    (got,) = executor.run({"x": x})
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(executor.run({"x": x})[0], got)
    np.testing.assert_array_equal(executor.run({"x": x[-1:]})[0], got[-1:])
    np.testing.assert_array_equal(Executor(graph, threads=3).run({"x": x})[0], got)


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_every_window_agrees_with_float64_in_the_same_bits_for_every_batch(case):
    check("Conv", *case)


@settings(max_examples=40, deadline=None)
@given(convolutions(transposed=True))
def test_every_transposed_convolution_agrees_with_float64(case):
    check("ConvTranspose", *case)


@pytest.mark.parametrize(
    ("attrs", "shape", "weight"),
    [
        ({"pads": [1, 1, 1, 1]}, (2, 32, 20, 50), (40, 32, 3, 3)),
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (1, 8, 33, 40), (24, 8, 3, 3)),
        ({"pads": [2, 2], "group": 70}, (1, 70, 130), (70, 1, 5)),
        ({"strides": [160], "pads": [128, 128]}, (1, 1, 1600), (300, 1, 256)),
        ({"auto_pad": "SAME_UPPER", "strides": [1, 2]}, (1, 3, 9, 33), (200, 3, 3, 3)),
        ({}, (3, 64, 600), (130, 64, 1)),
    ],
)
def test_long_sums_and_many_channels_agree_with_onnxruntime(attrs, shape, weight):
    x, w, bias = normal(*shape), kernel_of(*weight), normal(weight[0])
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **attrs)
    rank = [None] * len(shape)
    proto = helper.make_model(
        helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, rank)],
            [numpy_helper.from_array(w, "w"), numpy_helper.from_array(bias, "b")],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    (got,) = Executor(graph_of("Conv", attrs, shape, w, bias)).run({"x": x})
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    check("Conv", attrs, shape, [w, bias])


@pytest.mark.parametrize("channels", [3, 40])
@pytest.mark.parametrize("groups", [1, 3])
def test_both_orders_and_all_panels_have_the_same_bits(channels, groups, monkeypatch):
    x, weight = normal(2, 12, 50), normal(groups * channels, 12 // groups, 13)
    graph = graph_of("Conv", {"pads": [4, 4], "group": groups}, x.shape, weight)
    results = []
    for order in ((True, 1), (True, 4), (False, 1), (False, 3)):
        monkeypatch.setattr(convolution, "_order", lambda *_, order=order: order)
        results.append(Executor(graph).run({"x": x})[0])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_images_laid_out_apart_or_together_have_the_same_bits(monkeypatch):
    x, weight = normal(5, 4, 9, 21), normal(6, 4, 3, 3)
    graph = graph_of("Conv", {"pads": [1, 1, 1, 1], "strides": [1, 2]}, x.shape, weight)
    together = Executor(graph).run({"x": x})[0]
    monkeypatch.setattr(planes, "ENOUGH", 1)
    executor = Executor(graph)
    executor.plan = replace(executor.plan, target=replace(executor.plan.target, l2_bytes=1))
    np.testing.assert_array_equal(executor.run({"x": x})[0], together)


@pytest.mark.parametrize(
    ("op", "attrs", "constants"),
    [
        ("Relu", {}, []),
        ("Clip", {}, [np.float32(-0.25), np.float32(0.5)]),
        ("LeakyRelu", {"alpha": 0.1}, []),
        ("PRelu", {}, [normal(20, 1)]),
        ("PRelu", {}, [normal(1)]),
        ("PRelu", {}, [normal(20, 31)]),
        ("Tanh", {}, []),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_function_behind_a_convolution_is_computed_with_it_or_after_it(op, attrs, constants, again):
    """What reads the convolution itself still finds it as it was."""
    given = {f"c{i}": np.asarray(c) for i, c in enumerate(constants)}
    nodes = [
        Node("Conv", ("x", "w", "b"), ("conv",), {"pads": [1, 1]}),
        Node(op, ("conv", *given), ("z",), attrs),
        Node("Sub", ("z", "conv" if again else "z"), ("d",)),
        Node("Add", ("d", "z"), ("y",)),
    ]
    constants_ = {"w": normal(20, 4, 3), "b": normal(20), **given}
    graph = Graph((TensorSpec("x", ("n", 4, "t")),), (TensorSpec("y", ("...",)),), tuple(nodes), constants_)
    x = normal(2, 4, 31)
    x[1, 2, 7] = np.nan
    expected = reference.run(graph, {"x": x})["y"]
    model = Model(graph)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model(x), model(x))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["MaxPool", "AveragePool"]), st.lists(st.integers(1, 4), min_size=2, max_size=2),
    st.lists(st.integers(1, 3), min_size=2, max_size=2), st.lists(st.integers(1, 2), min_size=2, max_size=2),
    st.lists(st.integers(0, 1), min_size=4, max_size=4), st.booleans(), st.booleans(), st.integers(8, 60),
)  # fmt: skip
def test_pooling_agrees_with_numpy(op, kernel, strides, dilations, pads, ceil, include, width):
    attrs = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "ceil_mode": int(ceil)}
    attrs["pads"] = [min(p, k - 1) for p, k in zip(pads, kernel * 2, strict=True)]
    if op == "AveragePool":
        attrs["count_include_pad"] = int(include)
    x = normal(2, 3, 11, width)
    graph = graph_of(op, attrs, x.shape)
    expected, *_ = operators.evaluate(graph.nodes[0], [x.astype(np.float64)])
    (got,) = Executor(graph).run({"x": x})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(Executor(graph, threads=2).run({"x": x[1:]})[0], got[1:])


def test_a_nan_in_a_window_is_its_largest_and_stays_in_its_image():
    x = normal(2, 3, 6, 40)
    x[1, 2, 3, 17] = np.nan
    for op in ("MaxPool", "AveragePool"):
        graph = graph_of(op, {"kernel_shape": [2, 2], "strides": [2, 2]}, x.shape)
        (got,) = Executor(graph).run({"x": x})
        assert np.isnan(got[1, 2, 1, 8])
        assert np.isnan(got).sum() == 1


@pytest.mark.parametrize(
    ("op", "attrs", "weight"),
    [
        ("Conv", {"pads": [1 << 40, 0]}, (4, 3, 2)),
        ("Conv", {"pads": [0, 1 << 29]}, (4, 3, 2)),
        ("ConvTranspose", {"strides": [1 << 40]}, (3, 4, 2)),
        ("ConvTranspose", {"dilations": [1 << 29]}, (3, 4, 2)),
        ("AveragePool", {"kernel_shape": [1], "pads": [0, 1 << 31]}, None),
        ("MaxPool", {"kernel_shape": [1 << 33], "pads": [1 << 32, 1 << 32]}, None),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(op, attrs, weight):
    constants = [] if weight is None else [normal(*weight)]
    with pytest.raises(InputError, match=f"{op} node"):
        Executor(graph_of(op, attrs, (1, 3, 8), *constants)).run({"x": normal(1, 3, 8)})


@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("between", [[], ["Relu"], ["Relu", "Tanh"]])
@pytest.mark.parametrize(
    ("shape", "weight", "pads", "window"),
    [
        ((3, 4, 21, 30), (6, 4, 3, 3), [1, 1, 1, 1], [2, 3]),
        ((3, 4, 21, 30), (70, 4, 1, 1), [0, 0, 0, 0], [4, 1]),
        ((2, 5, 40), (6, 5, 3), [0, 1], [2]),
    ],
)
def test_pooling_right_behind_a_convolution_has_the_same_bits_band_by_band(
    pool, between, shape, weight, pads, window, monkeypatch
):
    names = ["conv", *(f"f{i}" for i in range(len(between))), "y"]
    nodes = [Node("Conv", ("x", "w"), ("conv",), {"pads": pads})]
    nodes += [Node(op, (names[i],), (names[i + 1],)) for i, op in enumerate(between)]
    nodes.append(Node(pool, (names[-2],), ("y",), {"kernel_shape": window, "strides": window}))
    w, x = kernel_of(*weight), normal(*shape)
    graph = Graph((TensorSpec("x", shape),), (TensorSpec("y", ("...",)),), tuple(nodes), {"w": w})
    banded = Executor(graph)
    banded.plan = replace(banded.plan, target=replace(banded.plan.target, l2_bytes=1))
    (got,) = banded.run({"x": x})
    np.testing.assert_allclose(got, reference.run(graph, {"x": x})["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(banded.run({"x": x})[0], got)
    monkeypatch.setattr(recorder.Recorder, "again", lambda *_: None)
    np.testing.assert_array_equal(Executor(graph).run({"x": x})[0], got)


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_a_causal_convolution_goes_on_from_its_state(activation: str) -> None:
    x, weight, bias = normal(2, 3, 9), kernel_of(3, 1, 4), normal(3)
    node = Node("CausalConvWithState", ("x", "w", "b", "past"), ("y", "state"), {"activation": activation}, "here")
    first = Node("CausalConvWithState", ("x", "w", "b"), ("y", "state"), {"activation": activation}, "here")
    whole, end = operators.evaluate(first, [x, weight, bias])
    around = np.pad(x, [(0, 0), (0, 0), (3, 0)]).astype(np.float64)
    expected = sum(around[:, :, i : i + 9] * weight[None, :, 0, i : i + 1] for i in range(4)) + bias[None, :, None]
    if activation == "silu":
        expected = expected / (1 + np.exp(-expected))
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(end, x[:, :, -3:])
    state, parts = np.zeros((2, 3, 3), np.float32), []
    for start, stop in ((0, 2), (2, 3), (3, 9)):  # shorter than the state, too
        y, state = operators.evaluate(node, [x[:, :, start:stop], weight, bias, state])
        parts.append(y)
    np.testing.assert_array_equal(np.concatenate(parts, 2), whole)
    np.testing.assert_array_equal(state, end)


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        (((2, 3), (3, 1, 4), (2, 3, 3)), "three axes"),
        (((2, 3, 9), (4, 1, 4), (2, 3, 3)), "as many channels"),
        (((2, 3, 9), (3, 2, 4), (2, 3, 3)), "weights"),
        (((2, 3, 9), (3, 1, 4), (2, 3, 4)), "a state of k - 1"),
    ],
)
def test_operands_of_a_causal_convolution_that_do_not_fit_are_told(
    shapes: tuple[tuple[int, ...], ...], told: str
) -> None:
    x, weight, past = (np.zeros(shape, np.float32) for shape in shapes)
    graph = Graph(
        (TensorSpec("x", x.shape), TensorSpec("past", past.shape)), (TensorSpec("y", ("...",)),),
        (Node("CausalConvWithState", ("x", "w", "", "past"), ("y", ""), {}, "here"),), {"w": weight},
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match=told):
        Model(graph)

"""Quantised graphs run natively, and their integer sums stay exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastlstm import passes
from fastlstm.converters.onnx.load import from_onnx
from fastlstm.errors import FastLSTMError
from fastlstm.lowering.tapes.steps import Recorded
from fastlstm.model import Model
from fastlstm.operators import reference
from fastlstm.operators.convolution import conv
from fastlstm.target import machine

FLOAT, INT8, UINT8, INT32 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32
RNG = np.random.default_rng(2)
SEVEN = (-63, 64)
"""Weights that onnxruntime sums up exactly everywhere: without VNNI it adds pairs of products in 16 bits, which
saturate from 8 bits on."""


def model(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, int], weights: dict[str, Any]) -> Any:
    given = [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()]
    made = [helper.make_tensor_value_info(n, kind, None) for n, kind in outputs.items()]
    constants = [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()]
    graph = helper.make_graph(nodes, "quantised", given, made, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def agree(proto: Any, feeds: dict[str, np.ndarray], native: bool = True) -> None:
    """Hold a model against onnxruntime; `native` says whether all of it runs in compiled code."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = Model(from_onnx(proto))
    for _ in range(2):
        found = ours.run(feeds)
        for spec, theirs in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            assert found[spec.name].dtype == theirs.dtype
            np.testing.assert_allclose(found[spec.name], theirs, rtol=1e-6, atol=1e-6)
    assert is_native(ours) == native


def is_native(ours: Model) -> bool:
    (tape,) = next(reversed(ours._executor.tapes._kept.values()))
    return all(isinstance(step, Recorded) for step in tape.steps)


def pair(x: str, out: str, scale: str, zero: str) -> list[Any]:
    return [
        helper.make_node("QuantizeLinear", [x, scale, zero], [f"{out}.q"]),
        helper.make_node("DequantizeLinear", [f"{out}.q", scale, zero], [out]),
    ]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_pairs_around_weights_and_activations(dtype: Any, per_channel: bool) -> None:
    low = 0 if dtype == np.uint8 else -128
    scale = RNG.uniform(0.001, 0.01, 24).astype(np.float32) if per_channel else np.float32(0.004)
    zeros = np.zeros(24, np.int8) if per_channel else np.int8(3)
    weights = {
        "W": RNG.integers(-127, 128, (24, 5, 3)).astype(np.int8), "ws": scale, "wz": zeros,
        "V": RNG.integers(-127, 128, (24, 7)).astype(np.int8), "vs": np.float32(0.01), "vz": np.int8(0),
        "b": RNG.normal(size=24).astype(np.float32), "s": np.float32(0.021), "z": dtype(low + 117),
        "hs": np.float32(0.03), "hz": dtype(low),
    }  # fmt: skip
    nodes = [
        *pair("x", "xq", "s", "z"),
        helper.make_node("DequantizeLinear", ["W", "ws", "wz"], ["Wf"], axis=0),
        helper.make_node("Conv", ["xq", "Wf", "b"], ["c"], pads=[1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        *pair("r", "rq", "hs", "hz"),
        helper.make_node("Transpose", ["rq"], ["t"], perm=[0, 2, 1]),
        helper.make_node("DequantizeLinear", ["V", "vs", "vz"], ["Vf"]),
        helper.make_node("MatMul", ["t", "Vf"], ["y"]),
    ]
    proto = model(nodes, {"x": (FLOAT, ["batch", 5, "time"])}, {"y": FLOAT}, weights)
    # onnxruntime adds scaled products, whose rounding can put a value on the other side of a step: the truth is exact.
    feeds = {"x": 2 * RNG.normal(size=(3, 5, 50)).astype(np.float32)}
    graph = from_onnx(proto)
    ours = Model(graph)
    for _ in range(2):
        np.testing.assert_allclose(ours.run(feeds)["y"], reference.run(graph, feeds)["y"], rtol=1e-5, atol=1e-5)
    assert is_native(ours)


def dynamic(kind: str) -> Any:
    """What quantize_dynamic of onnxruntime writes for a layer."""
    shape = (6, 9) if kind == "MatMul" else (9, 6, 3)
    weights = {"W": RNG.integers(*SEVEN, shape).astype(np.int8), "ws": np.float32(0.02), "wz": np.int8(-4)}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("Mul", ["s", "ws"], ["factor"]),
        helper.make_node(
            f"{kind}Integer", ["q", "W", "z", "wz"], ["sum"], **({"pads": [1, 1]} if kind == "Conv" else {})
        ),
        helper.make_node("Cast", ["sum"], ["total"], to=FLOAT),
        helper.make_node("Mul", ["total", "factor"], ["y"]),
        helper.make_node("Identity", ["z"], ["zero"]),
        helper.make_node("Identity", ["q"], ["bytes"]),
    ]
    size = ["batch", "time", 6] if kind == "MatMul" else ["batch", 6, "time"]
    return model(nodes, {"x": (FLOAT, size)}, {"y": FLOAT, "zero": UINT8, "bytes": UINT8}, weights)


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_ranges_that_the_data_decide(kind: str, shift: float) -> None:
    x = (RNG.normal(size=(2, 6, 6)) + shift).astype(np.float32)
    agree(dynamic(kind), {"x": x}, native=False)  # NumPy makes the bytes


def test_a_range_of_nothing() -> None:
    agree(dynamic("MatMul"), {"x": np.zeros((1, 4, 6), np.float32)}, native=False)


def integers(kind: str, shape: tuple[int, ...], zero: int, **attrs: Any) -> tuple[Any, np.ndarray]:
    """A product of bytes x less 117 with weights of so large a zero point, and those weights less it."""
    weight = RNG.integers(0, 256, shape).astype(np.uint8)
    nodes = [helper.make_node(f"{kind}Integer", ["x", "W", "xz", "wz"], ["y"], **attrs)]
    size = (
        ["batch", "time", shape[0]]
        if kind == "MatMul"
        else ["batch", shape[1] * attrs.get("group", 1), *"hw"[: len(shape) - 2]]
    )
    weights = {"W": weight, "xz": np.uint8(117), "wz": np.uint8(zero)}
    return model(nodes, {"x": (UINT8, size)}, {"y": INT32}, weights), weight.astype(np.int64) - zero


def kernels_of(ours: Model) -> set[str]:
    """The kernels of the tape that ran last."""
    (tape,) = next(reversed(ours._executor.tapes._kept.values()))
    return {name for part in tape.steps if isinstance(part, Recorded) for name, _ in part.program.program.kernels(1)}


@pytest.mark.parametrize("zero", [128, 3])
@pytest.mark.parametrize("rows", [1, 2, 7, 300])
def test_dense_layers_of_bytes_multiply_integers(zero: int, rows: int) -> None:
    proto, weight = integers("MatMul", (301, 75), zero)
    graph = passes.optimise(from_onnx(proto))
    (narrow,) = (graph.constants[node.input(1)] for node in graph.nodes if node.op == "Dense")
    assert narrow.dtype == (np.int8 if zero == 128 else np.int16)  # from -3 on a byte does not hold them
    ours = Model(from_onnx(proto))
    for extreme in (RNG.integers(0, 256, (1, rows, 301)), np.full((1, rows, 301), 255)):
        x = extreme.astype(np.uint8)
        assert np.array_equal(ours.run({"x": x})["y"], (x.astype(np.int64) - 117) @ weight)


@pytest.mark.parametrize(
    ("shape", "size", "attrs"),
    [
        ((24, 5, 3, 3), (2, 5, 9, 13), {"pads": [1, 1, 1, 1]}),
        ((3, 8, 3, 3), (1, 8, 20, 31), {"strides": [2, 2]}),
        ((70, 6, 1, 1), (1, 6, 4, 5), {}),
        ((33, 16, 3, 3), (1, 16, 3, 3), {}),
        ((17, 4, 3), (3, 4, 40), {"pads": [2, 0]}),
        ((6, 3, 3), (1, 6, 11), {"group": 2}),
    ],
)
def test_convolutions_of_bytes_multiply_integers(shape: Any, size: Any, attrs: dict[str, Any]) -> None:
    proto, weight = integers("Conv", shape, 3, **attrs)
    x = RNG.integers(0, 256, size).astype(np.uint8)
    ours = Model(from_onnx(proto))
    found = ours.run({"x": x})["y"]
    assert np.array_equal(found, conv(x.astype(np.float64) - 117, weight.astype(np.float64), **attrs))
    one = ours.run({"x": x[:1]})["y"]
    assert np.array_equal(one, found[:1])
    target = machine.detect()
    assert ("convolution.pairs" in kernels_of(ours)) == (target.pairs and target.lanes > 1 and "group" not in attrs)


def test_sums_that_float32_does_not_hold_stay_integers() -> None:
    weights = {"W": np.full((2000, 3), 127, np.int8), "wz": np.int8(0)}
    nodes = [helper.make_node("MatMulInteger", ["q", "W", "z", "wz"], ["y"])]
    inputs = {"q": (UINT8, ["n", 2000]), "z": (UINT8, [])}
    proto = model(nodes, inputs, {"y": INT32}, weights)
    ours = Model(from_onnx(proto))
    q = RNG.integers(250, 256, (4, 2000)).astype(np.uint8)
    wanted = (q.astype(np.int64) - 1).sum(1, keepdims=True) * 127
    assert wanted.max() > 1 << 24
    assert np.array_equal(ours.run({"q": q, "z": np.array(1, np.uint8)})["y"], np.repeat(wanted, 3, 1))


def test_operators_that_take_and_give_bytes() -> None:
    weights = {
        "s": np.float32(0.05), "z": np.uint8(120), "W": RNG.integers(*SEVEN, (8, 4, 3)).astype(np.int8),
        "ws": RNG.uniform(0.001, 0.02, 8).astype(np.float32), "wz": np.zeros(8, np.int8),
        "b": RNG.integers(-5000, 5000, 8).astype(np.int32), "cs": np.float32(0.11), "cz": np.uint8(97),
        "V": RNG.integers(0, 256, (8, 5)).astype(np.uint8), "vs": np.float32(0.013), "vz": np.uint8(131),
        "ys": np.float32(0.4), "yz": np.uint8(128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "W", "ws", "wz", "cs", "cz", "b"], ["c"], pads=[1, 1]),
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 1]),
        helper.make_node("QLinearMatMul", ["t", "cs", "cz", "V", "vs", "vz", "ys", "yz"], ["m"]),
        helper.make_node("DequantizeLinear", ["m", "ys", "yz"], ["y"]),
        helper.make_node("Identity", ["c"], ["bytes"]),
    ]
    proto = model(nodes, {"x": (FLOAT, ["batch", 4, "time"])}, {"y": FLOAT, "bytes": UINT8}, weights)
    agree(proto, {"x": 3 * RNG.normal(size=(2, 4, 30)).astype(np.float32)}, native=False)


def test_the_nearest_whole_number_is_numpys() -> None:
    x = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, -0.0, 0, 8388607.5, 8388609, -3e38, np.inf, -np.inf, np.nan])
    proto = model([helper.make_node("Round", ["x"], ["y"])], {"x": (FLOAT, ["n"])}, {"y": FLOAT}, {})
    ours = Model(from_onnx(proto))
    for _ in range(2):
        found = ours.run({"x": x})["y"]
        assert np.array_equal(found, np.rint(x), equal_nan=True)
        assert np.array_equal(np.signbit(found), np.signbit(np.rint(x)))


HOSTILE = {
    "zero points of other rows": ("MatMulInteger", {"W": np.ones((6, 3), np.int8), "wz": np.zeros(5, np.int8)}),
    "zero points of other channels": ("ConvInteger", {"W": np.ones((3, 6, 1), np.int8), "wz": np.zeros(5, np.int8)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_parameters_that_do_not_fit_are_an_error(name: str) -> None:
    op, weights = HOSTILE[name]
    node = helper.make_node(op, ["q", "W", "z", "wz"], ["y"])
    proto = model([node], {"q": (UINT8, ["n", 6, 6]), "z": (UINT8, [])}, {"y": INT32}, weights)
    ours = Model(from_onnx(proto))
    with pytest.raises(FastLSTMError):
        ours.run({"q": np.ones((2, 6, 6), np.uint8), "z": np.array(0, np.uint8)})


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_scales_that_are_none_do_not_end_the_process(scale: float) -> None:
    weights = {"s": np.float32(scale), "z": np.uint8(3)}
    proto = model(pair("x", "y", "s", "z"), {"x": (FLOAT, ["n"])}, {"y": FLOAT}, weights)
    assert Model(from_onnx(proto)).run({"x": np.ones(4, np.float32)})["y"].shape == (4,)


def test_scales_of_other_sizes_in_a_product_are_an_error() -> None:
    weights = {
        "s": np.float32(0.1), "z": np.uint8(3), "W": np.ones((6, 3), np.int8), "ws": np.ones(3, np.float32),
        "wz": np.zeros(3, np.int8), "ys": np.ones(5, np.float32), "yz": np.zeros(5, np.uint8),
    }  # fmt: skip
    node = helper.make_node("QLinearMatMul", ["q", "s", "z", "W", "ws", "wz", "ys", "yz"], ["y"])
    proto = model([node], {"q": (UINT8, ["n", 6])}, {"y": UINT8}, weights)
    with pytest.raises(FastLSTMError):
        Model(from_onnx(proto)).run({"q": np.ones((2, 6), np.uint8)})


def test_biases_that_the_data_scale_are_added_in_float32() -> None:
    """As onnxruntime's dynamic quantiser once wrote convolutions: biases in steps of the data's, added as integers."""
    at = helper.make_node
    nodes = [
        at("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        at("Mul", ["s", "ws"], ["step"]),
        at("Div", ["b", "step"], ["steps"]),
        at("Floor", ["steps"], ["floor"]),
        at("Cast", ["floor"], ["whole"], to=INT32),
        at("Reshape", ["whole", "across"], ["bias"]),
        at("ConvInteger", ["q", "w", "z"], ["sum"], pads=[1, 1, 1, 1]),
        at("Add", ["sum", "bias"], ["both"]),
        at("Cast", ["both"], ["float"], to=FLOAT),
        at("Mul", ["float", "step"], ["y"]),
    ]
    weights = {
        "w": RNG.integers(*SEVEN, (5, 3, 3, 3)).astype(np.int8), "ws": np.float32(0.013),
        "b": (1e3 * RNG.standard_normal(5)).astype(np.float32), "across": np.array([1, -1, 1, 1]),
    }  # fmt: skip
    proto = model(nodes, {"x": (FLOAT, [1, 3, 6, 7])}, {"y": FLOAT}, weights)
    x = RNG.standard_normal((1, 3, 6, 7)).astype(np.float32)
    agree(proto, {"x": x})

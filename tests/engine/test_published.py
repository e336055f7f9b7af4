"""Models built like published ones, frame by frame with their state fed back, against onnxruntime.

Small weights, the same structure: a voice-activity detector whose sample rate chooses a branch and whose spectrum is
a convolution, a denoiser whose states are packed into one array, an enhancer that carries caches of convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastlstm
from fastlstm.streaming.repeating import TOGETHER

FRAMES = 150


class Maker:
    """Writes nodes and their weights down, one line a node."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, name: str = "", **attrs: Any) -> Any:
        names = [self.constant(i) if not isinstance(i, str) else i for i in inputs]
        made = [name] if name else [f"v{id(self)}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, names, made, **attrs))
        return made[0] if len(made) == 1 else made

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        self.weights.append(numpy_helper.from_array(array, f"w{id(self)}_{len(self.weights)}"))
        return str(self.weights[-1].name)

    def normal(self, *shape: int) -> np.ndarray:
        return (self.rng.standard_normal(shape) / np.sqrt(shape[-1] * 2)).astype(np.float32)

    def lstm(self, x: str, size: int, hidden: int, h: str, c: str) -> Any:
        weights = self.normal(1, 4 * hidden, size), self.normal(1, 4 * hidden, hidden), self.normal(1, 8 * hidden)
        return self("LSTM", x, *weights, "", h, c, outputs=3, hidden_size=hidden)

    def graph(self, name: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
        def info(name: str, shape: Any) -> Any:
            kind = TensorProto.INT64 if shape == [] else TensorProto.FLOAT
            return helper.make_tensor_value_info(name, kind, shape)

        return helper.make_graph(
            self.nodes, name, [info(*i) for i in inputs.items()], [info(*o) for o in outputs.items()], self.weights
        )


def vad_body(bins: int, hop: int, seed: int, inputs: Mapping[str, Any]) -> Any:
    m = Maker(seed)
    x = m("Pad", "frame", np.array([0, 0, 0, hop]), mode="reflect")
    waves = np.arange(2 * hop)[None] * np.arange(bins)[:, None] * np.pi / hop
    basis = np.concatenate([np.cos(waves), -np.sin(waves)]).astype(np.float32)[:, None] * np.hanning(2 * hop)
    x = m("Conv", m("Unsqueeze", x, np.array([1])), basis.astype(np.float32), strides=[hop])
    real, imaginary = m("Split", x, np.array([bins, bins]), outputs=2, axis=1)
    x = m("Sqrt", m("Add", m("Pow", real, np.float32(2)), m("Pow", imaginary, np.float32(2))))
    for i, (size, stride) in enumerate([(24, 1), (16, 2), (16, 2)]):
        weight = m.normal(size, [bins, 24, 16][i], 3)
        x = m("Relu", m("Conv", x, weight, m.normal(size), pads=[1, 1], strides=[stride]))
    x = m("Transpose", m("ReduceMean", x, axes=[2], keepdims=1), perm=[2, 0, 1])
    h, c = (m("Gather", "state", np.array([i]), axis=0) for i in range(2))
    _, h_n, c_n = m.lstm(x, 16, 24, h, c)
    score = m("Conv", m("Relu", m("Transpose", h_n, perm=[1, 2, 0])), m.normal(1, 24, 1), m.normal(1))
    m("Squeeze", m("Sigmoid", score), np.array([2]), name=f"score{seed}")
    m("Concat", h_n, c_n, name=f"after{seed}", axis=0)
    return m.graph(f"body{seed}", inputs, {f"score{seed}": ["batch", 1], f"after{seed}": [2, "batch", 24]})


def vad_of_one_rate() -> tuple[Any, dict[str, str], dict[str, Any]]:
    """The body for 16 kHz alone: time inside a frame is of a length that the graph does not say."""
    graph = vad_body(17, 16, 1, {"frame": ["batch", "samples"], "state": [2, "batch", 24]})
    rng = np.random.default_rng(6)
    return graph, {"state": "after1"}, {"": lambda: {"frame": rng.standard_normal((1, 64)).astype(np.float32)}}


def vad() -> tuple[Any, dict[str, str], dict[str, Any]]:
    """Reflected edge, spectrum as a convolution, encoder, LSTM; one body for each of two sample rates."""

    m = Maker()
    condition = m("Equal", "rate", np.array(16000))
    branches = {"then_branch": vad_body(17, 16, 1, {}), "else_branch": vad_body(9, 8, 2, {})}
    m.nodes.append(helper.make_node("If", [condition], ["score", "stateN"], **branches))
    graph = m.graph(
        "vad",
        {"frame": ["batch", "samples"], "state": [2, "batch", 24], "rate": []},
        {"score": ["batch", 1], "stateN": [2, "batch", 24]},
    )
    rng = np.random.default_rng(5)
    samples = {16000: 64, 8000: 32}
    feeds = {
        f"{rate}": lambda rate=rate: {
            "frame": (rng.standard_normal((1, samples[rate])) * rng.choice([0.01, 0.1, 1.0])).astype(np.float32),
            "rate": np.array(rate),
        }
        for rate in samples
    }
    return graph, {"state": "stateN"}, feeds


def denoiser() -> tuple[Any, dict[str, str], dict[str, Any]]:
    """Two layers, the second's cells written out; both states of both in one array [1, layer, unit, h or c]."""
    m = Maker(7)

    def state(layer: int, part: int) -> str:
        cut = m("Slice", "packed", np.array([layer, part]), np.array([layer + 1, part + 1]), np.array([1, 3]))
        return str(m("Squeeze", cut, np.array([0, 3])))  # [1, unit]

    x = m("LayerNormalization", m("Log", m("Add", "frame", np.float32(1e-3))), m.normal(20), m.normal(20))
    h, c = (m("Unsqueeze", state(0, part), np.array([0])) for part in (0, 1))
    _, h_1, c_1 = m.lstm(m("Transpose", x, perm=[1, 0, 2]), 20, 12, h, c)
    first, cell, hidden = m("Squeeze", h_1, np.array([0])), state(1, 1), state(1, 0)
    sums = m("Add", m("MatMul", first, m.normal(12, 48)), m("MatMul", hidden, m.normal(12, 48)))
    i, f, g, o = m("Split", m("Add", sums, m.normal(48)), np.array([12] * 4), outputs=4, axis=1)
    kept, new = m("Mul", m("Sigmoid", f), cell), m("Mul", m("Sigmoid", i), m("Tanh", g))
    c_2 = m("Add", kept, new)
    h_2 = m("Mul", m("Sigmoid", o), m("Tanh", c_2))
    mask = m("Sigmoid", m("Add", m("MatMul", h_2, m.normal(12, 20)), m.normal(20)))
    m("Mul", "frame", m("Unsqueeze", mask, np.array([0])), name="clean")
    layers = [(first, m("Squeeze", c_1, np.array([0]))), (h_2, c_2)]
    stacks = []
    for pair in layers:
        wide = [m("Unsqueeze", part, np.array([0, 3])) for part in pair]
        stacks.append(m("Concat", *wide, axis=3))
    m("Concat", *stacks, axis=1, name="packed_after")
    graph = m.graph(
        "denoiser",
        {"frame": [1, 1, 20], "packed": [1, 2, 12, 2]},
        {"clean": [1, 1, 20], "packed_after": [1, 2, 12, 2]},
    )
    rng = np.random.default_rng(6)
    return graph, {"packed": "packed_after"}, {"": lambda: {"frame": rng.random((1, 1, 20)).astype(np.float32)}}


def enhancer() -> tuple[Any, dict[str, str], dict[str, Any]]:
    """Causal 2-D convolutions whose past frames are inputs, a GRU over frequency and one over time, and back up."""
    m = Maker(9)
    power = m(
        "Add", *[m("Pow", part, np.float32(2)) for part in m("Split", "frame", np.array([1, 1]), outputs=2, axis=1)]
    )
    x = m("Concat", "frame", m("Sqrt", power), axis=1)  # [1, 3, 1, 16]
    past = m("Concat", "conv_cache", x, axis=2)
    m("Slice", past, np.array([1]), np.array([3]), np.array([2]), name="conv_after")
    x = m("Conv", past, m.normal(8, 3, 3, 3), m.normal(8), pads=[0, 1, 0, 1], strides=[1, 2])
    statistics = np.abs(m.normal(8)) + 0.5
    x = m("PRelu", m("BatchNormalization", x, m.normal(8), m.normal(8), m.normal(8), statistics), m.normal(8, 1, 1))
    skip = x
    x = m("Conv", x, m.normal(8, 1, 1, 3), m.normal(8), pads=[0, 1, 0, 1], group=8)
    rows = m("Reshape", m("Transpose", x, perm=[0, 2, 3, 1]), np.array([1, 8, 8]))  # [1, frequency, channel]
    weights = m.normal(2, 12, 8), m.normal(2, 12, 4), m.normal(2, 24)
    y, _ = m("GRU", m("Transpose", rows, perm=[1, 0, 2]), *weights, outputs=2, hidden_size=4,
             direction="bidirectional", linear_before_reset=1)  # fmt: skip
    both = m("Reshape", m("Transpose", y, perm=[2, 0, 1, 3]), np.array([1, 8, 8]))
    scale, shift = m.normal(8, 8), m.normal(8, 8)
    rows = m("Add", rows, m("LayerNormalization", both, scale, shift, axis=1))
    weights = m.normal(1, 24, 8), m.normal(1, 24, 8), m.normal(1, 48)
    y, h_n = m("GRU", rows, *weights, "", "gru_cache", outputs=2, hidden_size=8, linear_before_reset=1)
    m("Identity", h_n, name="gru_after")
    rows = m("Add", rows, m("Squeeze", y, np.array([1])))
    x = m("Add", skip, m("Transpose", m("Unsqueeze", rows, np.array([1])), perm=[0, 3, 1, 2]))
    mask = m(
        "Tanh", m("ConvTranspose", x, m.normal(8, 2, 1, 3), strides=[1, 2], pads=[0, 1, 0, 1], output_padding=[0, 1])
    )
    m("Mul", "frame", mask, name="clean")
    graph = m.graph(
        "enhancer",
        {"frame": [1, 2, 1, 16], "conv_cache": [1, 3, 2, 16], "gru_cache": [1, 8, 8]},
        {"clean": [1, 2, 1, 16], "conv_after": [1, 3, 2, 16], "gru_after": [1, 8, 8]},
    )
    rng = np.random.default_rng(8)

    def feed() -> dict[str, np.ndarray]:
        return {"frame": rng.standard_normal((1, 2, 1, 16)).astype(np.float32)}

    return graph, {"conv_cache": "conv_after", "gru_cache": "gru_after"}, {"": feed}


@pytest.mark.parametrize("build", [vad, vad_of_one_rate, denoiser, enhancer])
def test_frame_by_frame_with_its_state_fed_back(build: Callable[[], Any]):
    graph, pairs, feeds = build()
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    session, model = ort.InferenceSession(proto.SerializeToString()), fastlstm.from_onnx(proto)
    names = [spec.name for spec in session.get_outputs()]
    sizes = {i.name: [n if isinstance(n, int) else 1 for n in i.shape] for i in session.get_inputs()}
    for feed in feeds.values():
        theirs = {name: np.zeros(sizes[name], np.float32) for name in pairs}
        ours, stream = dict(theirs), model.stream(state=pairs)
        shown = [name for name in names if name not in pairs.values()]
        for _ in range(FRAMES):
            frame = feed()
            expected = dict(zip(names, session.run(names, {**frame, **theirs}), strict=True))
            got = model.run({**frame, **ours})
            for name, value in expected.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
            step = stream.step(frame if len(frame) > 1 else frame["frame"])
            np.testing.assert_array_equal(np.ravel(step), np.ravel(got[shown[0]]))
            theirs = {name: expected[after] for name, after in pairs.items()}
            ours = {name: got[after] for name, after in pairs.items()}


@pytest.mark.parametrize("build", [vad, vad_of_one_rate, denoiser, enhancer])
def test_a_recording_in_one_push_has_the_bits_of_its_chunks(build: Callable[[], Any]):
    graph, pairs, feeds = build()
    model = fastlstm.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    for feed in feeds.values():
        by_step, at_once = model.stream(state=pairs), model.stream(state=pairs)
        frames = [feed() for _ in range(2 * TOGETHER + 3)]  # two loops, and three calls behind them
        steps = [by_step.step(frame if len(frame) > 1 else frame["frame"]) for frame in frames]
        chunks = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
        for name, array in chunks.items():
            if array.ndim == 1:  # a sample rate: once for all
                chunks[name] = array[0]
        pushed = at_once.push(chunks if len(chunks) > 1 else chunks["frame"])
        np.testing.assert_array_equal(np.ravel(pushed), np.ravel(steps))
        for name, state in by_step.state.items():
            np.testing.assert_array_equal(at_once.state[name], state)


def test_a_model_that_streams_call_by_call_only_says_which_states_to_name():
    graph, pairs, _ = vad()
    model = fastlstm.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(fastlstm.UnsupportedError, match=r"are passed on: state=\{'state': 'stateN'\}"):
        model.stream()
    model.stream(state=pairs)

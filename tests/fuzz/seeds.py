"""Small valid models of every format: what the fuzzer starts from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import fastlstm

__all__ = ["CORPUS", "write_all"]

CORPUS = Path(__file__).parent / "corpus"
"""Changed files, each refused by another sentence: what is changed once more gets farther than one change does."""

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(0)

Node = tuple[str, str, str, dict[str, Any]]


def normal(*shape: int) -> np.ndarray:
    """Return weights of the size that trained ones have."""
    return (0.3 * RNG.standard_normal(shape)).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    """Return a tensor of integers."""
    return np.array(numbers, np.int64)


def value(name: str, *shape: int | str, kind: int = FLOAT) -> Any:
    """Describe an input or output; of unknown shape if none is given."""
    return helper.make_tensor_value_info(name, kind, list(shape) or None)


def graph(
    nodes: Sequence[Node], inputs: Sequence[Any], outputs: Sequence[Any], tensors: dict[str, np.ndarray] | None = None
) -> Any:
    """Return an ONNX graph; names of inputs and outputs are separated by blanks, ``-`` is an absent one."""
    protos = [
        helper.make_node(op, [n.strip("-") for n in reads.split()], makes.split(), name=f"n{i}", **attrs)
        for i, (op, reads, makes, attrs) in enumerate(nodes)
    ]
    held = [numpy_helper.from_array(array, name) for name, array in (tensors or {}).items()]
    return helper.make_graph(protos, "g", list(inputs), list(outputs), held)


def lstm() -> Any:
    """Two bidirectional layers batch first, then layers over features."""
    nodes: list[Node] = [
        ("Transpose", "x", "t", {"perm": [1, 0, 2]}),
        ("LSTM", "t W R B", "y0", {"hidden_size": 4, "direction": "bidirectional"}),
        ("Transpose", "y0", "y1", {"perm": [0, 2, 1, 3]}),
        ("Reshape", "y1 joined", "y2", {}),
        ("LSTM", "y2 W2 R2", "y3 h", {"hidden_size": 4}),
        ("Squeeze", "y3 one", "y4", {}),
        ("Transpose", "y4", "y5", {"perm": [1, 0, 2]}),
        ("LayerNormalization", "y5 g b", "y6", {"axis": -1}),
        ("MatMul", "y6 V", "y7", {}),
        ("Add", "y7 c", "y8", {}),
        ("Softmax", "y8", "y", {"axis": -1}),
    ]
    tensors = {
        "W": normal(2, 16, 3), "R": normal(2, 16, 4), "B": normal(2, 32), "W2": normal(1, 16, 8),
        "R2": normal(1, 16, 4), "joined": ints(0, 0, -1), "one": ints(1), "g": normal(4), "b": normal(4),
        "V": normal(4, 2), "c": normal(2),
    }  # fmt: skip
    return graph(nodes, [value("x", "batch", "time", 3)], [value("y"), value("h")], tensors)


def gru() -> Any:
    """A GRU with lengths, whose initial state has a computed shape, and its last output."""
    nodes: list[Node] = [
        ("Shape", "x", "s", {}),
        ("Slice", "s from to", "b", {}),
        ("Concat", "one b width", "hs", {"axis": 0}),
        ("ConstantOfShape", "hs", "h0", {}),
        ("GRU", "x W R B lengths h0", "y0 hn", {"hidden_size": 4, "linear_before_reset": 1}),
        ("Squeeze", "y0 one", "y1", {}),
        ("Gather", "y1 last", "y2", {"axis": 0}),
        ("Gemm", "y2 V", "y3", {"transB": 1}),
        ("Relu", "y3", "y4", {}),
        ("Unsqueeze", "y4 one", "y5", {}),
        ("Expand", "y5 wide", "y6", {}),
        ("Tile", "y6 repeats", "y7", {}),
        ("ReduceMean", "y7", "y", {"axes": [1], "keepdims": 0}),
    ]
    tensors = {
        "W": normal(1, 12, 3), "R": normal(1, 12, 4), "B": normal(1, 24), "from": ints(1), "to": ints(2),
        "one": ints(1), "width": ints(4), "last": np.array(-1), "V": normal(2, 4), "wide": ints(1, 3, 1),
        "repeats": ints(1, 2, 1),
    }  # fmt: skip
    inputs = [value("x", "time", "batch", 3), value("lengths", "batch", kind=TensorProto.INT32)]
    return graph(nodes, inputs, [value("y"), value("hn")], tensors)


def scan() -> Any:
    """A plain cell written out in a Scan."""
    body = graph(
        [
            ("MatMul", "xt W", "a", {}), ("MatMul", "h R", "r", {}), ("Add", "a r", "s", {}), ("Tanh", "s", "hn", {}),
            ("Mul", "hn hn", "q", {}),
        ],
        [value("h", 2, 4), value("xt", 2, 3)],
        [value("hn", 2, 4), value("q", 2, 4)],
    )  # fmt: skip
    node: Node = ("Scan", "h0 x", "h1 y", {"body": body, "num_scan_inputs": 1})
    tensors = {"h0": normal(2, 4), "W": normal(3, 4), "R": normal(4, 4)}
    return graph([node], [value("x", "time", 2, 3)], [value("h1"), value("y")], tensors)


def loop() -> Any:
    """A loop with a counter, a state and a condition, and a branch behind it."""
    body = graph(
        [
            ("Gather", "x i", "xt", {"axis": 0}),
            ("Add", "a xt", "b", {}), ("Sigmoid", "b", "c", {}), ("Less", "i most", "on", {}), ("Mul", "c c", "d", {}),
        ],
        [value("i", kind=INT64), value("going", kind=BOOL), value("a", 1, 3)],
        [value("on", kind=BOOL), value("c"), value("d")],
    )  # fmt: skip
    body.input[0].type.tensor_type.shape.SetInParent()
    body.input[1].type.tensor_type.shape.SetInParent()
    yes = graph([("Neg", "last", "n", {})], [], [value("n")])
    no = graph([("Abs", "last", "m", {})], [], [value("m")])
    nodes: list[Node] = [
        ("Shape", "x", "s", {}), ("Gather", "s zero", "trips", {}),
        ("Loop", "trips true a0", "last all", {"body": body}),
        ("ReduceMax", "all", "top", {"keepdims": 0}), ("Greater", "top half", "which", {}),
        ("If", "which", "y", {"then_branch": yes, "else_branch": no}),
    ]  # fmt: skip
    tensors = {
        "zero": np.array(0), "true": np.array(True), "a0": normal(1, 3), "most": np.array(6),
        "half": np.array(0.5, np.float32),
    }  # fmt: skip
    return graph(nodes, [value("x", 4, 1, 3)], [value("y"), value("all")], tensors)


def images() -> Any:
    """Convolutions, pooling, padding and cuts before a layer."""
    nodes: list[Node] = [
        ("Pad", "x pads", "p", {"mode": "constant"}),
        ("Conv", "p K k", "c", {"kernel_shape": [3], "strides": [2], "dilations": [1], "group": 1, "pads": [0, 1]}),
        ("BatchNormalization", "c g b m v", "n", {"epsilon": 1e-5}),
        ("LeakyRelu", "n", "r", {"alpha": 0.1}),
        ("MaxPool", "r", "q", {"kernel_shape": [2], "strides": [1]}),
        ("ConvTranspose", "q D", "d", {"strides": [2], "kernel_shape": [2]}),
        ("Split", "d parts", "d0 d1", {"axis": 1}),
        ("Mul", "d0 d1", "e", {}),
        ("Concat", "e d0", "f", {"axis": 1}),
        ("Slice", "f starts ends axes steps", "h", {}),
        ("Transpose", "h", "t", {"perm": [2, 0, 1]}),
        ("RNN", "t W R", "y0 y", {"hidden_size": 4, "activations": ["Relu"], "clip": 3.0}),
    ]
    tensors = {
        "pads": ints(0, 0, 2, 0, 0, 0), "K": normal(4, 3, 3), "k": normal(4), "g": normal(4), "b": normal(4),
        "m": normal(4), "v": abs(normal(4)), "D": normal(4, 4, 2), "parts": ints(2, 2), "starts": ints(1),
        "ends": ints(2**63 - 1), "axes": ints(2), "steps": ints(1), "W": normal(1, 4, 4), "R": normal(1, 4, 4),
    }  # fmt: skip
    return graph(nodes, [value("x", 1, 3, "time")], [value("y0"), value("y")], tensors)


def whole_numbers() -> Any:
    """Quantised weights and products around a layer."""
    nodes: list[Node] = [
        ("DynamicQuantizeLinear", "x", "q qs qz", {}),
        ("MatMulInteger", "q M qz", "i", {}),
        ("Cast", "i", "f", {"to": FLOAT}),
        ("Mul", "f qs", "s", {}),
        ("DequantizeLinear", "W8 ws wz", "W", {"axis": 1}),
        ("LSTM", "s W R", "y0 h", {"hidden_size": 4}),
        ("QuantizeLinear", "h ys yz", "hq", {}),
        ("DequantizeLinear", "hq ys yz", "y", {}),
    ]
    tensors = {
        "M": RNG.integers(-9, 9, (3, 3)).astype(np.int8), "W8": RNG.integers(-99, 99, (1, 16, 3)).astype(np.int8),
        "ws": abs(normal(16)) + 0.01, "wz": np.zeros(16, np.int8), "R": normal(1, 16, 4),
        "ys": np.array(0.02, np.float32), "yz": np.array(3, np.uint8),
    }  # fmt: skip
    return graph(nodes, [value("x", "time", 2, 3)], [value("y0"), value("y")], tensors)


def computed() -> Any:
    """Weights and states that the model computes, and shapes that it is given."""
    nodes: list[Node] = [
        ("Mul", "W0 scale", "W", {}),
        ("Reshape", "R0 target", "R", {}),
        ("ReduceSum", "x axes", "sum", {"keepdims": 1}),
        ("Range", "zero three one", "r", {}),
        ("Cast", "r", "rf", {"to": 1}),
        ("Add", "x rf", "z", {}),
        ("LSTM", "z W R - - h0 c0", "y0 hn cn", {"hidden_size": 4}),
        ("Where", "mask hn cn", "y1", {}),
        ("TopK", "y1 k", "y2 id", {"axis": -1}),
        ("OneHot", "id depth two", "y3", {"axis": -1}),
        ("CumSum", "y3 zero", "y", {}),
    ]
    tensors = {
        "R0": normal(16, 4), "target": ints(1, 16, -1), "axes": ints(2), "W0": normal(1, 16, 3),
        "zero": np.array(0), "three": np.array(3), "one": np.array(1), "k": ints(2), "depth": ints(4),
        "two": np.array([0, 1], np.float32), "mask": np.array([True, False, True, True]),
    }  # fmt: skip
    inputs = [value("x", "time", 2, 3), value("scale", 1), value("h0", 1, 2, 4), value("c0", 1, 2, 4)]
    return graph(nodes, inputs, [value("y"), value("sum")], tensors)


def unrolled() -> Any:
    """Three steps of an LSTM written out, its gates in one product."""
    nodes: list[Node] = []
    h, c = "h0", "c0"
    for t in range(3):
        nodes += [
            ("Gather", f"x t{t}", f"x{t}", {"axis": 0}),
            ("Gemm", f"x{t} W b", f"a{t}", {"transB": 1}), ("Gemm", f"{h} R", f"r{t}", {"transB": 1}),
            ("Add", f"a{t} r{t}", f"z{t}", {}), ("Split", f"z{t}", f"i{t} f{t} g{t} o{t}", {"axis": 1}),
            ("Sigmoid", f"i{t}", f"si{t}", {}), ("Sigmoid", f"f{t}", f"sf{t}", {}),
            ("Tanh", f"g{t}", f"tg{t}", {}), ("Sigmoid", f"o{t}", f"so{t}", {}),
            ("Mul", f"sf{t} {c}", f"k{t}", {}), ("Mul", f"si{t} tg{t}", f"j{t}", {}),
            ("Add", f"k{t} j{t}", f"c{t + 1}", {}), ("Tanh", f"c{t + 1}", f"tc{t}", {}),
            ("Mul", f"so{t} tc{t}", f"h{t + 1}", {}), ("Unsqueeze", f"h{t + 1} zero", f"u{t}", {}),
        ]  # fmt: skip
        h, c = f"h{t + 1}", f"c{t + 1}"
    nodes.append(("Concat", "u0 u1 u2", "y", {"axis": 0}))
    tensors = {f"t{t}": np.array(t) for t in range(3)} | {
        "W": normal(16, 3), "R": normal(16, 4), "b": normal(16), "h0": np.zeros((2, 4), np.float32),
        "c0": np.zeros((2, 4), np.float32), "zero": ints(0),
    }  # fmt: skip
    return graph(nodes, [value("x", 3, 2, 3)], [value("y"), value("h3")], tensors)


ONNX: Sequence[Callable[[], Any]] = (lstm, gru, scan, loop, images, whole_numbers, computed, unrolled)


def _write_onnx(folder: Path) -> None:
    for make in ONNX:
        opset = 17 if make is gru else 21
        proto = helper.make_model(make(), opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.save(proto, folder / f"{make.__name__}.onnx")
        fastlstm.load(folder / f"{make.__name__}.onnx").save(folder / f"{make.__name__}.fastlstm")


class Tagger(nn.Module):
    """A small model in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rec, self.fc = nn.Linear(3, 4), nn.LSTM(4, 4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return tags for [batch, time, 3]."""
        y, _ = self.rec(torch.relu(self.first(x)))
        return torch.softmax(self.fc(y[:, -1]), -1)


class Loops(nn.Module):
    """A cell in a loop, to be scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the states for [time, batch, 3]."""
        h = torch.zeros(x.size(1), 4)
        states: list[torch.Tensor] = []
        for t in range(x.size(0)):
            h = self.cell(x[t], h)
            states.append(h)
        return torch.stack(states)


def _write_torch(folder: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = Tagger().eval()
    torch.save(model.state_dict(), folder / "state.pt")
    save_file(nn.LSTM(3, 4, 2, bidirectional=True).state_dict(), folder / "state.safetensors")
    torch.jit.script(model).save(folder / "tagger.torchscript")
    torch.jit.script(Loops().eval()).save(folder / "loops.torchscript")
    torch.jit.trace(model, torch.zeros(2, 5, 3)).save(folder / "traced.torchscript")
    torch.export.save(torch.export.export(model, (torch.zeros(2, 5, 3),)), folder / "tagger.pt2")


def _write_keras(folder: Path) -> None:
    from keras_files import layer, sequential, write_h5, write_keras

    model = sequential(
        (None, 3),
        layer("LSTM", "lstm", units=4, return_sequences=True, activation="tanh", recurrent_activation="sigmoid"),
        layer("GRU", "gru", units=4, return_sequences=True, reset_after=True),
        layer("Conv1D", "conv", filters=4, kernel_size=[2], strides=[1], padding="causal"),
        layer("Dense", "dense", units=2, activation="softmax"),
    )
    arrays = {
        "lstm": [normal(3, 16), normal(4, 16), normal(16)], "gru": [normal(4, 12), normal(4, 12), normal(2, 12)],
        "conv": [normal(2, 4, 4), normal(4)], "dense": [normal(4, 2), normal(2)],
    }  # fmt: skip
    owners = {"lstm": "layers/lstm/cell", "gru": "layers/gru/cell", "conv": "layers/conv1d", "dense": "layers/dense"}
    write_keras(folder / "stack.keras", model, {owners[name]: held for name, held in arrays.items()})
    named: dict[str, dict[str, np.ndarray]] = {}
    for name, held in arrays.items():
        words = ("kernel", "recurrent_kernel", "bias") if len(held) == 3 else ("kernel", "bias")
        named[name] = {f"{name}/{word}:0": array for word, array in zip(words, held, strict=True)}
    write_h5(folder / "stack.h5", model, {"x": {}, **named})


def _write_audio(folder: Path) -> None:
    recurrent = {
        "type": "lstm", "activation": "", "shape": [None, None, 4],
        "weights": [normal(1, 16).tolist(), normal(4, 16).tolist(), normal(16).tolist()],
    }  # fmt: skip
    head = {"type": "dense", "activation": "tanh", "shape": [None, None, 1], "weights": [normal(4, 1).tolist(), [0.1]]}
    (folder / "amp.json").write_text(json.dumps({"in_shape": [None, None, 1], "layers": [recurrent, head]}))
    config = {"input_size": 1, "hidden_size": 3, "num_layers": 1}
    weights = normal(12 * 4 + 12 + 6 + 4).tolist()
    content = {"version": "0.5.4", "architecture": "LSTM", "config": config, "weights": weights, "sample_rate": 48000}
    (folder / "amp.nam").write_text(json.dumps(content))


def write_all(folder: Path) -> None:
    """Write a model of every kind into a folder, check that each one loads, and add the corpus."""
    _write_onnx(folder)
    _write_torch(folder)
    _write_keras(folder)
    _write_audio(folder)
    for path in sorted(folder.iterdir()):
        fastlstm.load(path)
    for path in sorted(CORPUS.iterdir()):
        shutil.copy(path, folder / f"corpus-{path.name}")

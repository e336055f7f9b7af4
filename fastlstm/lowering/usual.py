"""The kernels that usual models need on a target, found by planning such models for it without running anything.

Kernels of recurrent layers and of the rows around them are taken from the plans of small graphs. Kernels that tapes
call depend on little more than the target's vectors, and are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs, TensorSpec, default_activations
from fastlstm.kernels.compiler import Kernel
from fastlstm.lowering.plan import make_plan
from fastlstm.lowering.segments.rows import BINARY, UNARY
from fastlstm.lowering.segments.small import MOST_UNITS
from fastlstm.runtime.segment import Segment
from fastlstm.target import Target

__all__ = ["PLAIN", "planned_kernels", "usual_kernels"]

L1_BYTES = (32 << 10, 48 << 10, 64 << 10, 128 << 10)
"""Sizes of L1 caches: how layers with one row are divided depends on whether their weights fit."""

MASKED = (16, 32, 50, 64, 100, 128)  # units of layers after Masking or a masked embedding
RELU = (32, 50, 64, 100, 128)  # units of LSTMs with that activation, as in Keras tutorials
BITS = {16: (np.int16, np.int16), 8: (np.int16, np.int8)}  # types of input and recurrent weights: see `quantise`
EPSILONS = (1e-5, 1e-3, 1e-6)  # of normalisations: in PyTorch, in Keras, and in transformers

PLAIN = (
    "drive.drive", "gather.call", "gather.check", "movement.embed", "movement.last", "movement.move",
    "nested.nested", "rounds.advance", "rounds.repeat", "rounds.verify", "shares.following", "split.split",
    "team.dismiss", "team.follow", "team.lead", "integers.argmax", "integers.elementwise", "integers.gather",
    "integers.mask_codes", "integers.running", "integers.where", "arrays.logarithm", "profile.mark",
)  # fmt: skip
"""Kernels without compile-time constants: running programs, teams, integers."""


def usual_kernels(target: Target) -> list[Kernel]:
    """Return the kernels of usual models on a target, always in the same order."""
    found = {Kernel(name) for name in PLAIN}
    found.update(Kernel("entry.call", (plain,)) for plain in (True, False))
    found.update(_of_tapes(target))
    for graph in _graphs(target.lanes):
        for size in L1_BYTES:
            found.update(planned_kernels(graph, replace(target, l1_bytes=size)))
    return sorted(found, key=repr)


def planned_kernels(graph: Graph, target: Target) -> set[Kernel]:
    """Return the kernels of a graph's segments, for one batch row and for more."""
    segments = [part for part in make_plan(graph, target).parts if isinstance(part, Segment)]
    steps = [step for part in segments for step in part.program.instructions]
    steps += [other for step in steps for other in step.alone or ()]
    return {Kernel(step.kernel, step.constants) for step in steps}


def _graphs(lanes: int) -> Iterator[Graph]:
    for op in RECURRENT_OPS:
        for units in range(1, MOST_UNITS + lanes + 1):
            yield _layer(op, units, 1)
            yield _layer(op, units, 8)
        yield _layer(op, 128, 8, directions=2)
        for units in MASKED:
            yield _layer(op, units, 8, masked=True)
        for bits in BITS:
            yield _layer(op, 128, 64, bits=bits)
    yield _layer("GRU", 128, 8, reset_after=False)
    yield _layer("LSTM", 128, 8, projection=64)
    for units in RELU:
        yield _layer("LSTM", units, 8, activations=("Sigmoid", "Relu", "Relu"))
        yield _layer("RNN", units, 8, activations=("Relu",))
    for columns in range(1, 4 * lanes + 1, lanes):
        yield _behind(Node("Dense", ("y", "w"), ("z",), {}), {"w": np.zeros((32, columns), np.float32)})
        narrow = {"w": np.zeros((32, columns), np.int16), "s": np.ones(columns, np.float32)}
        yield _behind(Node("Dense", ("y", "w", "", "s"), ("z",), {}), narrow)
    for name in UNARY:
        yield _behind(Node(name, ("y",), ("z",), {}))
    for name in BINARY:
        yield _behind(Node(name, ("y", "w"), ("z",), {}), {"w": np.ones(32, np.float32)})
    for name in ("Softmax", "LogSoftmax"):
        yield _behind(Node(name, ("y",), ("z",), {"axis": -1}))
    for epsilon in _as_files_hold(*EPSILONS):
        yield _behind(
            Node("LayerNormalization", ("y", "w"), ("z",), {"axis": -1, "epsilon": epsilon}),
            {"w": np.ones(32, np.float32)},
        )


def _layer(
    op: str,
    units: int,
    inputs: int,
    *,
    directions: int = 1,
    masked: bool = False,
    bits: int = 32,
    projection: int = 0,
    reset_after: bool = True,
    activations: tuple[str, ...] = (),
) -> Graph:
    """Return the graph of one recurrent layer with zero weights."""
    gates, size = RECURRENT_OPS[op], projection or units
    w_ih, w_hh = BITS.get(bits, (np.float32, np.float32))
    rows = (directions, gates * units)
    constants: dict[str, Any] = {"w_ih": np.zeros((*rows, inputs), w_ih), "w_hh": np.zeros((*rows, size), w_hh)}
    if bits != 32:
        constants.update({"s_ih": np.ones(rows, np.float32), "s_hh": np.ones(rows, np.float32)})
    if projection:
        constants["w_hr"] = np.zeros((directions, projection, units), np.float32)
    read = RecurrentInputs("x", "w_ih", "w_hh", mask="mask" if masked else "", w_hr="w_hr" if projection else "")
    if bits != 32:
        read = read._replace(w_ih_scale="s_ih", w_hh_scale="s_hh")
    attrs: dict[str, Any] = {
        "hidden_size": units,
        "directions": ["forward", "reverse"][:directions],
        "activations": [[[name, None, None] for name in activations]] * directions
        if activations
        else default_activations(op, directions),
        "clip": None,
        **({"input_forget": 0} if op == "LSTM" else {}),
        **({"reset_after": int(reset_after)} if op == "GRU" else {}),
    }
    node = Node(op, read.given(), ("y",), attrs)
    given = [TensorSpec("x", ("T", "B", inputs)), *([TensorSpec("mask", ("T", "B"), "bool")] if masked else [])]
    return Graph(tuple(given), (TensorSpec("y", ("T", "B", directions * size)),), (node,), constants)


def _behind(node: Node, constants: Mapping[str, Any] | None = None) -> Graph:
    """Return the graph of a recurrent layer of 32 units followed by one node."""
    graph = _layer("RNN", 32, 8)
    return graph.replace(
        nodes=(*graph.nodes, node),
        outputs=(TensorSpec("z", ("T", "B", "F")),),
        constants={**graph.constants, **(constants or {})},
    )


def _as_files_hold(*numbers: float) -> Iterator[float]:
    """Return numbers as Python writes them, and rounded to float32 as ONNX files hold them."""
    for number in numbers:
        yield number
        yield float(np.float32(number))


def _of_tapes(target: Target) -> Iterator[Kernel]:
    """Return the kernels that `fastlstm.lowering.tapes` and pools of streams call."""
    lanes, sums = target.lanes, target.max_sums
    for name in ("arrays.copy", "arrays.fill", "arrays.pad", "rounds.move", "gather.gather", "gather.scatter"):
        yield Kernel(name, (lanes,))
    for name in ("Sigmoid", "Tanh", "Relu", "Exp", "Erf", "Softplus", "Sqrt", "Neg", "Abs", "Reciprocal", "Floor",
                 "Round", "HardSwish", "Gelu", "GeluTanh"):  # fmt: skip
        yield Kernel("arrays.unary", (lanes, name, None, None))
    for slope in _as_files_hold(0.01, 0.1, 0.2):
        yield Kernel("arrays.unary", (lanes, "LeakyRelu", slope, None))
    yield Kernel("arrays.unary", (lanes, "Elu", 1.0, None))
    yield Kernel("arrays.unary", (lanes, "Swish", 1.0, None))
    yield Kernel("arrays.unary", (lanes, "HardSigmoid", 0.2, 0.5))
    yield Kernel("arrays.unary", (lanes, "Clip", 0.0, 6.0))
    for name in (*BINARY, "PRelu"):
        yield Kernel("arrays.binary", (lanes, name))
    yield Kernel("arrays.binary", (lanes, "Div", ("Round", None, None, 0)))
    for vectors in range(1, 5):
        yield Kernel("contraction.pack", (lanes, vectors))
        for name in ("contraction.matmul", "convolution.by_position", "convolution.by_channel"):
            yield Kernel(name, (lanes, vectors, sums))
    for logarithm in (False, True):
        yield Kernel("lines.softmax", (lanes, logarithm))
    for epsilon in _as_files_hold(*EPSILONS):
        yield Kernel("lines.layer_norm", (lanes, epsilon))
    for name in ("Sum", "Mean", "Max", "SumSquare"):
        yield Kernel("lines.reduce", (lanes, name))
    for name in ("Max", "Mean"):
        yield Kernel("pooling.pool", (lanes, name))

"""Aten's recurrent operations: whole stacks of layers, and cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fastlstm.converters.common.builder import Direction
from fastlstm.converters.torch.aten.graph import Arguments, AtenGraph, Handler
from fastlstm.converters.torch.aten.schemas import by_overload
from fastlstm.converters.torch.program import Tensor
from fastlstm.errors import UnsupportedError

__all__ = ["HANDLERS"]


def _stack(op: str, activation: str = "Tanh") -> Handler:
    """``lstm.input``, ``gru.input`` …: all layers and directions in one call."""

    def handler(graph: AtenGraph, c: Arguments) -> list[str]:
        if c.flag("train") and c.number("dropout", 0.0) > 0:
            raise c.unsupported("the program was exported in training mode; call model.eval() before exporting")
        if c.rank("input") != 3:
            raise c.unsupported(f"its input should have 3 axes; got {c.rank('input')}")
        initial = _states(c, op)
        depth, both = c.integer("num_layers"), c.flag("bidirectional")
        layers = list(_directions(graph, c, both, projected=_projected(graph, initial)))
        if len(layers) != depth or not layers:
            raise c.unsupported(f"its parameters are those of {len(layers)} layers; expected {depth}")
        first, builder = c.flag("batch_first"), graph.builder
        value = builder.swap_time_and_batch(c.value("input")) if first else c.value("input")
        lengths = c.value("lengths")  # of packed sequences
        name = c.tensors("params")[0].name.removesuffix("_weight_ih_l0").removeprefix("p_")
        finals: list[list[str]] = []
        for number, directions in enumerate(layers):
            states = [_layer_state(graph, state, number, depth, 1 + both) for state in initial]
            h_0, c_0 = [*states, ""][:2]
            value, *final = builder.recurrent(
                op,
                value,
                directions,
                name=f"{name}.l{number}",
                activation=activation,
                lengths=lengths,
                h_0=h_0,
                c_0=c_0,
            )
            finals.append(final)
        output = builder.swap_time_and_batch(value) if first else value
        joined = [s[0] if depth == 1 else builder.node("Concat", *s, axis=0) for s in zip(*finals, strict=True)]
        return [output, *joined]

    return handler


def _states(c: Arguments, op: str) -> list[Tensor]:
    """Return the initial states: two in a list of an LSTM, one of others."""
    states = c.tensors("hx") if op == "LSTM" else [c.tensor("hx")]
    c.expect(len(states) == 1 + (op == "LSTM"), f"it has {len(states)} initial states")
    return states


def _projected(graph: AtenGraph, initial: Sequence[Tensor]) -> bool:
    """An LSTM has a projection if its two states are of different sizes."""
    return len({graph.meta(state.name).shape[-1:] for state in initial}) == 2


def _directions(graph: AtenGraph, c: Arguments, both: bool, projected: bool) -> Iterator[list[Direction]]:
    """Yield the directions of each layer from the flat list of parameters."""
    biases, params = c.flag("has_biases"), c.tensors("params")
    size, each = 2 + 2 * biases + projected, 1 + both
    if len(params) % (size * each):
        raise c.unsupported(f"its {len(params)} parameters do not fall into layers of {size * each}")
    groups = [_direction(graph, c, params[i : i + size], biases) for i in range(0, len(params), size)]
    for start in range(0, len(groups), each):
        yield groups[start : start + each]


def _direction(graph: AtenGraph, c: Arguments, params: Sequence[Tensor | None], biases: bool) -> Direction:
    arrays = [graph.constant(param) for param in params]
    if any(array is None and param is not None for array, param in zip(arrays, params, strict=True)):
        raise c.unsupported("its weights are calculated when it runs; supported: parameters")
    w_ih, w_hh, *rest = arrays
    if w_ih is None or w_hh is None:
        raise c.unsupported("it lacks weights")
    b_ih, b_hh = rest[:2] if biases else (None, None)
    w_hr = rest[2 * biases] if len(rest) > 2 * biases else None
    return Direction(w_ih, w_hh, b_ih, b_hh, w_hr)


def _layer_state(graph: AtenGraph, state: Tensor, layer: int, depth: int, directions: int) -> str:
    """Return the initial state of one layer out of that of all, ``""`` if it is zero."""
    value = graph.value(state)
    constant = graph.constant(state)
    if value in graph.zeros or (constant is not None and not np.any(constant)):
        return ""
    if depth == 1:
        return value
    bounds = [graph.ints([n]) for n in (layer * directions, (layer + 1) * directions, 0)]
    return graph.builder.node("Slice", value, *bounds)


def _cell(op: str, activation: str = "Tanh") -> Handler:
    """``lstm_cell``, ``gru_cell`` …: a sequence of one step."""

    def handler(graph: AtenGraph, c: Arguments) -> list[str]:
        builder, axis = graph.builder, graph.ints([0])
        initial = _states(c, op)
        params = [None if c.get(name) is None else c.tensor(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
        direction = _direction(graph, c, params, biases=True)
        if c.rank("input") != 2:
            raise UnsupportedError(f"{c.label}: its input should be [batch, features]; got {c.rank('input')} axes.")
        states = [
            "" if (value := graph.value(state)) in graph.zeros else builder.node("Unsqueeze", value, axis)
            for state in initial
        ]
        h_0, c_0 = [*states, ""][:2]
        step = builder.node("Unsqueeze", c.value("input"), axis)
        name = c.tensor("w_ih").name.removesuffix("_weight_ih").removeprefix("p_")
        if graph.depth:
            values = [graph.value(state) for state in initial]
            return _written_out(graph, op, activation, c.value("input"), values, direction)
        _, *final = builder.recurrent(op, step, [direction], name=name, activation=activation, h_0=h_0, c_0=c_0)
        return [builder.node("Squeeze", value, axis) for value in final]

    return handler


def _written_out(
    graph: AtenGraph, op: str, activation: str, x: str, states: Sequence[str], direction: Direction
) -> list[str]:
    """One step inside a loop, in the operations that loops of recurrent cells are recognised by."""
    builder = graph.builder
    direction.check(op, f"a {op} cell in a loop")
    h = states[0]
    inner = builder.dense(x, direction.w_ih, direction.b_ih, "input_gates")
    recurrent = builder.dense(h, direction.w_hh, direction.b_hh, "recurrent_gates")
    if op == "RNN":
        return [builder.node(activation, builder.node("Add", inner, recurrent))]
    if op == "LSTM":
        gates = builder.node("Add", inner, recurrent)
        i, f, g, o = builder.nodes_out("Split", [gates], ["i", "f", "g", "o"], axis=-1, num_outputs=4)
        i, f, g, o = (builder.node("Tanh" if gate is g else "Sigmoid", gate) for gate in (i, f, g, o))
        c = builder.node("Add", builder.node("Mul", f, states[1]), builder.node("Mul", i, g))
        return [builder.node("Mul", o, builder.node("Tanh", c)), c]
    parts = [builder.nodes_out("Split", [v], ["r", "z", "n"], axis=-1, num_outputs=3) for v in (inner, recurrent)]
    r, z = (builder.node("Sigmoid", builder.node("Add", parts[0][k], parts[1][k])) for k in (0, 1))
    n = builder.node("Tanh", builder.node("Add", parts[0][2], builder.node("Mul", r, parts[1][2])))
    left = builder.node("Mul", builder.node("Sub", graph.scalar(1, "float32"), z), n)
    return [builder.node("Add", left, builder.node("Mul", z, h))]


def _trim(graph: AtenGraph, c: Arguments) -> str:
    """Padded sequences up to the longest of them."""
    longest = graph.builder.node("ReduceMax", graph.operand(c.get("lengths"), "int64"), keepdims=1)
    return graph.builder.node("Slice", c.value("self"), graph.ints([0]), longest, graph.ints([c.integer("dim")]))


HANDLERS: dict[str, Handler] = {
    "packed.trim": _trim,
    **by_overload(
        {
            "lstm": _stack("LSTM"),
            "gru": _stack("GRU"),
            "rnn_tanh": _stack("RNN"),
            "rnn_relu": _stack("RNN", "Relu"),
            "lstm_cell": _cell("LSTM"),
            "gru_cell": _cell("GRU"),
            "rnn_tanh_cell": _cell("RNN"),
            "rnn_relu_cell": _cell("RNN", "Relu"),
        }
    ),
}

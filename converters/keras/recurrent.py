"""Keras's recurrent layers as canonical recurrent nodes.

Keras keeps kernel [I, G*H] and recurrent kernel [H, G*H], with gates i, f, c, o (LSTM) or z, r, h (GRU) and
``h' = z * h + (1 - z) * hh``, which is the graph's GRU with its gates in another order. A layer that goes
backwards gives its outputs in the order in which it made them; the graph's reverse direction gives them at
the time they belong to, so they are turned round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.converters.keras.activations import recurrent_activation
from fastlstm.converters.keras.layer import Kind, Layer
from fastlstm.converters.keras.tensor import Emitter, Tensor
from fastlstm.converters.keras.weights import Slot, inner_layers
from fastlstm.errors import FileFormatError, UnsupportedError, counted
from fastlstm.graph import RECURRENT_OPS, RecurrentInputs
from fastlstm.operators import dims
from fastlstm.operators.dims import Dim
from fastlstm.typing import Array

__all__ = ["KINDS"]

_OPS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}


@dataclass(frozen=True)
class _Cell:
    """One recurrent cell in the graph's layout.

    Attributes
    ----------
    op : "LSTM", "GRU" or "RNN"
    name : str
    w_ih : array [G*H, I]
    w_hh : array [G*H, H]
    bias : array [G*H] (GRU: [4*H]) or None
    activations : list of [name, alpha, beta]
    reset_after : int
        Of a GRU.
    """

    op: str
    name: str
    w_ih: Array
    w_hh: Array
    bias: Array | None
    activations: list[list[Any]]
    reset_after: int = 0

    @property
    def units(self) -> int:
        """The hidden size."""
        return int(self.w_hh.shape[1])

    @property
    def states(self) -> int:
        """The number of state tensors."""
        return 2 if self.op == "LSTM" else 1

    def pairs_with(self, other: _Cell) -> bool:
        """Return whether both cells can be the two directions of one node."""
        return (
            (self.op, self.units, self.reset_after) == (other.op, other.units, other.reset_after)
            and self.w_ih.shape == other.w_ih.shape
            and (self.bias is None) == (other.bias is None)
        )


@dataclass(frozen=True)
class _Options:
    """What a recurrent layer gives back, and how it runs."""

    return_sequences: bool
    return_state: bool
    go_backwards: bool
    zero_output_for_mask: bool


@dataclass(frozen=True)
class _Run:
    """The results of one direction: outputs in the order of time, the last one, and the final states."""

    sequence: Tensor
    last: Tensor
    states: list[Tensor]


def _read_options(layer: Layer) -> _Options:
    config = layer.config
    config.ignore("dropout", "recurrent_dropout", "unroll", "implementation", "use_cudnn")
    config.choice("time_major", [False], False)
    if config.flag("stateful"):
        layer.emit.note(
            f"The layer '{layer.name}' is stateful in Keras: here every run starts from zero, "
            "and a stream keeps the state."
        )
    return _Options(
        config.flag("return_sequences"),
        config.flag("return_state"),
        config.flag("go_backwards"),
        config.flag("zero_output_for_mask"),
    )


def _read_cell(layer: Layer, kind: str, features: int, owner: str = "cell") -> _Cell:
    """Return the cell of an LSTM, GRU or SimpleRNN layer (or of a cell class) whose input has `features`."""
    config, op = layer.config, _OPS[kind]
    G, H = RECURRENT_OPS[op], config.integer("units")
    config.ignore("unit_forget_bias", "dropout", "recurrent_dropout", "implementation", "unroll")
    names = [("activation", "tanh")]
    if op != "RNN":
        names = [("recurrent_activation", "sigmoid"), *names]
    activations = [recurrent_activation(config.get(key, default), layer.label, layer.major) for key, default in names]
    if op == "LSTM":
        activations.append(activations[-1])
    reset_after = int(config.flag("reset_after", layer.major == 3)) if op == "GRU" else 0
    kernel = layer.weight("kernel", (features, G * H), owner)
    recurrent = layer.weight("recurrent_kernel", (H, G * H), owner)
    bias = None
    if config.flag("use_bias", True):
        bias = layer.weight("bias", (2, G * H) if reset_after else (G * H,), owner)
    return _cell(op, layer.name, kernel, recurrent, bias, activations, reset_after)


def _cell(
    op: str, name: str, kernel: Array, recurrent: Array, bias: Array | None, activations: Any, reset_after: int
) -> _Cell:
    """Return a cell from Keras's arrays; `bias` is [G*H], or [2, 3*H] of a GRU with reset_after."""
    if op == "GRU":
        H = len(recurrent)
        order = np.r_[H : 2 * H, :H, 2 * H : 3 * H]  # z, r, h -> r, z, n
        kernel, recurrent = kernel[:, order], recurrent[:, order]
        if bias is not None:
            inner, outer = (bias[0], bias[1]) if bias.ndim == 2 else (bias, np.zeros_like(bias))
            inner, outer = inner[order], outer[order]
            bias = np.concatenate([(inner + outer)[: 2 * H], inner[2 * H :], outer[2 * H :]])
    return _Cell(op, name, kernel.T, recurrent.T, bias, activations, reset_after)


def _emit(
    emit: Emitter,
    cells: Sequence[_Cell],
    directions: Sequence[str],
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Sequence[Tensor]],
) -> list[_Run]:
    """Add one recurrent node, one direction a cell, and return what each direction gives.

    Parameters
    ----------
    x : Tensor
        [batch, time, features].
    mask : Tensor or None
        [batch, time].
    states : sequence of sequence of Tensor
        Of each direction its initial states [batch, units], or nothing.
    """
    first, D = cells[0], len(cells)
    H, name = first.units, first.name
    batch, time = x.shape[:2]

    def stacked(key: str, arrays: list[Array]) -> str:
        return emit.constant(np.ascontiguousarray(np.stack(arrays)), f"{name}.{key}")

    bias = "" if first.bias is None else stacked("bias", [c.bias for c in cells if c.bias is not None])
    w_ih, w_hh = stacked("w_ih", [c.w_ih for c in cells]), stacked("w_hh", [c.w_hh for c in cells])
    inputs = RecurrentInputs(
        emit.transpose(emit.floats(x), [1, 0, 2]).name, w_ih, w_hh, bias,
        mask="" if mask is None else emit.transpose(mask, [1, 0]).name,
    )  # fmt: skip
    if any(states):
        for k, state in enumerate(("h_0", "c_0")[: first.states]):
            parts = [emit.unsqueeze(emit.floats(direction[k]), 0) for direction in states]
            inputs = inputs._replace(**{state: emit.concat(parts, 0, name).name})
    attrs: dict[str, Any] = {
        "hidden_size": H,
        "directions": list(directions),
        "activations": [c.activations for c in cells],
        "clip": None,
    }
    if first.op == "LSTM":
        attrs["input_forget"] = 0
    if first.op == "GRU":
        attrs["reset_after"] = first.reset_after
    names = [f"{name}.y", f"{name}.h_n", f"{name}.c_n"][: 1 + first.states]
    y, *finals = emit.outputs(first.op, inputs.given(), names, **attrs)
    whole = emit.transpose(Tensor(y, (time, batch, D * H)), [1, 0, 2])
    final = [Tensor(value, (D, batch, H)) for value in finals]
    return [_run(emit, whole, final, d, D, direction, mask is not None) for d, direction in enumerate(directions)]


def _run(
    emit: Emitter, whole: Tensor, final: Sequence[Tensor], d: int, count: int, direction: str, masked: bool
) -> _Run:
    """Return the results of direction `d` out of `count`."""
    states = [emit.pick(value, d, 0) for value in final]
    sequence = whole
    if count > 1:
        H = int(states[0].shape[-1])
        parts = [emit.ints([d * H]), emit.ints([(d + 1) * H]), emit.ints([2])]
        sequence = emit.node("Slice", whole, *parts, shape=(*whole.shape[:2], H))
    if not masked:
        return _Run(sequence, states[0], states)
    # With a mask the last output may be an older one, and it is zero (not h_0) if no step is valid.
    return _Run(sequence, emit.pick(sequence, -1 if direction == "forward" else 0, 1), states)


class _Direction:
    """One recurrent layer (LSTM, GRU, SimpleRNN, RNN of cells) run in one direction."""

    def __init__(self, layer: Layer, features: int) -> None:
        self.layer = layer
        self.options = _read_options(layer)
        self.cells = _read_cells(layer, features)
        layer.config.finish()

    @property
    def direction(self) -> str:
        """As the graph calls it."""
        return "reverse" if self.options.go_backwards else "forward"

    @property
    def state_count(self) -> int:
        return sum(cell.states for cell in self.cells)

    def run(self, x: Tensor, mask: Tensor | None, initial: Sequence[Tensor]) -> _Run:
        """Run all cells, each on the outputs of the one before."""
        states: list[Tensor] = []
        given = list(initial)
        for cell in self.cells:
            own, given = given[: cell.states], given[cell.states :]
            (run,) = _emit(self.layer.emit, [cell], [self.direction], x, mask, [own])
            x, states = run.sequence, [*states, *run.states]
        return _Run(run.sequence, run.last, states)

    def outputs(self, run: _Run, mask: Tensor | None, zero: bool) -> Tensor:
        """Return the sequence (in the order of time) or the last output, zero where asked and masked."""
        emit = self.layer.emit
        if not zero or mask is None:
            return run.sequence if self.options.return_sequences else run.last
        padded = emit.where(emit.unsqueeze(mask, -1), run.sequence, 0.0, self.layer.label)
        if self.options.return_sequences:
            return padded
        return emit.pick(padded, 0 if self.options.go_backwards else -1, 1)


def _read_cells(layer: Layer, features: int) -> list[_Cell]:
    if layer.kind in _OPS:
        return [_read_cell(layer, layer.kind, features)]
    if layer.kind in _CUDNN:
        return [_read_cudnn(layer, features)]
    data = layer.config.get("cell")
    cell = layer.inner(data, "cell")
    if cell.kind != "StackedRNNCells":
        cells = [(cell, "cell")]
    else:
        cell.config.choice("reverse_state_order", [False], False)
        cell.config.ignore("cells")
        cell.config.finish()
        inner = inner_layers("StackedRNNCells", data["config"], layer.label)
        cells = [(cell.inner(each, path), path) for path, each in inner]
    read: list[_Cell] = []
    for each, _ in cells:
        if each.kind not in _CELL_KINDS:
            raise UnsupportedError(
                f"{layer.label}: the cell class '{each.kind}' is not supported; "
                f"supported: {', '.join(_CELL_KINDS)} and StackedRNNCells."
            )
        read.append(_read_cell(each, _CELL_KINDS[each.kind], features, owner=""))
        each.config.finish()
        features = read[-1].units
    if not read:
        raise FileFormatError(f"{layer.label}: it has no cells.")
    return read


_CELL_KINDS = {"LSTMCell": "LSTM", "GRUCell": "GRU", "SimpleRNNCell": "SimpleRNN"}
_CUDNN = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}


def _read_cudnn(layer: Layer, features: int) -> _Cell:
    """Return the cell of a CuDNNLSTM or CuDNNGRU layer.

    Its kernels are stored gate by gate in cuDNN's own order of elements (the transposed matrix, reshaped),
    the recurrent kernels transposed, and it has one bias for each of the two products.
    """
    op = _CUDNN[layer.kind]
    G, H = RECURRENT_OPS[op], layer.config.integer("units")
    layer.config.ignore("unit_forget_bias")
    kernel = layer.weight("kernel", (features, G * H))
    recurrent = layer.weight("recurrent_kernel", (H, G * H))
    bias = layer.weight("bias", (2 * G * H,)).reshape(2, G * H)
    kernel = np.hstack([k.T.reshape(k.shape, order="F") for k in np.hsplit(kernel, G)])
    recurrent = np.hstack([k.T for k in np.hsplit(recurrent, G)])
    gates = [["Sigmoid", None, None], ["Tanh", None, None]]
    if op == "LSTM":
        return _cell(op, layer.name, kernel, recurrent, bias.sum(axis=0), [*gates, gates[1]], 0)
    return _cell(op, layer.name, kernel, recurrent, bias, gates, 1)


def _mask_of(layer: Layer, x: Tensor, with_states: bool) -> Tensor | None:
    """Return the mask that reaches the layer's call.

    Keras 3 hands the input's own mask to a layer only if the input is its only tensor: with an initial state
    the steps are not masked, although the mask travels on.
    """
    given = layer.arguments.tensor("mask")
    if given is not None:
        return given
    return None if with_states and layer.major == 3 else x.mask


def _split_inputs(layer: Layer, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the sequence and the initial states, which Keras 2 writes as further inputs."""
    if not inputs:
        raise UnsupportedError(f"{layer.label}: it is called without an input.")
    x = layer.rank(inputs[0], 3)
    return x, [*inputs[1:], *layer.arguments.tensors("initial_state")]


def _check_states(layer: Layer, states: Sequence[Tensor], expected: int) -> None:
    if len(states) not in (0, expected):
        wanted = counted(expected, "initial state")
        raise UnsupportedError(f"{layer.label}: expected {wanted} or none; got {len(states)}.")


def _recurrent(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x, states = _split_inputs(layer, inputs)
    mask = _mask_of(layer, x, bool(states))
    one = _Direction(layer, x.size(2, layer.label))
    _check_states(layer, states, one.state_count)
    run = one.run(x, mask, states)
    output = one.outputs(run, mask, one.options.zero_output_for_mask)
    if one.options.return_sequences:
        if one.options.go_backwards:
            output = layer.emit.flip(output, 1)
        # The mask travels on as it is, not turned round with the outputs: so does Keras's.
        output = output.with_mask(x.mask if mask is None else mask)
    return [output, *run.states] if one.options.return_state else [output]


def _bidirectional(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    config, emit = layer.config, layer.emit
    merge = config.choice("merge_mode", ["concat", "sum", "mul", "ave", None], "concat")
    x, states = _split_inputs(layer, inputs)
    mask = _mask_of(layer, x, bool(states))
    forward, backward = _read_pair(layer, x.size(2, layer.label))
    _check_states(layer, states, forward.state_count + backward.state_count)
    half = len(states) // 2
    runs = _run_pair(forward, backward, x, mask, states[:half], states[half:])
    sequences = forward.options.return_sequences
    y, y_rev = (
        direction.outputs(run, mask, zero=sequences) for direction, run in zip((forward, backward), runs, strict=True)
    )
    if sequences and forward.options.go_backwards:
        # Keras turns round the outputs of the backward layer, whichever that is, and never those of the other.
        y, y_rev = emit.flip(y, 1), emit.flip(y_rev, 1)
    out_mask = (x.mask if mask is None else mask) if sequences else None
    final = [*runs[0].states, *runs[1].states] if forward.options.return_state else []
    if merge is None:
        return [y.with_mask(out_mask), y_rev.with_mask(out_mask), *final]
    if merge == "concat":
        output = emit.concat([y, y_rev], -1, layer.label)
    else:
        output = emit.binary("Mul" if merge == "mul" else "Add", y, y_rev, layer.label)
        if merge == "ave":
            output = emit.binary("Mul", output, emit.number(0.5), layer.label)
    return [output.with_mask(out_mask), *final]


def _read_pair(layer: Layer, features: int) -> tuple[_Direction, _Direction]:
    """Return the two layers inside a Bidirectional; without a backward layer it is the other's mirror."""
    data, backward_data = layer.config.get("layer"), layer.config.get("backward_layer")
    forward_layer = layer.inner(data, "forward_layer")
    if forward_layer.kind not in _DIRECTIONAL:
        raise UnsupportedError(
            f"{layer.label}: a '{forward_layer.kind}' inside is not supported; supported: {', '.join(_DIRECTIONAL)}."
        )
    if backward_data is None:
        backward_data = {**data, "config": {**data["config"], "go_backwards": True}}
    backward_layer = layer.inner(backward_data, "backward_layer")
    if backward_layer.kind not in _DIRECTIONAL:
        raise UnsupportedError(f"{layer.label}: a '{backward_layer.kind}' inside is not supported.")
    forward, backward = _Direction(forward_layer, features), _Direction(backward_layer, features)
    if forward.options.go_backwards == backward.options.go_backwards:
        raise FileFormatError(f"{layer.label}: its two layers go the same way; one should go backwards.")
    if (forward.options.return_sequences, forward.options.return_state) != (
        backward.options.return_sequences,
        backward.options.return_state,
    ):
        raise FileFormatError(f"{layer.label}: its two layers return different things.")
    return forward, backward


def _run_pair(
    forward: _Direction,
    backward: _Direction,
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    states_rev: Sequence[Tensor],
) -> tuple[_Run, _Run]:
    """Run both directions, in one node where their shapes allow it."""
    if len(forward.cells) == len(backward.cells) == 1 and forward.cells[0].pairs_with(backward.cells[0]):
        cells = [forward.cells[0], backward.cells[0]]
        one, other = _emit(
            forward.layer.emit, cells, [forward.direction, backward.direction], x, mask, [states, states_rev]
        )
        return one, other
    return forward.run(x, mask, states), backward.run(x, mask, states_rev)


def _time_distributed(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the layer inside on every step: time joins the batch, and leaves it again afterwards."""
    emit, x = layer.emit, layer.one(inputs)
    data = layer.config.get("layer")
    mask = layer.arguments.tensor("mask") or x.mask
    if x.rank < 3:
        raise FileFormatError(f"{layer.label}: its input should have at least 3 dimensions.")
    if data.get("class_name") in _EVERY_STEP:
        results = layer.translator.call(data, f"{layer.owner}/layer", [x.with_mask(None)], layer.arguments)
        return [result.with_mask(mask) for result in results]
    batch, time, *rest = x.shape
    head = emit.sizes(x, 0, 2)
    merged = emit.node("Concat", emit.ints([-1]), emit.sizes(x, 2, x.rank), shape=(x.rank - 1,), dtype="int64", axis=0)
    steps: tuple[Dim, ...] = (dims.multiply(batch, time), *rest)
    flat = emit.node("Reshape", x, merged, shape=steps, dtype=x.dtype)
    results = layer.translator.call(data, f"{layer.owner}/layer", [flat], layer.arguments)
    outputs = []
    for y in results:
        parted = emit.node("Concat", head, emit.sizes(y, 1, y.rank), shape=(y.rank + 1,), dtype="int64", axis=0)
        whole = emit.node("Reshape", y, parted, shape=(batch, time, *y.shape[1:]), dtype=y.dtype)
        outputs.append(whole.with_mask(mask))
    return outputs


_EVERY_STEP = frozenset({"Dense", "Activation", "Dropout"})
"""Layers that do the same to every step already, whatever stands before the features."""


def _cell_slots(config: Mapping[str, Any], owner: str) -> list[Slot]:
    slots = [Slot("kernel", owner), Slot("recurrent_kernel", owner)]
    return [*slots, Slot("bias", owner)] if config.get("use_bias", True) else slots


def _in_cell(config: Mapping[str, Any], _major: int) -> list[Slot]:
    return _cell_slots(config, "cell")


def _own(config: Mapping[str, Any], _major: int) -> list[Slot]:
    return _cell_slots(config, "")


def _only_inside(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    raise UnsupportedError(f"{layer.label}: a cell is supported inside an RNN layer only, not as a layer.")


_DIRECTIONAL = ("LSTM", "GRU", "SimpleRNN", "RNN", "CuDNNLSTM", "CuDNNGRU")

_SHARED = (
    "return_sequences, return_state, go_backwards, initial_state, masks, stateful (a stream keeps the state), "
    "unroll, activations by name"
)

KINDS: Mapping[str, Kind] = {
    "LSTM": Kind(_recurrent, _in_cell, f"{_SHARED}, use_bias", "time_major"),
    "GRU": Kind(_recurrent, _in_cell, f"{_SHARED}, use_bias, reset_after both ways", "time_major"),
    "SimpleRNN": Kind(_recurrent, _in_cell, f"{_SHARED}, use_bias", "time_major"),
    "RNN": Kind(_recurrent, _own, f"{_SHARED}; one cell or a stack", "cells of one's own"),
    "CuDNNLSTM": Kind(_recurrent, _own, "return_sequences, return_state, go_backwards, initial_state"),
    "CuDNNGRU": Kind(_recurrent, _own, "return_sequences, return_state, go_backwards, initial_state"),
    "Bidirectional": Kind(
        _bidirectional, options="merge_mode concat, sum, mul, ave, None; backward_layer; masks; states"
    ),
    "TimeDistributed": Kind(_time_distributed, options="any supported layer or model inside"),
    "LSTMCell": Kind(_only_inside, _own, "inside RNN", "as a layer of its own"),
    "GRUCell": Kind(_only_inside, _own, "inside RNN", "as a layer of its own"),
    "SimpleRNNCell": Kind(_only_inside, _own, "inside RNN", "as a layer of its own"),
    "StackedRNNCells": Kind(_only_inside, options="inside RNN", refused="reverse_state_order"),
}
"""The recurrent layers, their cells, and the wrappers around them."""

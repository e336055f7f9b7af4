"""Putting a Graph together node by node, with names made for what the source does not name.

`recurrent` is where PyTorch's weights become the canonical recurrent node: PyTorch and the graph agree on
the order of the gates (i, f, g, o and r, z, n), so only the two biases are joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.errors import UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs, TensorSpec, default_activations, outer_values
from fastlstm.operators.validation import validated
from fastlstm.typing import Array

__all__ = ["Direction", "GraphBuilder"]


@dataclass(frozen=True)
class Direction:
    """One direction of one recurrent layer in PyTorch's layout.

    Attributes
    ----------
    w_ih : array [G*H, I]
    w_hh : array [G*H, P], P = H without a projection
    b_ih, b_hh : array [G*H] or None
    w_hr : array [P, H] or None
    """

    w_ih: Array
    w_hh: Array
    b_ih: Array | None = None
    b_hh: Array | None = None
    w_hr: Array | None = None

    def check(self, op: str, where: str) -> tuple[int, int, int]:
        """Return hidden size, input size and output size.

        Raises
        ------
        UnsupportedError
            If the arrays do not fit one another.
        """
        gates = RECURRENT_OPS[op]
        if self.w_ih.ndim != 2 or self.w_hh.ndim != 2:
            raise UnsupportedError(
                f"{where}: weight_ih and weight_hh should be matrices; "
                f"got shapes {list(self.w_ih.shape)} and {list(self.w_hh.shape)}."
            )
        rows, features = self.w_ih.shape
        if rows == 0 or rows % gates:
            raise UnsupportedError(
                f"{where}: weight_ih of {op} should have {gates} rows a hidden unit; got {rows} rows."
            )
        hidden = rows // gates
        size = hidden if self.w_hr is None else int(self.w_hr.shape[0])
        expected: list[tuple[str, Array | None, tuple[int, ...]]] = [
            ("weight_hh", self.w_hh, (rows, size)),
            ("bias_ih", self.b_ih, (rows,)),
            ("bias_hh", self.b_hh, (rows,)),
            ("weight_hr", self.w_hr, (size, hidden)),
        ]
        for name, array, shape in expected:
            if array is not None and array.shape != shape:
                raise UnsupportedError(
                    f"{where}: {name} should have the shape {list(shape)} ({op}, hidden size {hidden}); "
                    f"got {list(array.shape)}."
                )
        if self.w_hr is not None and op != "LSTM":
            raise UnsupportedError(f"{where}: only an LSTM can have a projection (weight_hr).")
        return hidden, features, size

    def bias(self, op: str) -> Array | None:
        """Return the one bias that the graph keeps: [G*H], or [4*H] for a GRU."""
        if self.b_ih is None and self.b_hh is None:
            return None
        zeros = np.zeros(len(self.w_ih), self.w_ih.dtype)
        b_ih = zeros if self.b_ih is None else self.b_ih
        b_hh = zeros if self.b_hh is None else self.b_hh
        if op != "GRU":
            return _sum(b_ih, b_hh)
        H = len(zeros) // 3
        return np.concatenate([_sum(b_ih[: 2 * H], b_hh[: 2 * H]), b_ih[2 * H :], b_hh[2 * H :]])


def _sum(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged file may hold infinities
        return np.asarray(a + b)


class GraphBuilder:
    """Collects inputs, constants and nodes; every method returns the name of the value it made.

    Parameters
    ----------
    name : str
        The graph's name.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self.constants: dict[str, Array] = {}
        self.nodes: list[Node] = []
        self.notes: list[str] = []
        self._taken: set[str] = set()
        self._made: dict[int, tuple[str, Array]] = {}
        self._numbers: dict[str, int] = {}  # the next number to try for a hint

    def share_names(self, other: GraphBuilder) -> None:
        """Let no value here be called as one of another graph is, around this one."""
        self._taken = other._taken

    def unique(self, hint: str) -> str:
        """Return `hint`, or `hint` with a number, whichever no value is called yet, and reserve it."""
        name, number = hint, self._numbers.get(hint, 1)
        while name in self._taken:
            name, number = f"{hint}_{number}", number + 1
        self._numbers[hint] = number
        self._taken.add(name)
        return name

    def input(self, name: str, shape: Sequence[int | str], dtype: str = "float32") -> str:
        """Add an input of the model."""
        self.inputs.append(TensorSpec(self.unique(name), tuple(shape), dtype))
        return self.inputs[-1].name

    def constant(self, name: str, value: Any) -> str:
        """Add a constant tensor. Python ints become int64."""
        name = self.unique(name)
        self.constants[name] = np.ascontiguousarray(value).reshape(np.shape(value))
        return name

    def node(self, op: str, *inputs: str, name: str = "", **attrs: Any) -> str:
        """Add a node of one output, called `name` or after the operator."""
        return self.nodes_out(op, inputs, [name or op.lower()], **attrs)[0]

    def nodes_out(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> list[str]:
        """Add a node of several outputs; ``""`` among `outputs` leaves one out."""
        names = [self.unique(output) if output else "" for output in outputs]
        self.nodes.append(Node(op, tuple(inputs), tuple(names), attrs, name=names[0]))
        return names

    def note(self, sentence: str) -> None:
        """Add a sentence about something assumed, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def swap_time_and_batch(self, value: str) -> str:
        """Add the transposition between batch-first and time-major."""
        return self.node("Transpose", value, name=f"{value}_t", perm=[1, 0, 2])

    def dense(self, value: str, weight: Array, bias: Array | None, name: str = "dense") -> str:
        """Add a Dense node; `weight` is [O, I], as PyTorch has it."""
        operands = [value, self._once(f"{name}.weight", weight, weight.T)]
        if bias is not None:
            operands.append(self._once(f"{name}.bias", bias, bias))
        return self.node("Dense", *operands, name=name)

    def _once(self, name: str, source: Array, value: Array) -> str:
        """Return the constant made of an array, the same one each time: a layer may be called at every time step."""
        if id(source) not in self._made:
            self._made[id(source)] = self.constant(name, value), source  # kept, so that the id stays its own
        return self._made[id(source)][0]

    def recurrent(
        self,
        op: str,
        value: str,
        directions: Sequence[Direction],
        *,
        name: str,
        activation: str = "Tanh",
        lengths: str = "",
        h_0: str = "",
        c_0: str = "",
    ) -> list[str]:
        """Add one time-major layer from PyTorch's weights and return its outputs y, h_n and (LSTM) c_n.

        Parameters
        ----------
        op : "LSTM", "GRU" or "RNN"
        value : str
            [T, B, I].
        directions : sequence of Direction
            One, or forward and reverse.
        activation : "Tanh" or "Relu"
            Of an RNN.
        lengths, h_0, c_0 : str
            Values as in `fastlstm.graph`; ``""`` if absent.
        """
        sizes = [d.check(op, name) for d in directions]
        if len(set(sizes)) != 1:
            raise UnsupportedError(f"{name}: the two directions have different sizes: {sizes}.")
        stacks: Mapping[str, list[Array | None]] = {
            "w_ih": [d.w_ih for d in directions],
            "w_hh": [d.w_hh for d in directions],
            "bias": [d.bias(op) for d in directions],
            "w_hr": [d.w_hr for d in directions],
        }
        values = {key: self._stacked(f"{name}.{key}", arrays) for key, arrays in stacks.items()}
        inputs = RecurrentInputs(value, lengths=lengths, h_0=h_0, c_0=c_0, **values)
        activations = default_activations(op, len(directions))
        attrs: dict[str, Any] = {
            "hidden_size": sizes[0][0],
            "directions": ["forward", "reverse"][: len(directions)],
            "activations": [[[activation, None, None]] for _ in directions] if op == "RNN" else activations,
            "clip": None,
        }
        if op == "LSTM":
            attrs["input_forget"] = 0
        if op == "GRU":
            attrs["reset_after"] = 1
        outputs = [f"{name}.y", f"{name}.h_n", f"{name}.c_n"][: 3 if op == "LSTM" else 2]
        return self.nodes_out(op, inputs.given(), outputs, **attrs)

    def _stacked(self, name: str, arrays: Sequence[Array | None]) -> str:
        present = [a for a in arrays if a is not None]
        if not present:
            return ""
        if len(present) != len(arrays):
            raise UnsupportedError(f"{name} is there for one direction only.")
        return self.constant(name, np.stack(present))

    def output(self, value: str, name: str, shape: Sequence[int | str], dtype: str = "float32") -> None:
        """Declare `value` an output of the model, called `name`."""
        self.outputs.append(TensorSpec(self.node("Identity", value, name=name), tuple(shape), dtype))

    def graph(self) -> Graph:
        """Return the validated graph; nodes keep the order in which they were added."""
        graph = Graph(
            inputs=tuple(self.inputs),
            outputs=tuple(self.outputs),
            nodes=tuple(self.nodes),
            constants=self.constants,
            name=self.name,
            notes=tuple(self.notes),
        )
        return validated(graph)

    def graph_of_needed(self) -> Graph:
        """Return the graph with only those nodes and constants that an output depends on."""
        self._drop_unneeded()
        return self.graph()

    def graph_in_another(self) -> Graph:
        """Return the graph of what is needed as the body of a node; the graph around it validates it."""
        self._drop_unneeded()
        return Graph(tuple(self.inputs), tuple(self.outputs), tuple(self.nodes), self.constants, self.name)

    def _drop_unneeded(self) -> None:
        needed = {spec.name for spec in self.outputs}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.inputs, outer_values(node))
        self.nodes = kept[::-1]
        self.constants = {name: array for name, array in self.constants.items() if name in needed}

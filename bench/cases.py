"""What is measured: the grid, shared by the benchmark and the regression tests of the kernels.

A `Case` is a recurrent network with its shapes; its weights and inputs follow from its name, so that every
engine, thread count and process works on the same numbers.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec, default_activations
from fastlstm.operators.validation import validated

Array = npt.NDArray[Any]

__all__ = ["GRID", "QUICK", "SWEEPS", "Case", "goal"]


@dataclass(frozen=True)
class Case:
    """One recurrent network and the shape of its input.

    Attributes
    ----------
    group : str
        The family of cells it belongs to; "step" and "states" carry their state from call to call, "states" through
        the inputs and outputs of the model in every engine.
    op : str
        "LSTM", "GRU" or "RNN" (tanh).
    T, B, I, H : int
        Time steps, batch, input size, hidden size.
    layers, directions, projection : int
        ``projection`` 0 means none (else `weight_hr` of that size).
    lengths : tuple of int
        Valid steps of each row of a ragged batch; empty if every row has T.
    """

    group: str
    op: str
    T: int
    B: int
    I: int  # noqa: E741 - the field's own name for the input size
    H: int
    layers: int = 1
    directions: int = 1
    projection: int = 0
    lengths: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """A readable name, unique in the grid."""
        extras = [f"{self.layers} layers"] * (self.layers > 1) + ["bidirectional"] * (self.directions > 1)
        extras += [f"projection {self.projection}"] * bool(self.projection) + ["ragged"] * bool(self.lengths)
        kind = [self.op] if self.group == self.op.lower() else [self.group, self.op]
        return " ".join([*kind, f"T={self.T} B={self.B} {self.I}->{self.H}", *extras])

    @property
    def stateful(self) -> bool:
        """Whether the state of one call is the initial state of the next."""
        return self.group in ("step", "states")

    @property
    def steps(self) -> int:
        """The time steps that have to be computed: ``T * B`` or the sum of the lengths."""
        return sum(self.lengths) or self.T * self.B

    @property
    def output_size(self) -> int:
        """The size of one direction's output, ``P`` in fastlstm's terms."""
        return self.projection or self.H

    def layer_inputs(self) -> list[int]:
        """Return the input size of each layer."""
        return [self.I] + [self.directions * self.output_size] * (self.layers - 1)

    def x(self) -> Array:
        """Return the input, float32 [T, B, I]."""
        return self._rng(1).standard_normal((self.T, self.B, self.I)).astype(np.float32)

    def weights(self) -> list[list[dict[str, Array]]]:
        """Return ``[layer][direction]`` of PyTorch-named float32 arrays, as PyTorch initialises them.

        Gate order i, f, g, o (LSTM), r, z, n (GRU).
        """
        rng, gates, scale = self._rng(0), RECURRENT_OPS[self.op], 1 / np.sqrt(self.H)

        def uniform(*shape: int) -> Array:
            return rng.uniform(-scale, scale, shape).astype(np.float32)

        def direction(inputs: int) -> dict[str, Array]:
            rows = gates * self.H
            arrays = {"weight_ih": uniform(rows, inputs), "weight_hh": uniform(rows, self.output_size)}
            arrays |= {"bias_ih": uniform(rows), "bias_hh": uniform(rows)}
            return arrays | ({"weight_hr": uniform(self.projection, self.H)} if self.projection else {})

        return [[direction(inputs) for _ in range(self.directions)] for inputs in self.layer_inputs()]

    def state_dict(self) -> dict[str, Array]:
        """Return the weights under the names of a ``torch.nn`` layer's state dict."""
        return {
            f"{name}_l{layer}{'_reverse' * reverse}": array
            for layer, directions in enumerate(self.weights())
            for reverse, arrays in enumerate(directions)
            for name, array in arrays.items()
        }

    def graph(self, T: int | None = None) -> Graph:
        """Return the network as fastlstm's graph, for the float64 oracle; `T` replaces the time steps."""
        constants: dict[str, Array] = {}
        nodes, value = [], "x"
        if self.lengths:
            constants["lengths"] = np.array(self.lengths, np.int64)
        for layer, directions in enumerate(self.weights()):
            arrays = {
                f"w_ih_{layer}": np.stack([d["weight_ih"] for d in directions]),
                f"w_hh_{layer}": np.stack([d["weight_hh"] for d in directions]),
                f"bias_{layer}": np.stack([self._bias(d) for d in directions]),
            }
            inputs = [value, *arrays, "lengths" if self.lengths else ""]
            if self.projection:
                arrays[f"w_hr_{layer}"] = np.stack([d["weight_hr"] for d in directions])
                inputs += ["", "", "", "", f"w_hr_{layer}"]
            constants |= arrays
            value = f"y_{layer}"
            nodes.append(Node(self.op, tuple(inputs), (value,), self._attributes(), f"layer_{layer}"))
        shape = (T or self.T, self.B)
        outputs = (TensorSpec(value, (*shape, self.directions * self.output_size)),)
        return validated(Graph((TensorSpec("x", (*shape, self.I)),), outputs, tuple(nodes), constants))

    def as_data(self) -> dict[str, Any]:
        """Return the fields as JSON-able data."""
        return asdict(self)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([zlib.crc32(self.name.encode()), stream])

    def _bias(self, arrays: dict[str, Array]) -> Array:
        ours, theirs = arrays["bias_ih"], arrays["bias_hh"]
        if self.op != "GRU":
            return ours + theirs
        gates = 2 * self.H
        return np.concatenate([ours[:gates] + theirs[:gates], ours[gates:], theirs[gates:]])

    def _attributes(self) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "hidden_size": self.H,
            "directions": ["forward", "reverse"][: self.directions],
            "activations": default_activations(self.op, self.directions),
            "clip": None,
        }
        own = {"LSTM": {"input_forget": 0}, "GRU": {"reset_after": 1}, "RNN": {}}
        return attributes | own[self.op]


def _ragged_lengths(rows: int, shortest: int, longest: int) -> tuple[int, ...]:
    lengths = np.linspace(shortest, longest, rows).round().astype(int)
    return tuple(int(n) for n in np.random.default_rng(0).permutation(lengths))


_ONE_STEP = ((1, 20), (32, 64), (40, 128), (64, 256), (512, 512))

GRID: tuple[Case, ...] = (
    *(Case("step", "LSTM", 1, 1, *sizes) for sizes in _ONE_STEP),
    *(Case("call", "LSTM", 1, 1, *sizes) for sizes in _ONE_STEP),
    *(Case("states", "LSTM", 1, 1, *sizes) for sizes in _ONE_STEP),
    *(Case("states", "LSTM", *shape) for shape in ((7, 1, 192, 192), (50, 3, 384, 384))),
    *(
        Case("sequence", "LSTM", 100, 1, *sizes)
        for sizes in ((10, 64), (64, 128), (256, 256), (512, 512), (1024, 1024))
    ),
    *(Case("long", "LSTM", 2048, 1, 1, H) for H in (20, 40)),
    *(
        Case("batch", "LSTM", *shape)
        for shape in (
            (100, 8, 128, 128),
            (100, 32, 128, 128),
            (100, 32, 256, 256),
            (100, 64, 512, 512),
            (50, 64, 1024, 1024),
        )
    ),
    Case("stack", "LSTM", 100, 1, 256, 256, layers=4),
    Case("stack", "LSTM", 100, 1, 256, 256, directions=2),
    Case("stack", "LSTM", 100, 1, 256, 256, layers=2, directions=2),
    Case("ragged", "LSTM", 100, 32, 256, 256, lengths=_ragged_lengths(32, 10, 100)),
    *(
        Case("odd", "LSTM", 100, *shape)
        for shape in ((1, 37, 37), (3, 37, 37), (5, 100, 100), (17, 200, 200), (3, 300, 300))
    ),
    *(
        Case(op.lower(), op, T, B, H, H)
        for op in ("GRU", "RNN")
        for T, B in ((1, 1), (100, 1), (100, 32))
        for H in (64, 256)
    ),
    Case("projected", "LSTM", 100, 1, 512, 512, projection=256),
)
"""The cells that are judged: each has a `goal`."""

SWEEPS: tuple[Case, ...] = (
    *(Case("time", "LSTM", T, 1, 128, 128) for T in (1, 4, 16, 64, 256)),
    *(Case("width", "LSTM", 100, B, 128, 128) for B in (1, 2, 4, 8, 16, 32, 64)),
    *(Case("size", "LSTM", 100, 1, H, H) for H in (16, 32, 64, 128, 256, 512)),
)
"""Cells that only draw how time grows with T, B and H."""

QUICK: tuple[Case, ...] = tuple(
    case
    for case in GRID
    if (case.group, case.T, case.B, case.H)
    in {
        ("step", 1, 1, 20),
        ("step", 1, 1, 128),
        ("call", 1, 1, 64),
        ("states", 1, 1, 20),
        ("states", 50, 3, 384),
        ("sequence", 100, 1, 64),
        ("sequence", 100, 1, 256),
        ("long", 2048, 1, 20),
        ("batch", 100, 32, 128),
        ("gru", 100, 1, 64),
    }
)
"""A few cells of every kind, for ``--quick``."""


def goal(case: Case, threads: int) -> float:
    """Return the least ratio (best peer's time over fastlstm's) that the project asks of a cell."""

    def by_size(limits: dict[int, float], otherwise: float) -> float:
        return next((ratio for limit, ratio in limits.items() if limit >= case.H), otherwise)

    if case.group in ("step", "call"):
        return by_size({64: 8.0, 128: 4.0, 256: 2.0}, 1.2)
    if case.group == "sequence":
        return by_size({64: 1.4, 128: 1.35, 256: 1.15} if threads > 1 else {64: 1.4}, 1.1)
    if case.group == "stack":
        return 1.15 if threads > 1 else 1.0
    if case.group == "long":
        return 2.0
    return 1.08 if case.group == "batch" else 1.0

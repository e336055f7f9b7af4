"""Torch-shaped layers from plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm.errors import InputError, counted
from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs, TensorSpec, default_activations
from fastlstm.model import Model
from fastlstm.runtime.conversion import converted
from fastlstm.runtime.foreign import as_array, as_arrays, as_given, tensors_among
from fastlstm.typing import Array

__all__ = ["GRU", "LSTM", "RNN"]


class _Layer:
    op = ""
    states = 1

    def __init__(
        self,
        weight_ih: Any,
        weight_hh: Any,
        bias: Any = None,
        *,
        weight_hr: Any = None,
        peephole: Any = None,
        directions: Sequence[str] | None = None,
        batch_first: bool = False,
        activations: list[list[list[Any]]] | None = None,
        threads: int | None = 1,
        precision: str = "float32",
        **options: Any,
    ) -> None:
        w_ih, w_hh = _stacked(weight_ih, "weight_ih"), _stacked(weight_hh, "weight_hh")
        gates, count = RECURRENT_OPS[self.op], len(w_ih)
        names = ["forward", "reverse"][:count] if directions is None else list(directions)
        if len(names) != count or not set(names) <= {"forward", "reverse"}:
            raise InputError(
                f"directions should name 'forward' or 'reverse' for each of {counted(count, 'weight')}; got {names}."
            )
        hidden = w_ih.shape[1] // gates
        constants: dict[str, Array] = {"weight_ih": w_ih, "weight_hh": w_hh}
        if bias is not None:
            constants["bias"] = _floats(bias, "bias").reshape(count, -1)
        if (peephole is not None or weight_hr is not None) and self.op != "LSTM":
            raise InputError(f"{self.op} has neither peepholes nor a projection.")
        if peephole is not None:
            constants["peephole"] = _floats(peephole, "peephole").reshape(count, -1)
        if weight_hr is not None:
            constants["weight_hr"] = _stacked(weight_hr, "weight_hr")
        weights = {"bias": "bias", "peephole": "peephole", "w_hr": "weight_hr"}
        given = RecurrentInputs(
            "x", "weight_ih", "weight_hh", lengths="lengths", h_0="h_0", c_0="c_0" if self.op == "LSTM" else "",
            **{name: key for name, key in weights.items() if key in constants},
        )  # fmt: skip
        attrs = {
            "hidden_size": hidden,
            "directions": names,
            "activations": activations or default_activations(self.op, count),
            "clip": options.pop("clip", None),
        }
        if self.op == "LSTM":
            attrs["input_forget"] = int(options.pop("input_forget", 0))
        if self.op == "GRU":
            attrs["reset_after"] = int(options.pop("reset_after", 1))
        if options:
            raise InputError(f"{type(self).__name__} has no option {', '.join(options)}.")
        self.batch_first = batch_first
        self.hidden_size, self.input_size = hidden, w_ih.shape[2]
        out = ("output", "h_n", "c_n")[: 1 + self.states]
        inputs = [TensorSpec("x", ("time", "batch", self.input_size))]
        size = w_hh.shape[2]
        widths: dict[str, tuple[int | str, ...]] = {
            "output": ("time", "batch", count * size),
            "h_n": (count, "batch", size),
        }
        widths["c_n"] = (count, "batch", hidden)
        node = Node(self.op, given.given(), out, attrs, self.op.lower())
        self._graph = Graph(
            tuple(inputs), tuple(TensorSpec(name, widths[name]) for name in out), (node,), constants, self.op
        )
        self._threads, self._precision = threads, precision
        self._models: dict[tuple[bool, bool], Model] = {}
        self._model(False, False)

    def _model(self, with_state: bool, with_lengths: bool) -> Model:
        """Return the model with or without initial states and lengths among its inputs."""
        key = (with_state, with_lengths)
        if key not in self._models:
            (node,) = self._graph.nodes
            drop = ([] if with_lengths else ["lengths"]) + ([] if with_state else ["h_0", "c_0"])
            inputs = list(self._graph.inputs)
            if with_lengths:
                inputs.append(TensorSpec("lengths", ("batch",), "int64"))
            for name, like in (("h_0", "h_n"), ("c_0", "c_n"))[: self.states if with_state else 0]:
                shape = next(s.shape for s in self._graph.outputs if s.name == like)
                inputs.append(TensorSpec(name, shape))
            kept = RecurrentInputs.of(node)._replace(**dict.fromkeys(drop, "")).given()
            graph = self._graph.replace(
                inputs=tuple(inputs), nodes=(Node(node.op, kept, node.outputs, node.attrs, node.name),)
            )
            self._models[key] = Model(graph, self._threads, self._precision)
        return self._models[key]

    def _run(self, x: Any, states: list[Any], lengths: Any) -> tuple[Array, list[Array]]:
        if tensors_among([x, *states, lengths]):
            given: tuple[Array, list[Array]] = as_given(self._run(*as_arrays([x, states, lengths], "The input")))
            return given
        array = as_array(x, "x")
        if array.ndim != 3:
            order = "[batch, time, features]" if self.batch_first else "[time, batch, features]"
            raise InputError(f"x should have three axes, {order}; got {list(array.shape)}.")
        if self.batch_first:
            array = array.transpose(1, 0, 2)
        feed: dict[str, Any] = {"x": array, **dict(zip(("h_0", "c_0"), states, strict=False))}
        if lengths is not None:
            feed["lengths"] = lengths
        result = self._model(bool(states), lengths is not None).run(feed)
        output = result["output"]
        return (output.transpose(1, 0, 2) if self.batch_first else output), list(result.values())[1:]


def _floats(value: Any, name: str) -> Array:
    """Return a weight as float32."""
    return converted(as_array(value, name), np.float32, name)


def _stacked(weight: Any, name: str) -> Array:
    """Return a weight as float32 [directions, rows, columns]."""
    array = _floats(weight, name)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[0] not in (1, 2) or 0 in array.shape:
        raise InputError(f"{name} should be a matrix, or two stacked ones; got the shape {list(np.shape(weight))}.")
    return np.ascontiguousarray(array)


class LSTM(_Layer):
    """An LSTM layer from plain arrays in PyTorch's layout.

    Parameters
    ----------
    weight_ih : array [4H, I], or [2, 4H, I] for both directions
        Gates in the order i, f, g, o.
    weight_hh : array [4H, H] (with a projection [4H, P]), or [2, ...]
    bias : array [4H] or [2, 4H], optional
        The sum of PyTorch's two biases.
    weight_hr : array [P, H] or [2, P, H], optional
        Projection of the output.
    peephole : array [3H] or [2, 3H], optional
        In the order i, f, o.
    directions : sequence of str, optional
        "forward" or "reverse" for each of the stacked weights; forward, then reverse, by default.
    batch_first : bool
        Whether x and output are [batch, time, features] instead of [time, batch, features].
    activations, clip, input_forget
        As in `fastlstm.graph`.
    threads : int or None
    precision : str
        "float32", "int16" or "int8": see `fastlstm.graph.quantise`.

    Raises
    ------
    InputError
        If a weight has the wrong shape; a call raises it if x, states or lengths do not fit.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> layer = fastlstm.LSTM(np.ones((8, 3)), np.ones((8, 2)))
    >>> output, (h_n, c_n) = layer(np.zeros((5, 1, 3), np.float32))
    >>> output.shape
    (5, 1, 2)
    """

    op, states = "LSTM", 2

    def __call__(
        self, x: Any, state: tuple[Any, Any] | None = None, lengths: Any = None
    ) -> tuple[Array, tuple[Array, Array]]:
        """Run the layer.

        Parameters
        ----------
        x : array [time, batch, features], or [batch, time, features]
        state : pair of arrays [directions, batch, size], optional
            h_0 and c_0; zeros if not given.
        lengths : array of int [batch], optional
            Time steps of each row; anything beyond them is ignored.

        Returns
        -------
        output, (h_n, c_n)
            Tensors if one came in.

        Raises
        ------
        InputError
            If an argument does not fit.
        """
        if state is not None and not (isinstance(state, (tuple, list)) and len(state) in (0, 2)):
            raise InputError("The initial state of an LSTM is a pair of arrays, (h_0, c_0).")
        output, (h, c) = self._run(x, list(state or ()), lengths)
        return output, (h, c)


class _OneState(_Layer):
    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[Array, Array]:
        """Run the layer on x [time, batch, features], or batch first; return output and h_n [directions, batch, H].

        `state` [directions, batch, H] is where it starts, zeros if not given; `lengths` [batch] ends rows early.
        """
        output, (h,) = self._run(x, [] if state is None else [state], lengths)
        return output, h


class GRU(_OneState):
    """A GRU layer from plain arrays in PyTorch's layout.

    Parameters
    ----------
    weight_ih : array [3H, I], or [2, 3H, I] for both directions
        Gates in the order r, z, n.
    weight_hh : array [3H, H] or [2, 3H, H]
    bias : array [4H] or [2, 4H], optional
        b_r, b_z (sums of PyTorch's two), b_in, b_hn.
    reset_after : bool
        Reset after the product with the recurrent weights, as PyTorch does; True if not given.
    directions, batch_first, activations, clip, threads, precision
        As for `LSTM`.

    Raises
    ------
    InputError
        If a weight has the wrong shape; a call raises it if x, state or lengths do not fit.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> output, h_n = fastlstm.GRU(np.ones((6, 3)), np.ones((6, 2)))(np.zeros((5, 1, 3), np.float32))
    >>> h_n.shape
    (1, 1, 2)
    """

    op = "GRU"


class RNN(_OneState):
    """A plain recurrent layer from arrays in PyTorch's layout.

    Parameters
    ----------
    weight_ih : array [H, I], or [2, H, I] for both directions
    weight_hh : array [H, H] or [2, H, H]
    bias : array [H] or [2, H], optional
        The sum of PyTorch's two biases.
    activations : list, optional
        Tanh if not given; ``[[["Relu", None, None]]]`` for Relu.
    directions, batch_first, clip, threads, precision
        As for `LSTM`.

    Raises
    ------
    InputError
        If a weight has the wrong shape; a call raises it if x, state or lengths do not fit.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> output, h_n = fastlstm.RNN(np.ones((2, 3)), np.ones((2, 2)))(np.zeros((5, 1, 3), np.float32))
    >>> output.shape
    (5, 1, 2)
    """

    op = "RNN"

"""A chain of layers becomes a graph, step by step, with shapes checked on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fastlstm.converters.common.builder import GraphBuilder
from fastlstm.converters.common.modules import Module
from fastlstm.converters.torch.layer_spec import RECURRENT_WORDS, Step
from fastlstm.errors import UnsupportedError
from fastlstm.graph import Graph

__all__ = ["Chain"]

_EPSILON = 1e-5


class Chain:
    """Builds the graph of a chain of layers.

    Parameters
    ----------
    name : str
        The graph's name.
    batch_first : bool
        Whether inputs and outputs are [batch, time, features] or [time, batch, features].
    lengths : bool
        Whether the graph has an input ``lengths`` [batch].
    """

    def __init__(self, name: str, batch_first: bool, lengths: bool) -> None:
        self.builder = GraphBuilder(name)
        self.batch_first = batch_first
        self.lengths = lengths
        self.leading: list[str] = ["batch", "time"] if batch_first else ["time", "batch"]
        self.value = ""
        self.features = 0
        self.before: tuple[str, int] = ("", 0)
        self.recurrent: Module | None = None
        self.states: list[list[str]] = []
        """h_n and c_n of each layer of the last recurrent module."""
        self.sequence = ""
        """What the last recurrent module gives, before anything else happens to it."""

    def build(self, pairs: Sequence[tuple[Step, Module | None]]) -> Graph:
        """Return the graph of the steps, each with the module that it takes, if any.

        Raises
        ------
        UnsupportedError
            If a module does not fit what comes before it.
        """
        self._open(pairs)
        for step, module in pairs:
            if module is None:
                self._plain(step)
            else:
                before = (self.value, self.features)
                self._layer(step, module)
                self.before = before
        self.builder.output(self.value, "output", [*self.leading, self.features])
        if len(pairs) == 1 and self.recurrent is not None:
            self._final_states(self.recurrent)
        return self.builder.graph()

    def _open(self, pairs: Sequence[tuple[Step, Module | None]]) -> None:
        first = next((module for _, module in pairs if module is not None), None)
        if first is None:
            raise UnsupportedError("layers names no layer that has weights.")
        if pairs[0][0].word == "embedding":
            self.value = self.builder.input("input", self.leading, "int64")
        else:
            self.features = first.input_size
            self.value = self.builder.input("input", [*self.leading, self.features])
        if self.lengths:
            self.builder.input("lengths", ["batch"], "int64")

    def _layer(self, step: Step, module: Module) -> None:
        name = module.name or step.word
        if step.word == "embedding":
            table = self.builder.constant(f"{name}.weight", module.tensors["weight"])
            self.value = self.builder.node("Gather", table, self.value, name=name, axis=0)
            self.features = module.embedding_size
            return
        scalar = step.word == "prelu" and module.input_size == 1
        if module.input_size != self.features and not scalar:
            raise UnsupportedError(f"'{step}' is {module}, but what comes before it gives {self.features} features.")
        if module.layers:
            self._recurrent(step, module, name)
        else:
            self.value = _WEIGHTED[step.word](self, step, module, name)
        self.features = self.features if scalar else module.output_size

    def _recurrent(self, step: Step, module: Module, name: str) -> None:
        if "time" not in self.leading:
            raise UnsupportedError(f"'{step}' needs a sequence, but only one step a row is left before it.")
        op, activation = RECURRENT_WORDS[step.word]
        if module.cell:
            self.builder.note(f"'{name}' is a cell; it was assumed to run over the time axis from a zero state.")
        value = self.builder.swap_time_and_batch(self.value) if self.batch_first else self.value
        self.recurrent, self.states = module, []
        for number, directions in enumerate(module.layers):
            value, *states = self.builder.recurrent(
                op,
                value,
                directions,
                name=f"{name}.l{number}",
                activation=activation,
                lengths="lengths" if self.lengths else "",
            )
            self.states.append(states)
        self.value = self.builder.swap_time_and_batch(value) if self.batch_first else value
        self.sequence = self.value

    def _final_states(self, module: Module) -> None:
        directions = len(module.layers[0])
        sizes = [module.output_size // directions, module.hidden_size]
        for position, name in enumerate(["h_n", "c_n"][: len(self.states[0])]):
            states = [layer[position] for layer in self.states]
            all_states = self.builder.node("Concat", *states, axis=0) if len(states) > 1 else states[0]
            self.builder.output(all_states, name, [len(states) * directions, "batch", sizes[position]])

    def _plain(self, step: Step) -> None:
        if step.word in {"every", "all", "dropout"}:
            return
        if step.word in {"last", "hidden", "mean", "max"}:
            self._over_time(step)
        elif step.word == "residual":
            value, features = self.before
            if features != self.features:
                raise UnsupportedError(
                    f"'residual' adds {features} features to {self.features}; the layer before it should "
                    "keep their number."
                )
            self.value = self.builder.node("Add", self.value, value, name="residual")
        elif step.word == "silu":
            gate = self.builder.node("Sigmoid", self.value)
            self.value = self.builder.node("Mul", self.value, gate, name="silu")
        else:
            op, attrs = step.activation()
            self.value = self.builder.node(op, self.value, name=step.word, **attrs)

    def _over_time(self, step: Step) -> None:
        if "time" not in self.leading:
            raise UnsupportedError(f"'{step.word}' needs a sequence, but only one step a row is left before it.")
        axis = self.leading.index("time")
        if step.word == "hidden":
            self.value = self._hidden()
        elif step.word == "last":
            self.value = self._last_of_each_row() if self.lengths else self._take(self.value, -1, axis, "last")
        elif self.lengths:
            raise UnsupportedError(f"'{step.word}' over rows of different lengths is not supported; use 'last'.")
        else:
            axes = self.builder.constant(f"{step.word}.axes", np.array([axis], np.int64))
            op = {"mean": "ReduceMean", "max": "ReduceMax"}[step.word]
            self.value = self.builder.node(op, self.value, axes, name=step.word, keepdims=0)
        self.leading = ["batch"]

    def _take(self, value: str, index: int, axis: int, name: str) -> str:
        position = self.builder.constant(f"{name}.index", np.array(index, np.int64))
        return self.builder.node("Gather", value, position, name=name, axis=axis)

    def _hidden(self) -> str:
        if self.recurrent is None or self.value != self.sequence:
            raise UnsupportedError("'hidden' should stand right after a recurrent layer.")
        directions = range(len(self.recurrent.layers[-1]))
        rows = [self._take(self.states[-1][0], d, 0, f"hidden_{d}") for d in directions]
        return rows[0] if len(rows) == 1 else self.builder.node("Concat", *rows, name="hidden", axis=-1)

    def _last_of_each_row(self) -> str:
        """Pick row b's step lengths[b] - 1."""
        builder = self.builder
        value = self.value if self.batch_first else builder.swap_time_and_batch(self.value)
        one = builder.constant("last.one", np.array(1, np.int64))
        axis = builder.constant("last.axis", np.array([1], np.int64))
        position = builder.node("Unsqueeze", builder.node("Sub", "lengths", one), axis, name="last_step")
        return builder.node("GatherND", value, position, name="last", batch_dims=1)


def _linear(chain: Chain, _: Step, module: Module, name: str) -> str:
    return chain.builder.dense(chain.value, module.tensors["weight"], module.tensors.get("bias"), name)


def _layernorm(chain: Chain, step: Step, module: Module, name: str) -> str:
    operands = [chain.builder.constant(f"{name}.{key}", array) for key, array in module.tensors.items()]
    operands.sort(key=lambda operand: operand.endswith("bias"))
    epsilon = _epsilon(chain, step, name)
    return chain.builder.node("LayerNormalization", chain.value, *operands, name=name, axis=-1, epsilon=epsilon)


def _batchnorm(chain: Chain, step: Step, module: Module, name: str) -> str:
    parts = {key: array.astype(np.float64) for key, array in module.tensors.items()}
    scale = parts.get("weight", 1.0) / np.sqrt(parts["running_var"] + _epsilon(chain, step, name))
    shift = parts.get("bias", 0.0) - parts["running_mean"] * scale
    factor = chain.builder.constant(f"{name}.scale", scale.astype(np.float32))
    offset = chain.builder.constant(f"{name}.shift", shift.astype(np.float32))
    return chain.builder.node("Add", chain.builder.node("Mul", chain.value, factor), offset, name=name)


def _prelu(chain: Chain, _: Step, module: Module, name: str) -> str:
    slope = chain.builder.constant(f"{name}.weight", module.tensors["weight"])
    return chain.builder.node("PRelu", chain.value, slope, name=name)


def _epsilon(chain: Chain, step: Step, name: str) -> float:
    if step.numbers:
        return step.numbers[0]
    chain.builder.note(f"The epsilon of '{name}' was assumed to be {_EPSILON}; '{step.word}(1e-6)' says another.")
    return _EPSILON


_WEIGHTED: Mapping[str, Callable[[Chain, Step, Module, str], str]] = {
    "linear": _linear,
    "layernorm": _layernorm,
    "batchnorm": _batchnorm,
    "prelu": _prelu,
}

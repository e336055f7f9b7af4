"""The modules of a state dict: tensors grouped by name, their kind read off names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastlstm.converters.common.builder import Direction
from fastlstm.errors import UnsupportedError, counted
from fastlstm.typing import Array

__all__ = ["Module", "group"]

_RECURRENT = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)(?:_l(\d+)(_reverse)?)?")
_SHOWN = 8
"""So many tensors are named in an error."""
_WORDS = {4: "lstm", 3: "gru", 1: "rnn"}


@dataclass(frozen=True, eq=False)
class Module:
    """One module: its tensors by their short names, and what they can be.

    Attributes
    ----------
    name : str
        Its dotted name, ``""`` for a bare layer's own state dict.
    tensors : mapping of str to array
    words : tuple of str
        The words of the spec that may take it, the likeliest first.
    input_size, output_size : int
        Features in and out (of a matrix that might be an embedding: as a linear layer).
    layers : tuple of tuples of Direction
        Of a recurrent module.
    """

    name: str
    tensors: Mapping[str, Array]
    words: tuple[str, ...]
    input_size: int
    output_size: int
    layers: tuple[tuple[Direction, ...], ...] = ()
    cell: bool = False

    @property
    def tensor_names(self) -> list[str]:
        """The full names of its tensors."""
        return [f"{self.name}.{key}" if self.name else key for key in self.tensors]

    def is_embedding_of(self, following: Module | None) -> bool:
        """Say whether its matrix can be a table whose rows the next module reads."""
        if "embedding" not in self.words or following is None:
            return False
        return bool(self.tensors["weight"].shape[1] == following.input_size)

    @property
    def embedding_size(self) -> int:
        """Features that it gives as an embedding."""
        return int(self.tensors["weight"].shape[1])

    @property
    def hidden_size(self) -> int:
        """Hidden units of a recurrent module."""
        gates = next(number for number, word in _WORDS.items() if word == self.words[0])
        return len(self.layers[0][0].w_ih) // gates

    def stands_before(self, other: Module) -> bool:
        """Say whether both are numbered children of one parent and this one has the smaller number."""
        parent, _, number = self.name.rpartition(".")
        other_parent, _, other_number = other.name.rpartition(".")
        numbered = number.isdecimal() and other_number.isdecimal() and parent == other_parent
        return numbered and int(number) < int(other_number)

    def __str__(self) -> str:
        if self.layers:
            kind = f"{self.words[0].upper()} cell" if self.cell else self.words[0].upper()
            both = ", both directions" if len(self.layers[0]) == 2 else ""
            return f"{kind} {self.input_size}→{self.output_size} ({counted(len(self.layers), 'layer')}{both})"
        if self.words[:1] == ("linear",):
            return f"linear {self.input_size}→{self.output_size}"
        return " or ".join(self.words) + f" over {self.input_size}"


def group(tensors: Mapping[str, Array]) -> list[Module]:
    """Return the modules of a state dict in the order in which each first appears.

    Raises
    ------
    UnsupportedError
        If a module's tensors are those of no known kind, or do not fit one another; the message names them.
    """
    by_name: dict[str, dict[str, Array]] = {}
    for key, array in tensors.items():
        name, _, short = key.rpartition(".")
        by_name.setdefault(name, {})[short] = array
    return [_module(name, parts) for name, parts in by_name.items()]


def _module(name: str, parts: Mapping[str, Array]) -> Module:
    if any(_RECURRENT.fullmatch(key) for key in parts):
        return _recurrent_module(name, parts)
    weight, keys = parts.get("weight"), set(parts)
    mean, variance = parts.get("running_mean"), parts.get("running_var")
    plain = keys - {"num_batches_tracked"} == {"running_mean", "running_var"}
    if plain and mean is not None and variance is not None and mean.ndim == 1 and mean.shape == variance.shape:
        return Module(name, parts, ("batchnorm",), len(mean), len(mean))
    if weight is not None and weight.dtype.kind == "f":
        vectors = all(parts[key].shape == weight.shape[:1] for key in keys - {"weight", "num_batches_tracked"})
        statistics = {"weight", "bias", "running_mean", "running_var"}
        if weight.ndim == 2 and keys <= {"weight", "bias"} and vectors:
            words = ("linear",) if "bias" in keys else ("linear", "embedding")
            return Module(name, parts, words, int(weight.shape[1]), int(weight.shape[0]))
        if weight.ndim == 1 and keys == {"weight", "bias"} and vectors:
            return Module(name, parts, ("layernorm",), len(weight), len(weight))
        if weight.ndim == 1 and keys - {"num_batches_tracked"} == statistics and vectors:
            return Module(name, parts, ("batchnorm",), len(weight), len(weight))
        if weight.ndim == 1 and keys == {"weight"}:
            return Module(name, parts, ("prelu", "layernorm"), len(weight), len(weight))
    shown = list(parts.items())[:_SHOWN]
    shapes = ", ".join(f"'{f'{name}.' * bool(name)}{key}' {list(array.shape)}" for key, array in shown)
    if len(parts) > len(shown):
        shapes += f" and {len(parts) - len(shown)} more"
    raise UnsupportedError(
        f"The tensors {shapes} belong to no layer that a state dict describes fully (supported: LSTM, GRU, "
        "RNN and their cells, Linear, Embedding, LayerNorm, BatchNorm, PReLU). Export the whole model with "
        "torch.export.save or to ONNX, or choose a part of the tensors with prefix=..."
    )


def _recurrent_module(name: str, parts: Mapping[str, Array]) -> Module:
    label = name or "the recurrent layer"
    found: dict[tuple[int, bool], dict[str, Array]] = {}
    cell = "weight_ih" in parts
    for key, array in parts.items():
        match = _RECURRENT.fullmatch(key)
        if match is None or (match[2] is None) != cell:
            raise UnsupportedError(f"The tensor '{name}.{key}' is not known in a recurrent layer.")
        if array.dtype.kind != "f":
            raise UnsupportedError(f"The tensor '{name}.{key}' should hold floats; its dtype is {array.dtype}.")
        found.setdefault((int(match[2] or 0), match[3] is not None), {})[match[1]] = array
    reverse = any(is_reverse for _, is_reverse in found)
    depth = 1 + max(layer for layer, _ in found)
    if depth != len({layer for layer, _ in found}) or len(found) != depth * (1 + reverse):
        raise UnsupportedError(f"{label}: layers or directions are missing among {', '.join(parts)}.")
    layers = [
        tuple(_direction(found[layer, r], f"{label}, layer {layer}") for r in ([False, True] if reverse else [False]))
        for layer in range(depth)
    ]
    word, sizes = _check_layers(layers, label)
    return Module(name, parts, (word, "rnn_relu") if word == "rnn" else (word,), *sizes, tuple(layers), cell)


def _direction(parts: Mapping[str, Array], label: str) -> Direction:
    for required in ("weight_ih", "weight_hh"):
        if required not in parts:
            raise UnsupportedError(f"{label}: {required} is missing; found {', '.join(parts)}.")
    return Direction(
        parts["weight_ih"],
        parts["weight_hh"],
        parts.get("bias_ih"),
        parts.get("bias_hh"),
        parts.get("weight_hr"),
    )


def _check_layers(layers: Sequence[Sequence[Direction]], label: str) -> tuple[str, tuple[int, int]]:
    first = layers[0][0]
    recurrent = first.w_hh if first.w_hr is None else first.w_hr
    hidden = int(recurrent.shape[-1]) if recurrent.ndim == 2 else 0
    gates, rest = divmod(len(first.w_ih) if first.w_ih.ndim else 0, hidden or 1)
    if hidden == 0 or rest or gates not in _WORDS:
        raise UnsupportedError(
            f"{label}: weight_ih {list(first.w_ih.shape)} and weight_hh {list(first.w_hh.shape)} should have "
            "4, 3 or 1 times as many rows (LSTM, GRU, RNN) as the hidden size."
        )
    word, features = _WORDS[gates], 0
    for number, directions in enumerate(layers):
        sizes = {d.check(word.upper(), f"{label}, layer {number}") for d in directions}
        if len(sizes) != 1 or (number and next(iter(sizes))[1] != features):
            raise UnsupportedError(
                f"{label}, layer {number}: (hidden, input, output) sizes {sorted(sizes)} do not fit the "
                f"layer before it, which gives {features} features."
            )
        features = len(directions) * next(iter(sizes))[2]
    return word, (int(first.w_ih.shape[1]), features)

"""Random PyTorch modules of several recurrent layers, scripted: packed, padded and plain ones in any order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from onnx_cases import SIZES
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["Case", "Stack", "draw"]


@dataclass(frozen=True)
class Layer:
    op: str
    hidden: int
    depth: int
    bidirectional: bool
    bias: bool
    lengths: str
    ordered: bool  # rows come sorted by length, and the module says so
    states: str
    between: str
    last: str  # what is shown beside its outputs


SIMPLEST: dict[str, tuple[Any, ...]] = {
    "lengths": ("none", "shared", "given", "constant", "computed"),
    "ordered": (False, True),
    "states": ("none", "given", "constant", "computed"),
    "between": ("", "tanh", "linear", "skip"),
    "last": ("", "states", "step"),
    "depth": (1, 2),
    "bidirectional": (False, True),
    "bias": (True, False),
    "op": ("LSTM", "GRU", "RNN"),
}


@dataclass(frozen=True)
class Case:
    """A module, and the time steps and batch rows of its input."""

    layers: tuple[Layer, ...]
    size: int
    batch_first: bool
    T: int
    B: int
    seed: int

    @property
    def fixed(self) -> bool:
        return any("constant" in (layer.lengths, layer.states) for layer in self.layers)

    def simpler(self) -> Iterator[Case]:
        for i in range(len(self.layers)):
            if len(self.layers) > 1:
                yield replace(self, layers=self.layers[:i] + self.layers[i + 1 :])
        for i, layer in enumerate(self.layers):
            for name, (simplest, *_) in SIMPLEST.items():
                if getattr(layer, name) != simplest:
                    changed = replace(layer, **{name: simplest})
                    yield replace(self, layers=(*self.layers[:i], changed, *self.layers[i + 1 :]))
        if self.batch_first:
            yield replace(self, batch_first=False)

    def __str__(self) -> str:
        first = ", batch first" if self.batch_first else ""
        lines = [f"seed {self.seed}: {self.T} steps, {self.B} rows of {self.size} features{first}"]
        lines += ["  " + " ".join(f"{f.name}={getattr(a, f.name)}" for f in fields(a)) for a in self.layers]
        return "\n".join(lines)


def draw(seed: int) -> Case:
    """Return the case of a seed."""
    rng = random.Random(seed)
    layers = []
    for _ in range(rng.choice([1, 2, 2, 3])):
        drawn = {name: rng.choice(values) for name, values in SIMPLEST.items()}
        if drawn["lengths"] != "none" and not drawn["ordered"] and rng.random() < 0.8:
            drawn["states"] = "none"  # given states of rows that are sorted inside are not supported
        layers.append(Layer(hidden=rng.choice(SIZES), **drawn))
    batch = rng.choice([1, 2, 3, 5])
    return Case(tuple(layers), rng.choice(SIZES), rng.random() < 0.5, rng.randint(1, 8), batch, seed)


class Step(nn.Module):
    """One layer and what is around it. Its branches are decided when it is scripted."""

    __constants__ = ["batch_first", "last", "lengths_from", "lstm", "packed", "sorts", "states_from", "what_follows"]

    def __init__(self, layer: Layer, size: int, batch_first: bool, steps: int, batch: int, number: int) -> None:
        super().__init__()
        H, D = layer.hidden, 1 + layer.bidirectional
        self.rnn = getattr(nn, layer.op)(size, H, layer.depth, bias=layer.bias, bidirectional=D == 2,
                                         batch_first=batch_first)  # fmt: skip
        self.packed, self.lengths_from = layer.lengths != "none", layer.lengths
        self.sorts, self.batch_first = layer.ordered, batch_first
        self.lstm, self.states_from = layer.op == "LSTM", layer.states
        self.width, self.last = D * H, layer.last
        self.what_follows = layer.between if layer.between != "skip" or size == self.width else "tanh"
        self.linear = nn.Linear(self.width, 8) if layer.between == "linear" else nn.Identity()
        self.number = number
        known = torch.randint(1, steps + 1, (batch,))
        self.register_buffer("known_lengths", known.sort(descending=True).values)
        rows = batch if layer.states == "constant" else 1
        self.register_buffer("h", torch.rand(D * layer.depth, rows, H) - 0.5)
        self.register_buffer("c", torch.rand(D * layer.depth, rows, H) - 0.5)
        self.features = 8 if layer.between == "linear" else self.width

    def lengths(self, given: Tensor, T: int) -> Tensor:
        found = given[0]
        if self.lengths_from == "given":
            found = given[self.number + 1]
        if self.lengths_from == "constant":
            found = self.known_lengths
        if self.lengths_from == "computed":
            found = torch.clamp(given[self.number + 1] - 1, min=1)
        return found

    def forward(self, x: Tensor, lengths: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        axis = 1 if self.batch_first else 0
        before, T, B = x, x.size(axis), x.size(1 - axis)
        own = self.lengths(lengths, T)
        h, c = self.h.expand(-1, B, -1), self.c.expand(-1, B, -1)
        if self.states_from == "given":
            h, c = h * states[self.number], c * states[self.number]
        if self.states_from == "computed":
            h, c = torch.tanh(h + x.mean()), h + c
        h, c = h.contiguous(), c.contiguous()
        if self.packed:
            p = pack_padded_sequence(x, own, batch_first=self.batch_first, enforce_sorted=self.sorts)
            if self.lstm:
                if self.states_from == "none":
                    out, (h, c) = self.rnn(p)
                else:
                    out, (h, c) = self.rnn(p, (h, c))
            elif self.states_from == "none":
                out, h = self.rnn(p)
            else:
                out, h = self.rnn(p, h)
            y, _ = pad_packed_sequence(out, batch_first=self.batch_first, total_length=T)
        elif self.lstm:
            if self.states_from == "none":
                y, (h, c) = self.rnn(x)
            else:
                y, (h, c) = self.rnn(x, (h, c))
        elif self.states_from == "none":
            y, h = self.rnn(x)
        else:
            y, h = self.rnn(x, h)
        if self.what_follows == "tanh":
            y = torch.tanh(y)
        if self.what_follows == "linear":
            y = self.linear(y)
        if self.what_follows == "skip":
            y = y + before
        return y, h, c


class Stack(nn.Module):
    """All layers of a case."""

    __constants__ = ["batch_first"]

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(case.seed)
        steps, size = [], case.size
        for number, layer in enumerate(case.layers):
            steps.append(Step(layer, size, case.batch_first, case.T, case.B, number))
            size = steps[-1].features
        self.steps = nn.ModuleList(steps)
        self.batch_first = case.batch_first

    def forward(self, x: Tensor, lengths: Tensor, states: Tensor) -> list[Tensor]:
        results: list[Tensor] = []
        for step in self.steps:
            x, h, _ = step(x, lengths, states)
            if step.last == "step":
                results.append(x[:, -1] if self.batch_first else x[-1])
            if step.last == "states":
                results.append(h)
        results.append(x)
        return results

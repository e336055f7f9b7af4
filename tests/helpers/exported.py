"""Targets that run here, and models to export."""

from __future__ import annotations

import numpy as np
from random_stacks import WIDTH, Stack

import fastlstm
from fastlstm.export.routes import ROUTES, TESTED
from fastlstm.target.machine import lacks

__all__ = ["RUN", "WEB", "late", "recurrent"]

WEB = ("wasm32", "wasm32-simd")
RUN = [t for t in TESTED if t in WEB or any(way.emulators or not lacks(way.level) for way in ROUTES[t])]
"""The targets whose code this machine runs: all that a row says are tested, less AVX-512 and VNNI where it has none."""


def recurrent(cell: str, units: int, inputs: int = 1) -> fastlstm.Model:
    """Return a recurrent layer and Linear(units -> 1) with random weights."""
    rng = np.random.default_rng(units)
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell]
    shapes = {
        f"{cell}.weight_ih_l0": (gates * units, inputs),
        f"{cell}.weight_hh_l0": (gates * units, units),
        f"{cell}.bias_ih_l0": (gates * units,),
        f"{cell}.bias_hh_l0": (gates * units,),
        "head.weight": (1, units),
        "head.bias": (1,),
    }
    weights = {name: rng.uniform(-0.3, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    return fastlstm.from_state_dict(weights, layers=f"{cell} | linear")


def late() -> fastlstm.Model:
    """Return a stream that takes two frames a step and looks ahead, before its recurrent layer and behind it."""
    stack = Stack(1)
    weights = [stack.weight(WIDTH, WIDTH, 4), stack.weight(WIDTH), stack.weight(WIDTH, WIDTH, 3), stack.weight(WIDTH)]
    stack.last = stack.add("Conv", stack.last, *weights[:2], kernel_shape=[4], pads=[1, 1], strides=[2])
    stack.recurrent()
    stack.last = stack.add("Conv", stack.last, *weights[2:], kernel_shape=[3], pads=[1, 1])
    return fastlstm.Model(stack.graph())

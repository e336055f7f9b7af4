"""Sigmoid, tanh and the other activations against double precision."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm.conformance import ulp
from fastlstm.operators.activations import ACTIVATIONS, activation
from fastlstm.program import layout
from fastlstm.program.program import Instruction, Program, Slot, Stage
from fastlstm.runtime.program import BoundProgram
from fastlstm.target import machine


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh"])
def test_sigmoid_and_tanh_are_within_two_ulp(name: str) -> None:
    run = ulp.Mapped(name)
    worst = (0.0, 0.0)
    # Every 997th block of 65,536 neighbouring floats: all exponents, both signs, infinities and NaNs.
    for block in [*range(0, 1 << 16, 997), 0x3D00, 0x3E7F, 0x3E80, 0x3E8F, 0x7F80, 0xC085, 0xC090, 0xFF80]:
        bits = np.arange(ulp.BLOCK, dtype=np.uint32) + np.uint32(block * ulp.BLOCK)
        worst = max(worst, ulp.largest_error(name, run, bits.view(np.float32)))
    assert worst[0] <= 2.0, f"{worst[0]:.3f} ulp at {worst[1]!r}"


def test_the_ulp_count_sees_an_error_of_three_ulp() -> None:
    x = np.full(ulp.BLOCK, 0.5, np.float32)
    right = ulp.exact("Tanh", x).astype(np.float32)
    error, _ = ulp.largest_error("Tanh", lambda _: right + 3 * np.spacing(right), x)  # type: ignore[arg-type]
    assert 2.4 < error < 3.6


def test_tanh_is_odd() -> None:
    run = ulp.Mapped("Tanh")
    x = np.random.default_rng(0).standard_normal(ulp.BLOCK).astype(np.float32) * 3
    np.testing.assert_array_equal(run(-x), -run(x))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_agrees_with_the_reference(name: str) -> None:
    lanes = machine.detect().lanes
    alpha, beta = ACTIVATIONS[name].defaults
    x = np.linspace(-12, 12, 64 * lanes, dtype=np.float32)
    y = np.empty_like(x)
    slots = (Slot("x", "external", x.size), Slot("y", "external", x.size))
    step = Instruction("elementwise.unary", (lanes, name, alpha, beta), (0, 1, 64))
    program = BoundProgram(Program(machine.detect(), slots, (Stage(layout.ONCE, (step,)),)), batch=1)
    program.bind(0, x, None, None)
    program.bind(1, y, None, None)
    program.run(1)
    expected = activation(name, alpha, beta)(x.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)  # a few float32 roundings

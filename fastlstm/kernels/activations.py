"""Activations on SIMD vectors.

Sigmoid and tanh are within 2 ulp for all float32 inputs (``python -m fastlstm.conformance.ulp`` tries them all). Tanh
is odd and never exceeds 1, small arguments keep their relative accuracy, and a NaN stays a NaN.

They rest on one expansion. With y = n * ln 2 + r, n an integer and ``|r| <= ln(2) / 2``,

    exp(y) - 1 = 2**n * (exp(r) - 1) + (2**n - 1),      exp(r) - 1 = r + r**2 * q(r)

where q is a polynomial of degree 4, the minimax fit of (exp(r) - 1 - r) / r**2 for the relative error of exp(r) - 1
(0.22 units of 2**-24). ln 2 is subtracted in two parts, so that r is exact to its last bit; n is in the low bits of
y / ln 2 + 1.5 * 2**23. Results below the smallest normal number are zero.

The operators' own vector functions (`fastlstm.operators.definition.Function`) are built from the names defined here and
those imported from `fastlstm.kernels.simd`.
"""

from __future__ import annotations

import sys
from functools import cache
from types import FunctionType
from typing import Any

from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import (
    fma,
    pow2_low,
    splat,
    vabs,
    vcopysign,
    vfloor,
    vmax,
    vmin,
    vsqrt,
    where_less,
    where_negative,
)
from fastlstm.operators import OPERATORS, Function, Operation
from fastlstm.operators.activations import ACTIVATIONS

__all__ = ["activation", "bounded", "clipping", "exp", "operation", "vfloor", "vsqrt"]

MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low bits
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693145751953125  # ln 2 to 16 bits, so that n * LN2_HIGH is exact
LN2_LOW = 1.4286068203094172e-06
Q0, Q1, Q2, Q3, Q4 = 0.49999998, 0.16666543, 0.0416672, 0.00836655, 0.00138825
LARGEST_EXPONENT = 88.0  # exp(-88) is below the smallest normal number
LARGEST = 3.4028234663852886e38
TANH_SMALL = 0.28
TANH_SMALL_0, TANH_SMALL_1, TANH_SMALL_2 = -0.33333152795775906, 0.13319230137904703, -0.05081582289190017
TANH_IS_ONE = 9.02  # tanh of anything larger rounds to 1


@inlined
def _expm1_reduced(r):
    """exp(r) - 1 for |r| <= ln(2) / 2."""
    square = r * r
    high = fma(fma(splat(r, Q4), r, splat(r, Q3)), r, splat(r, Q2))
    return fma(square, fma(square, high, fma(splat(r, Q1), r, splat(r, Q0))), r)


@inlined
def _reduce(y, shifted):
    """Y - n * ln 2 with shifted = n + MAGIC."""
    n = shifted - splat(y, MAGIC)
    return fma(n, splat(y, -LN2_HIGH), y) - n * splat(y, LN2_LOW)


@inlined
def _exp_negative(a):
    """exp(-a) for 0 <= a <= LARGEST_EXPONENT."""
    shifted = fma(a, splat(a, -LOG2_E), splat(a, MAGIC))
    power = pow2_low(shifted)
    return fma(_expm1_reduced(_reduce(splat(a, 0.0) - a, shifted)), power, power)


@inlined
def sigmoid(x):
    """1 / (1 + exp(-x)), as e / (1 + e) with e = exp(x) for negative x.

    The rounding error of 1 + e is known exactly, and the quotient is corrected for it: without, the error is 2.4 ulp.
    """
    a = vmin(splat(x, LARGEST_EXPONENT), vabs(x))
    one = splat(x, 1.0)
    shifted = fma(a, splat(x, -LOG2_E), splat(x, MAGIC))
    power = pow2_low(shifted)
    rest = _expm1_reduced(_reduce(splat(x, 0.0) - a, shifted))
    e = fma(rest, power, power)
    total = fma(rest, power, one + power)
    quotient = where_negative(x, e, one) / total
    return fma(quotient, (total - one) - e, quotient)


@inlined
def tanh(x):
    """em1 / (em1 + 2) with em1 = exp(2 |x|) - 1, and the sign of x.

    Below 0.28 the sum em1 + 2 would add half an ulp, so x + x**3 * p(x**2), a minimax fit, is used there.
    """
    v = x * x
    p = fma(splat(x, TANH_SMALL_2), v, splat(x, TANH_SMALL_1))
    p = fma(p, v, splat(x, TANH_SMALL_0))
    small = fma(x * v, p, x)
    a = vmin(splat(x, TANH_IS_ONE), vabs(x))
    shifted = fma(a, splat(x, 2.0 * LOG2_E), splat(x, MAGIC))
    r = _reduce(a + a, shifted)
    power = pow2_low(shifted)
    em1 = fma(_expm1_reduced(r), power, power - splat(x, 1.0))
    return where_less(a, splat(x, TANH_SMALL), small, vcopysign(em1 / (em1 + splat(x, 2.0)), x))


@inlined
def exp(x):
    """exp(x); infinite above 88.7, zero below -87.3."""
    y = vmax(splat(x, -104.0), vmin(splat(x, 89.0), x))
    shifted = fma(y, splat(x, LOG2_E), splat(x, MAGIC))
    n = shifted - splat(x, MAGIC)
    # 2**n may be out of the range of floats even if the result is not: it is applied in two halves.
    shifted_half = fma(n, splat(x, 0.5), splat(x, MAGIC))
    rest = n - (shifted_half - splat(x, MAGIC))
    e = _expm1_reduced(_reduce(y, shifted)) + splat(x, 1.0)
    return e * pow2_low(shifted_half) * pow2_low(rest + splat(x, MAGIC))


@inlined
def softsign(x):
    """X / (1 + |x|); infinities are clamped to the largest number and give 1 and -1."""
    y = vmax(splat(x, -LARGEST), vmin(splat(x, LARGEST), x))
    return y / (splat(x, 1.0) + vabs(y))


@inlined
def expm1_negative(x):
    """exp(x) - 1 for x <= 0, without cancellation."""
    y = vmax(splat(x, -LARGEST_EXPONENT), x)
    shifted = fma(y, splat(x, LOG2_E), splat(x, MAGIC))
    r = _reduce(y, shifted)
    power = pow2_low(shifted)
    return fma(_expm1_reduced(r), power, power - splat(x, 1.0))


@inlined
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(u), u = exp(-|x|), log1p(u) = 2 atanh(u / (2 + u)).

    atanh(s) = s + s**3 * p(s**2), p the minimax fit on [0, 1/3] (0.002 units of 2**-24).
    """
    u = _exp_negative(vmin(splat(x, LARGEST_EXPONENT), vabs(x)))
    s = u / (splat(x, 2.0) + u)
    v = s * s
    p = fma(splat(x, 0.12150463548166693), v, splat(x, 0.10713830023633761))
    p = fma(p, v, splat(x, 0.14308442283362782))
    p = fma(p, v, splat(x, 0.19999438876482536))
    p = fma(p, v, splat(x, 0.3333333781092851))
    atanh = fma(s * v, p, s)
    return vmax(splat(x, 0.0), x) + (atanh + atanh)


@inlined
def erf(x):
    """The error function: odd polynomial below 1, 1 - exp(polynomial) above; both minimax fits."""
    a = vmin(splat(x, 4.0), vabs(x))
    v = a * a
    small = fma(splat(x, 7.853854575869124e-05), v, splat(x, -0.0008010191661700916))
    small = fma(small, v, splat(x, 0.005188327465949563))
    small = fma(small, v, splat(x, -0.026853811812705797))
    small = fma(small, v, splat(x, 0.11283585144993269))
    small = fma(small, v, splat(x, -0.37612625823732293))
    small = fma(small, v, splat(x, 1.1283791657266145))
    t = a - splat(x, 2.0)
    large = fma(splat(x, 0.00018677421686041917), t, splat(x, -0.0007105599687831088))
    large = fma(large, t, splat(x, 0.0035441588095666))
    large = fma(large, t, splat(x, -0.0164882250660372))
    large = fma(large, t, splat(x, -0.9237535567278281))
    large = fma(large, t, splat(x, -4.418159369102823))
    large = fma(large, t, splat(x, -5.364941041024999))
    large = splat(x, 1.0) - _exp_negative(vmax(splat(x, 0.0), splat(x, 0.0) - large))
    return vcopysign(where_less(a, splat(x, 1.0), a * small, large), x)


def bounded(*activations: tuple[Any, ...]) -> bool:
    """Return whether the values of all activations, each a name and its parameters, lie in [-1, 1]."""
    return all(ACTIVATIONS[name].bounded for name, *_ in activations)


@cache
def activation(name: str, alpha: float | None = None, beta: float | None = None) -> Any:
    """Return the function Vec -> Vec of an activation or of another elementwise operator."""
    function = ACTIVATIONS[name].function if name in ACTIVATIONS else OPERATORS[name].lowering
    assert isinstance(function, Function)
    given = (alpha, beta)[: len(function.parameters)]
    return compiled(function.vector(sys.modules[__name__], *given))


@cache
def operation(name: str) -> Any:
    """Return the function of two vectors of a binary elementwise operator."""
    lowering = OPERATORS[name].lowering
    assert isinstance(lowering, Operation)
    return compiled(lowering.vector(sys.modules[__name__]))


def compiled(function: Any) -> Any:
    """Return a function as a helper of kernels, unless it is one already."""
    return inlined(function) if isinstance(function, FunctionType) else function


def clipping(bound: float | None) -> Any:
    """Return the function that clips a sum to [-bound, bound], or one that leaves it unchanged."""
    if bound is None:

        @inlined
        def unbounded(x):
            return x

        return unbounded

    @inlined
    def bounded(x):
        return vmax(splat(x, -bound), vmin(splat(x, bound), x))

    return bounded

"""Activation functions, element by element, as ONNX defines them (with Keras's additions).

Each keeps the dtype of its input, NaN stays NaN, and nothing overflows on the way to a finite result. Beside its
meaning in NumPy stands its function of vectors, which kernels compile: see `Function` in `operator.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastlstm.operators.arithmetic import broadcast
from fastlstm.operators.definition import RARE, Function, Operation, Operator, Stream, table
from fastlstm.operators.rules import same
from fastlstm.typing import Array

__all__ = ["ACTIVATIONS", "OPERATORS", "Activation", "activation"]

_exact_erf = np.frompyfunc(math.erf, 1, 1)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), computed from exp(-|x|) so that it never overflows."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def relu(x: Array) -> Array:
    """Return max(x, 0)."""
    return np.asarray(np.maximum(x, x.dtype.type(0)))


def affine(x: Array, *, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """Return alpha * x + beta."""
    return (alpha * x + beta).astype(x.dtype)


def leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    """Return x where it is positive, else alpha * x."""
    return np.where(x < 0, alpha * x, x).astype(x.dtype)


def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """Return x where it is greater than alpha, else 0."""
    return np.where(x <= alpha, 0, x).astype(x.dtype)


def scaled_tanh(x: Array, *, alpha: float = 1.0, beta: float = 1.0) -> Array:
    """Return alpha * tanh(beta * x)."""
    return (alpha * np.tanh(beta * x)).astype(x.dtype)


def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """Return alpha * x + beta, held between 0 and 1."""
    return np.clip(alpha * x + beta, 0, 1).astype(x.dtype)


def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """Return x where it is positive, else alpha * (exp(x) - 1)."""
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x).astype(x.dtype)


def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """Return max(x, 0) + min(0, alpha * (exp(x / alpha) - 1))."""
    return (np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha))).astype(x.dtype)


def selu(x: Array, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Array:
    """Return gamma * elu(x, alpha)."""
    return (gamma * elu(x, alpha=alpha)).astype(x.dtype)


def softsign(x: Array) -> Array:
    """Return x / (1 + abs(x)); 1 and -1 at the infinities."""
    return np.asarray(np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x))), dtype=x.dtype)


def softplus(x: Array) -> Array:
    """Return log(1 + exp(x))."""
    return np.asarray(np.logaddexp(x, x.dtype.type(0)))


def tanh(x: Array) -> Array:
    """Return the hyperbolic tangent."""
    return np.asarray(np.tanh(x))


def exponential(x: Array) -> Array:
    """Return exp(x)."""
    return np.asarray(np.exp(x))


def linear(x: Array) -> Array:
    """Return x."""
    return x


def erf(x: Array) -> Array:
    """Return the error function."""
    return np.asarray(_exact_erf(x), dtype=x.dtype)


def gelu(x: Array) -> Array:
    """Return x * Phi(x), Phi the normal distribution's cumulative function."""
    return np.asarray(np.where(np.isneginf(x), 0, 0.5 * x * (1 + erf(x / math.sqrt(2)))), dtype=x.dtype)


def gelu_tanh(x: Array) -> Array:
    """Return gelu with tanh in place of erf (Hendrycks and Gimpel, 2016)."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray(np.where(np.isneginf(x), 0, 0.5 * x * (1 + np.tanh(inner))), dtype=x.dtype)


def silu(x: Array, *, alpha: float = 1.0) -> Array:
    """Return x * sigmoid(alpha * x); 0 where the sigmoid of an infinity is."""
    gate = sigmoid(alpha * x)
    return np.where(np.isinf(x) & (gate == 0), 0, x * gate).astype(x.dtype)


def hard_swish(x: Array) -> Array:
    """Return x * hard_sigmoid(x, 1/6, 0.5)."""
    return np.asarray(x * hard_sigmoid(x, alpha=1 / 6, beta=0.5))


def mish(x: Array) -> Array:
    """Return x * tanh(softplus(x)); 0 at negative infinity."""
    return np.asarray(np.where(np.isneginf(x), 0, x * np.tanh(softplus(x))), dtype=x.dtype)


def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Array:
    """Return x moved towards 0 by `bias` where abs(x) > lambd, else 0."""
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)).astype(x.dtype)


def prelu(x: Array, slope: Array) -> Array:
    """Return x where it is positive, else slope * x."""
    return np.where(x < 0, slope * x, x).astype(x.dtype)


def _gelu_op(x: Array, *, approximate: Literal["none", "tanh"] = "none") -> Array:
    return {"none": gelu, "tanh": gelu_tanh}[approximate](x)


@dataclass(frozen=True)
class Activation:
    """An activation that a recurrent layer may carry.

    Attributes
    ----------
    compute : callable
        Its meaning: a function of x, and of its parameters by keyword.
    function : Function
        The same for kernels, with its parameters and their defaults.
    bounded : bool
        Whether it stays within [-1, 1].
    """

    compute: Callable[..., Array]
    function: Function
    bounded: bool = False

    @property
    def defaults(self) -> tuple[float | None, float | None]:
        """The alpha and beta that a layer has if it does not say them; None for those that it does not take."""
        first, second = [*(default for _, default in self.function.parameters), None, None][:2]
        return first, second


NOTHING_BELOW = -104.0  # gelu, silu and mish of less are zero, of -infinity too


def _thresholded(v: Any, alpha: float) -> Any:
    def thresholded(x):  # type: ignore[no-untyped-def]
        zero_or_nan = v.vmax(v.splat(x, 0.0), v.vmin(v.splat(x, 0.0), x))
        return v.where_less(v.splat(x, alpha), x, x, zero_or_nan)

    return thresholded


def _scaled_elu(v: Any, alpha: float, gamma: float) -> Any:
    def scaled(x):  # type: ignore[no-untyped-def]
        low = v.splat(x, alpha) * v.expm1_negative(v.vmin(v.splat(x, 0.0), x))
        return v.splat(x, gamma) * v.where_less(x, v.splat(x, 0.0), low, x)

    return scaled


def _swish_vector(v: Any, alpha: float) -> Any:
    def plain(x):  # type: ignore[no-untyped-def]
        return v.vmax(v.splat(x, NOTHING_BELOW), x) * v.sigmoid(x)

    def steeper(x):  # type: ignore[no-untyped-def]
        return v.vmax(v.splat(x, NOTHING_BELOW / alpha), x) * v.sigmoid(v.splat(x, alpha) * x)

    def falling(x):  # type: ignore[no-untyped-def]
        return v.vmin(v.splat(x, NOTHING_BELOW / alpha), x) * v.sigmoid(v.splat(x, alpha) * x)

    def halved(x):  # type: ignore[no-untyped-def]
        return x * v.splat(x, 0.5)

    return plain if alpha == 1.0 else steeper if alpha > 0 else falling if alpha < 0 else halved


def _gelu_vector(v: Any) -> Any:
    def exact(x):  # type: ignore[no-untyped-def]
        y = v.vmax(v.splat(x, NOTHING_BELOW), x)
        half = y * v.splat(x, 0.5)
        return v.fma(half, v.erf(y * v.splat(x, 0.7071067811865476)), half)

    return exact


def _gelu_tanh_vector(v: Any) -> Any:
    def approximate(x):  # type: ignore[no-untyped-def]
        x = v.vmax(v.splat(x, NOTHING_BELOW), x)
        inner = v.fma(x * x * x, v.splat(x, 0.044715), x) * v.splat(x, 0.7978845608028654)
        half = x * v.splat(x, 0.5)
        return v.fma(half, v.tanh(inner), half)

    return approximate


ACTIVATIONS: Mapping[str, Activation] = {
    "Sigmoid": Activation(sigmoid, Function(lambda v: v.sigmoid), bounded=True),
    "Tanh": Activation(tanh, Function(lambda v: v.tanh), bounded=True),
    "Relu": Activation(relu, Function(lambda v: lambda x: v.vmax(v.splat(x, 0.0), x))),
    "Affine": Activation(
        affine,
        Function(
            lambda v, alpha, beta: lambda x: v.fma(x, v.splat(x, alpha), v.splat(x, beta)),
            (("alpha", 1.0), ("beta", 0.0)),
        ),
    ),
    "LeakyRelu": Activation(
        leaky_relu,
        Function(
            lambda v, alpha: lambda x: v.where_less(x, v.splat(x, 0.0), x * v.splat(x, alpha), x),
            (("alpha", 0.01),),
        ),
    ),
    "ThresholdedRelu": Activation(thresholded_relu, Function(_thresholded, (("alpha", 1.0),))),
    "ScaledTanh": Activation(
        scaled_tanh,
        Function(
            lambda v, alpha, beta: lambda x: v.splat(x, alpha) * v.tanh(v.splat(x, beta) * x),
            (("alpha", 1.0), ("beta", 1.0)),
        ),
    ),
    "HardSigmoid": Activation(
        hard_sigmoid,
        Function(
            lambda v, alpha, beta: (
                lambda x: v.vmax(
                    v.splat(x, 0.0), v.vmin(v.splat(x, 1.0), v.fma(x, v.splat(x, alpha), v.splat(x, beta)))
                )
            ),
            (("alpha", 0.2), ("beta", 0.5)),
        ),
        bounded=True,
    ),
    "Elu": Activation(
        elu,
        Function(
            lambda v, alpha: (
                lambda x: v.where_less(
                    x, v.splat(x, 0.0), v.splat(x, alpha) * v.expm1_negative(v.vmin(v.splat(x, 0.0), x)), x
                )
            ),
            (("alpha", 1.0),),
        ),
    ),
    "Softsign": Activation(softsign, Function(lambda v: v.softsign), bounded=True),
    "Softplus": Activation(softplus, Function(lambda v: v.softplus)),
    "Linear": Activation(linear, Function(lambda _: lambda x: x)),
    "Selu": Activation(selu, Function(_scaled_elu, (("alpha", 1.6732632423543772), ("gamma", 1.0507009873554805)))),
    "Gelu": Activation(gelu, Function(_gelu_vector)),
    "GeluTanh": Activation(gelu_tanh, Function(_gelu_tanh_vector)),
    "Silu": Activation(silu, Function(lambda v: _swish_vector(v, 1.0))),
    "Mish": Activation(
        mish, Function(lambda v: lambda x: v.vmax(v.splat(x, NOTHING_BELOW), x) * v.tanh(v.softplus(x)))
    ),
    "Exp": Activation(exponential, Function(lambda v: v.exp)),
}
"""The activations that a recurrent layer may carry."""


def activation(name: str, alpha: float | None = None, beta: float | None = None) -> Callable[[Array], Array]:
    """Return the named activation of a recurrent layer as a function of x alone.

    A parameter that is None takes its default.
    """
    found = ACTIVATIONS[name]
    given = zip((alpha, beta), found.function.parameters, strict=False)
    parameters = {key: default if value is None else value for value, (key, default) in given}
    return lambda x: found.compute(x, **parameters)


_IN_GRAPHS = (
    "Sigmoid", "Tanh", "Relu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid", "Elu", "Selu", "Softsign", "Softplus",
    "Mish",
    "Exp",
)  # fmt: skip
"""Activations that are operators of graphs too, with the same name and parameters."""


def _each(name: str, compute: Callable[..., Array], lowering: Function | str) -> Operator:
    return Operator(name, compute, same, lowering, Stream.ELEMENTS)


OPERATORS = table(
    *(_each(name, ACTIVATIONS[name].compute, ACTIVATIONS[name].function) for name in _IN_GRAPHS),
    _each("Celu", celu, RARE),
    _each("Erf", erf, Function(lambda v: v.erf)),
    _each("Gelu", _gelu_op, Function(_gelu_vector, rows=False)),
    _each("Swish", silu, Function(_swish_vector, (("alpha", 1.0),))),
    _each(
        "HardSwish",
        hard_swish,
        Function(
            lambda v: (
                lambda x: x * v.vmin(v.splat(x, 1.0), v.vmax(v.splat(x, 0.0), x / v.splat(x, 6.0) + v.splat(x, 0.5)))
            ),
            rows=False,
        ),
    ),
    _each("Shrink", shrink, RARE),
    broadcast("PRelu", prelu, Operation(lambda v: lambda x, slope: v.where_negative(x, x * slope, x), rows=False)),
)

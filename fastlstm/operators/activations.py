"""Activation functions, element by element, as ONNX defines them (with Keras's additions).

Each keeps the dtype of its input, NaN stays NaN, and nothing overflows on the way to a finite result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import ACTIVATIONS

__all__ = ["FUNCTIONS", "OPS", "activation"]

Array = npt.NDArray[Any]

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
    """Return x * tanh(softplus(x))."""
    return np.asarray(x * np.tanh(softplus(x)))


def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Array:
    """Return x moved towards 0 by `bias` where abs(x) > lambd, else 0."""
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)).astype(x.dtype)


def prelu(x: Array, slope: Array) -> Array:
    """Return x where it is positive, else slope * x."""
    return np.where(x < 0, slope * x, x).astype(x.dtype)


def _gelu_op(x: Array, *, approximate: str = "none") -> Array:
    return {"none": gelu, "tanh": gelu_tanh}[approximate](x)


FUNCTIONS: Mapping[str, Callable[..., Array]] = {
    "Sigmoid": sigmoid,
    "Tanh": tanh,
    "Relu": relu,
    "Affine": affine,
    "LeakyRelu": leaky_relu,
    "ThresholdedRelu": thresholded_relu,
    "ScaledTanh": scaled_tanh,
    "HardSigmoid": hard_sigmoid,
    "Elu": elu,
    "Softsign": softsign,
    "Softplus": softplus,
    "Linear": linear,
    "Selu": lambda x, *, alpha, beta: selu(x, alpha=alpha, gamma=beta),
    "Gelu": gelu,
    "GeluTanh": gelu_tanh,
    "Silu": silu,
    "Exp": lambda x: np.asarray(np.exp(x)),
}
"""The activations of `fastlstm.graph.ACTIVATIONS`: name to function of x and the parameters it takes."""


def activation(name: str, alpha: float | None = None, beta: float | None = None) -> Callable[[Array], Array]:
    """Return the named activation of a recurrent layer as a function of x alone.

    A parameter that is None takes the default of `fastlstm.graph.ACTIVATIONS`.
    """
    given = zip(("alpha", "beta"), (alpha, beta), ACTIVATIONS[name], strict=True)
    parameters = {key: default if value is None else value for key, value, default in given if default is not None}
    function = FUNCTIONS[name]
    return lambda x: function(x, **parameters)


OPS: Mapping[str, Callable[..., Any]] = {
    "Sigmoid": sigmoid,
    "Tanh": tanh,
    "Relu": relu,
    "LeakyRelu": leaky_relu,
    "ThresholdedRelu": thresholded_relu,
    "HardSigmoid": hard_sigmoid,
    "Elu": elu,
    "Celu": celu,
    "Selu": selu,
    "Softsign": softsign,
    "Softplus": softplus,
    "Erf": erf,
    "Gelu": _gelu_op,
    "Swish": silu,
    "HardSwish": hard_swish,
    "Mish": mish,
    "Shrink": shrink,
    "PRelu": prelu,
}

"""Keras's activations by name, as nodes of their own and inside recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fastlstm.converters.keras.config import class_and_config, is_custom
from fastlstm.converters.keras.tensor import Emitter, Tensor
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.operators.activations import ACTIVATIONS

__all__ = ["ACTIVATION_NAMES", "RECURRENT_NAMES", "activation", "activation_name", "recurrent_activation"]

_SINGLE: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "tanh": ("Tanh", {}),
        "sigmoid": ("Sigmoid", {}),
        "relu": ("Relu", {}),
        "leaky_relu": ("LeakyRelu", {"alpha": 0.2}),
        "elu": ("Elu", {"alpha": 1.0}),
        "celu": ("Elu", {"alpha": 1.0}),
        "selu": ("Selu", {}),
        "softplus": ("Softplus", {}),
        "softsign": ("Softsign", {}),
        "gelu": ("Gelu", {"approximate": "none"}),
        "exponential": ("Exp", {}),
        "softmax": ("Softmax", {"axis": -1}),
        "log_softmax": ("LogSoftmax", {"axis": -1}),
        "mish": ("Mish", {}),
    }
)

_INSIDE: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {"linear": ("Linear", {}), "silu": ("Silu", {}), "swish": ("Silu", {})}
)
"""Activations of recurrent layers that are no operators of graphs."""

_RECURRENT: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {name: (op, attrs) for name, (op, attrs) in {**_SINGLE, **_INSIDE}.items() if op in ACTIVATIONS}
)


def _silu(emit: Emitter, x: Tensor) -> Tensor:
    return emit.like("Mul", x, emit.like("Sigmoid", x))


def _relu6(emit: Emitter, x: Tensor) -> Tensor:
    return emit.like("Clip", x, emit.number(0.0), emit.number(6.0))


def _hard_silu(emit: Emitter, x: Tensor) -> Tensor:
    return emit.like("Mul", x, emit.like("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def _hard_tanh(emit: Emitter, x: Tensor) -> Tensor:
    return emit.like("Clip", x, emit.number(-1.0), emit.number(1.0))


def _log_sigmoid(emit: Emitter, x: Tensor) -> Tensor:
    return emit.like("Neg", emit.like("Softplus", emit.like("Neg", x)))


def _tanh_shrink(emit: Emitter, x: Tensor) -> Tensor:
    return emit.like("Sub", x, emit.like("Tanh", x))


def _hard_shrink(emit: Emitter, x: Tensor) -> Tensor:
    near = emit.node("LessOrEqual", emit.like("Abs", x), emit.number(0.5), shape=x.shape, dtype="bool")
    return emit.like("Sub", x, emit.node("Where", near, x, emit.number(0.0), shape=x.shape))


def _soft_shrink(emit: Emitter, x: Tensor) -> Tensor:
    return emit.like("Sub", x, emit.like("Clip", x, emit.number(-0.5), emit.number(0.5)))


def _square_plus(emit: Emitter, x: Tensor) -> Tensor:
    root = emit.like("Sqrt", emit.like("Add", emit.like("Mul", x, x), emit.number(4.0)))
    return emit.like("Mul", emit.like("Add", x, root), emit.number(0.5))


def _sparse_plus(emit: Emitter, x: Tensor) -> Tensor:
    """Return 0 below -1, x above 1 and (x + 1)^2 / 4 in between."""
    bent = emit.like("Add", emit.like("Clip", x, emit.number(-1.0), emit.number(1.0)), emit.number(1.0))
    quarter = emit.like("Mul", emit.like("Mul", bent, bent), emit.number(0.25))
    return emit.like("Add", quarter, emit.like("Relu", emit.like("Sub", x, emit.number(1.0))))


def _gated(emit: Emitter, x: Tensor) -> Tensor:
    """Return the first half of the features times the sigmoid of the second."""
    size = x.size(-1, "The activation 'glu'")
    if size % 2:
        raise FileFormatError(f"The activation 'glu' needs an even number of features; got {size}.")
    half, last = size // 2, emit.ints([x.rank - 1])
    a, b = (
        emit.node("Slice", x, emit.ints([begin]), emit.ints([begin + half]), last, shape=(*x.shape[:-1], half))
        for begin in (0, half)
    )
    return emit.like("Mul", a, emit.like("Sigmoid", b))


_COMPOSED: Mapping[str, Callable[[Emitter, Tensor], Tensor]] = MappingProxyType(
    {
        "silu": _silu,
        "swish": _silu,
        "relu6": _relu6,
        "hard_silu": _hard_silu,
        "hard_swish": _hard_silu,
        "hard_tanh": _hard_tanh,
        "log_sigmoid": _log_sigmoid,
        "tanh_shrink": _tanh_shrink,
        "hard_shrink": _hard_shrink,
        "soft_shrink": _soft_shrink,
        "squareplus": _square_plus,
        "sparse_plus": _sparse_plus,
        "glu": _gated,
    }
)

ACTIVATION_NAMES: tuple[str, ...] = tuple(sorted({"linear", "hard_sigmoid", *_SINGLE, *_COMPOSED}))
"""The names that `activation` knows."""

RECURRENT_NAMES: tuple[str, ...] = tuple(sorted([*_RECURRENT, "hard_sigmoid"]))
"""The names that `recurrent_activation` knows."""


def activation_name(spec: Any, label: str) -> str:
    """Return the name of a serialised activation function.

    Raises
    ------
    UnsupportedError
        If it is a function of the user's own.
    """
    if spec is None:
        return "linear"
    if isinstance(spec, dict):
        name = spec.get("config")
        if not isinstance(name, str) or is_custom(spec) or spec.get("module") == "builtins":
            what = name if isinstance(name, str) else spec.get("class_name")
            raise UnsupportedError(
                f"{label}: the activation '{what}' is a function of your own, which a file cannot say. If it is a "
                f"known one under another name, say which: custom_objects={{'{what}': 'silu'}}. Else export the model "
                "to ONNX, which writes it out: model.export('model.onnx', format='onnx')."
            )
        return name
    return str(spec)


def activation(emit: Emitter, x: Tensor, spec: Any, label: str, major: int) -> Tensor:
    """Apply a serialised activation function to `x`.

    Parameters
    ----------
    major : int
        Keras's major version: it decides about hard_sigmoid.

    Raises
    ------
    UnsupportedError
        If the activation is not known.
    """
    name = activation_name(spec, label)
    if name == "linear":
        return x
    x = emit.floats(x)
    if name == "hard_sigmoid":
        alpha, beta = hard_sigmoid(major)
        return emit.like("HardSigmoid", x, alpha=alpha, beta=beta)
    if name in _SINGLE:
        op, attrs = _SINGLE[name]
        return emit.like(op, x, **attrs)
    if name in _COMPOSED:
        return _COMPOSED[name](emit, x).with_mask(x.mask)
    raise UnsupportedError(
        f"{label}: the activation '{name}' is not supported; supported: {', '.join(ACTIVATION_NAMES)}."
    )


def recurrent_activation(spec: Any, label: str, major: int) -> list[Any]:
    """Return a serialised activation function as an entry of a recurrent node's ``activations``.

    Raises
    ------
    UnsupportedError
        If it cannot stand inside a recurrent layer.
    """
    name = activation_name(spec, label)
    if name == "hard_sigmoid":
        return ["HardSigmoid", *hard_sigmoid(major)]
    if name not in _RECURRENT:
        raise UnsupportedError(
            f"{label}: the activation '{name}' is not supported inside a recurrent layer; "
            f"supported: {', '.join(RECURRENT_NAMES)}."
        )
    op, attrs = _RECURRENT[name]
    alpha, beta = [*(attrs.get(key) for key, _ in ACTIVATIONS[op].function.parameters), None, None][:2]
    return [op, alpha, beta]


def hard_sigmoid(major: int) -> tuple[float, float]:
    """Return slope and offset of hard_sigmoid: Keras 2 has 0.2x + 0.5, Keras 3 has x/6 + 0.5."""
    return (0.2, 0.5) if major == 2 else (1 / 6, 0.5)


def wrapped_layer(spec: Any) -> tuple[str, dict[str, Any]] | None:
    """Return class and configuration if an activation is given as a whole layer, such as ``LeakyReLU()``."""
    if isinstance(spec, dict) and isinstance(spec.get("config"), dict):
        return class_and_config(spec, "activation")
    return None

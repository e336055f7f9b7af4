"""The functions of TensorFlow that functional models of Keras 2 hold as layers: ``x + y``, ``tf.concat``, ``x[:, -1]``.

Keras 2 keeps the name of the function (``TFOpLambda``, ``SlicingOpLambda``); what it does is public. Each is one
of Keras 3's operations with other names for its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastlstm.errors import UnsupportedError

__all__ = ["FUNCTIONS", "FUNCTION_LAYERS", "as_operation"]

FUNCTION_LAYERS = frozenset({"TFOpLambda", "SlicingOpLambda"})
"""The layers that stand for a function of TensorFlow."""

_TWO = {"x": "x1", "y": "x2"}
_REDUCED = {"input_tensor": "x", "axis": "axis", "keepdims": "keepdims"}

FUNCTIONS: Mapping[str, tuple[str, Mapping[str, str]]] = MappingProxyType(
    {
        "__operators__.getitem": ("GetItem", {"slice_spec": "key"}),
        "__operators__.add": ("Add", _TWO),
        "math.add": ("Add", _TWO),
        "math.subtract": ("Subtract", _TWO),
        "math.multiply": ("Multiply", _TWO),
        "math.truediv": ("TrueDivide", _TWO),
        "math.divide": ("TrueDivide", _TWO),
        "math.pow": ("Power", _TWO),
        "math.maximum": ("Maximum", _TWO),
        "math.minimum": ("Minimum", _TWO),
        "math.equal": ("Equal", _TWO),
        "math.not_equal": ("NotEqual", _TWO),
        "math.greater": ("Greater", _TWO),
        "math.greater_equal": ("GreaterEqual", _TWO),
        "math.less": ("Less", _TWO),
        "math.less_equal": ("LessEqual", _TWO),
        "math.logical_and": ("LogicalAnd", _TWO),
        "math.logical_or": ("LogicalOr", _TWO),
        "math.logical_not": ("LogicalNot", {"x": "x"}),
        "math.negative": ("Negative", {"x": "x"}),
        "math.abs": ("Absolute", {"x": "x"}),
        "math.exp": ("Exp", {"x": "x"}),
        "math.log": ("Log", {"x": "x"}),
        "math.sqrt": ("Sqrt", {"x": "x"}),
        "math.square": ("Square", {"x": "x"}),
        "math.sin": ("Sin", {"x": "x"}),
        "math.cos": ("Cos", {"x": "x"}),
        "math.tanh": ("Tanh", {"x": "x"}),
        "math.sigmoid": ("Sigmoid", {"x": "x"}),
        "math.softplus": ("Softplus", {"features": "x"}),
        "nn.relu": ("Relu", {"features": "x"}),
        "nn.relu6": ("Relu6", {"features": "x"}),
        "nn.selu": ("Selu", {"features": "x"}),
        "nn.silu": ("Silu", {"features": "x"}),
        "nn.softmax": ("Softmax", {"logits": "x", "axis": "axis"}),
        "nn.log_softmax": ("LogSoftmax", {"logits": "x", "axis": "axis"}),
        "math.reduce_mean": ("Mean", _REDUCED),
        "math.reduce_sum": ("Sum", _REDUCED),
        "math.reduce_max": ("Max", _REDUCED),
        "math.reduce_min": ("Min", _REDUCED),
        "math.reduce_prod": ("Prod", _REDUCED),
        "linalg.matmul": (
            "Matmul",
            {"a": "x1", "b": "x2", "transpose_a": "transpose_a", "transpose_b": "transpose_b"},
        ),
        "concat": ("Concatenate", {"values": "xs", "axis": "axis"}),
        "stack": ("Stack", {"values": "xs", "axis": "axis"}),
        "expand_dims": ("ExpandDims", {"input": "x", "axis": "axis"}),
        "squeeze": ("Squeeze", {"input": "x", "axis": "axis"}),
        "compat.v1.squeeze": ("Squeeze", {"input": "x", "axis": "axis"}),
        "transpose": ("Transpose", {"a": "x", "perm": "axes"}),
        "compat.v1.transpose": ("Transpose", {"a": "x", "perm": "axes"}),
        "reshape": ("Reshape", {"tensor": "x", "shape": "newshape"}),
        "reverse": ("Flip", {"tensor": "x", "axis": "axis"}),
        "cast": ("Cast", {"x": "x", "dtype": "dtype"}),
        "clip_by_value": ("Clip", {"t": "x", "clip_value_min": "x_min", "clip_value_max": "x_max"}),
        "where": ("Where", {"condition": "condition", "x": "x1", "y": "x2"}),
    }
)
"""By a function's name in TensorFlow: the operation of Keras 3, and its arguments' names there."""

_JOINING = ("concat", "stack")


def as_operation(function: Any, label: str, args: list[Any], kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the operation that a function of TensorFlow is, and its arguments.

    Raises
    ------
    UnsupportedError
        If the function, or an argument of it, is not supported; the message names it.
    """
    if function not in FUNCTIONS:
        raise UnsupportedError(
            f"{label}: TensorFlow's function '{function}' is not supported inside a model; supported: "
            f"{', '.join(sorted(FUNCTIONS))}. Write it with Keras's own layers, or export the model to ONNX."
        )
    operation, names = FUNCTIONS[function]
    renamed: dict[str, Any] = {"args": [args] if function in _JOINING else args}
    for key, value in kwargs.items():
        if key in names:
            renamed[names[key]] = value
        elif key != "name" and value not in (None, False):
            raise UnsupportedError(f"{label}: the argument '{key}' of '{function}' is not supported.")
    return operation, renamed

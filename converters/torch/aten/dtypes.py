"""What dtype each aten operation gives. Numbers that are not tensors count as in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastlstm.converters.torch.aten.elementwise import COMPARISONS
from fastlstm.converters.torch.sizes import Size

__all__ = ["promoted", "results"]

_ORDER = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
_BOOL = frozenset({*COMPARISONS, "logical_and", "logical_or", "logical_xor", "logical_not"})
_FLOATS = frozenset(
    {
        "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tan", "erf", "div", "softmax",
        "log_softmax", "mean", "log_sigmoid", "logcumsumexp", "logsumexp",
    }
)  # fmt: skip
_WHOLE = frozenset({"argmax", "argmin"})
_OF_FIRST = frozenset({"masked_fill", "index", "gather", "index_select", "new_zeros", "new_ones", "new_full"})
_SUMS = frozenset({"sum", "cumsum", "prod"})


def _category(dtype: str) -> int:
    return 0 if dtype == "bool" else 2 if "float" in dtype else 1


def promoted(tensors: Sequence[tuple[str, int]], numbers: Sequence[Any]) -> str:
    """Return the dtype of an operation between tensors, given with their ranks, and numbers.

    Numbers and tensors without axes count only where they are of a higher category: bool, whole, float.
    """
    groups = [[d for d, rank in tensors if rank], [d for d, rank in tensors if not rank]]
    groups.append(["bool" if isinstance(n, bool) else "float32" if isinstance(n, float) else "int64" for n in numbers])
    found = ""
    for group in filter(None, groups):
        best = max(group, key=_ORDER.index)
        found = best if not found or _category(best) > _category(found) else found
    return found or "float32"


def results(name: str, arguments: dict[str, Any], tensors: Sequence[tuple[str, int]], outputs: int) -> list[str]:
    """Return the dtype of each output of the operation `name`; `tensors` are the dtypes and ranks of its tensors."""
    given = arguments.get("dtype")
    numbers = [
        0 if isinstance(arguments[key], Size) else arguments[key]
        for key in ("self", "other", "exponent", "value", "fill_value", "alpha", "min", "max")
        if isinstance(arguments.get(key), (int, float, Size))
    ]
    if given is not None:
        first = given
    elif name in _BOOL:
        first = "bool"
    elif name in _WHOLE:
        first = "int64"
    elif name in ("arange", "full", "scalar_tensor"):
        ends = [v for k, v in arguments.items() if k in ("start", "end", "step", "fill_value", "s")]
        first = promoted([], [v if isinstance(v, float) else 0 for v in ends if v is not None])
    elif name == "type_as" or (name == "to" and len(tensors) == 2):
        first = tensors[1][0]
    elif name in _OF_FIRST or name == "to" or name == "embedding":
        first = tensors[0][0]
    elif name == "where":
        first = promoted(tensors[1:], numbers)
    else:
        first = promoted(tensors, numbers)
        if name in _FLOATS and _category(first) < 2 and not arguments.get("rounding_mode"):
            first = "float32"
        elif name in _SUMS and _category(first) < 2:
            first = "int64"
    rest = "int64" if name in ("max", "min", "sort", "topk") else first
    return [first, *[rest] * (outputs - 1)]

"""Operations on numbers of one type: the result's type, and LLVM's instruction.

Numba knows all of these, but tries dozens of rules, some of them functions that it would have to compile first (``!=``,
``min``), before it comes to the one for numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from numba.core import types
from numba.core.types.misc import unliteral

__all__ = ["Operation", "operation"]


class Operation(NamedTuple):
    """The result type of an operation, and the function of LLVM's builder and the operands that emits it."""

    returns: Any
    emit: Callable[..., Any]


_IN_PLACE = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor,
}  # fmt: skip
_COMPARISONS = {
    operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=", operator.eq: "==", operator.ne: "!=",
}  # fmt: skip
_CHOICES = {min: "<=", max: ">="}
_ARITHMETIC = {operator.add: "add", operator.sub: "sub", operator.mul: "mul"}
_BITS = {operator.and_: "and_", operator.or_: "or_", operator.xor: "xor"}


def operation(key: Any, args: Any) -> Operation | None:
    """Return the operation of a Python operator or function `key` on arguments of some types, None if there is none."""
    kinds = {unliteral(one) for one in args}
    if len(kinds) != 1 or len(args) != (1 if key is bool else 2):
        return None
    table = _TABLES.get(kinds.pop())
    return None if table is None else table.get(_IN_PLACE.get(key, key))


def _integers() -> dict[Any, Operation]:
    found: dict[Any, Operation] = {
        key: Operation(types.boolean, _comparison(sign, "icmp_signed")) for key, sign in _COMPARISONS.items()
    }
    found.update({key: Operation(types.int64, _choice(sign)) for key, sign in _CHOICES.items()})
    # Addresses and sizes never overflow.
    found.update({key: Operation(types.int64, _instruction(name, flags=["nsw"])) for key, name in _ARITHMETIC.items()})
    found.update({key: Operation(types.int64, _instruction(name)) for key, name in _BITS.items()})
    found[bool] = Operation(types.boolean, lambda builder, a: builder.icmp_signed("!=", a, a.type(0)))
    return found


def _floats(kind: Any) -> dict[Any, Operation]:
    found: dict[Any, Operation] = {
        key: Operation(types.boolean, _comparison(sign, "fcmp_ordered")) for key, sign in _COMPARISONS.items()
    }
    found[operator.ne] = Operation(types.boolean, _comparison("!=", "fcmp_unordered"))  # a NaN is not equal to itself
    found.update({key: Operation(kind, _instruction(f"f{name}")) for key, name in _ARITHMETIC.items()})
    return found


def _comparison(sign: str, name: str) -> Callable[..., Any]:
    return lambda builder, a, b: getattr(builder, name)(sign, a, b)


def _choice(sign: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.select(builder.icmp_signed(sign, a, b), a, b)


def _instruction(name: str, **options: Any) -> Callable[..., Any]:
    return lambda builder, a, b: getattr(builder, name)(a, b, **options)


_TABLES = {
    types.int64: _integers(),
    types.float32: _floats(types.float32),
    types.float64: _floats(types.float64),
    types.boolean: {bool: Operation(types.boolean, lambda _, a: a)},  # which Python applies before a branch
}

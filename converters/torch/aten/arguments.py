"""The arguments of one aten call: each is asked for by kind, and another kind is an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastlstm.converters.torch.program import Call, SymInt, Tensor

__all__ = ["CallArguments"]


class CallArguments:
    """The arguments of one call by the names of aten's schema; None stands for what is left out.

    Programs come out of files, so nothing is taken for granted: an argument of another kind than what is asked for
    raises the error that `misfit` returns, one that depends on the input the error of `unsupported`.
    """

    def __init__(self, call: Call) -> None:
        self.call = call

    def misfit(self, reason: str) -> Exception:
        """Return the error that the arguments do not fit the operation, for a reason."""
        raise NotImplementedError

    def unsupported(self, reason: str) -> Exception:
        """Return the error that such a call is not supported, for a reason."""
        raise NotImplementedError

    def expect(self, holds: bool, reason: str) -> None:
        """Raise the error that the arguments do not fit, for a reason, unless something holds."""
        if not holds:
            raise self.misfit(reason)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the argument as the program has it."""
        value = self.call.arguments.get(name)
        return default if value is None else value

    def items(self, name: str, default: Any = None) -> list[Any]:
        """Return the items of a list; a single value counts as a list of one."""
        value = self.get(name, default)
        self.expect(value is not None, f"'{name}' is missing")
        return value if isinstance(value, list) else [value]

    def known(self, name: str, default: Any = None) -> Any:
        """Return a number, a text or a list of numbers that has to be known when loading."""
        value = self.get(name, default)
        if any(isinstance(item, (SymInt, Tensor)) for item in (value if isinstance(value, list) else [value])):
            raise self.unsupported(f"'{name}' depends on the input's sizes; supported: numbers known beforehand")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """Return an integer."""
        value = self.known(name, default)
        self.expect(_is_integer(value), f"'{name}' should be an integer; got {value!r:.40}")
        return int(value)

    def integers(self, name: str, default: Sequence[int] | int | None = None, count: int | None = None) -> list[int]:
        """Return a list of integers, of `count` if that is given: a single one then stands for all."""
        value = self.known(name, default)
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        self.expect(all(map(_is_integer, items)), f"'{name}' should be integers; got {value!r:.40}")
        if count is not None and len(items) == 1:
            items *= count
        self.expect(count is None or len(items) == count, f"'{name}' should be {count} integers; got {len(items)}")
        return [int(item) for item in items]

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number: an integer stays one."""
        value = self.known(name, default)
        if not isinstance(value, (int, float)):
            raise self.misfit(f"'{name}' should be a number; got {value!r:.40}")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """Return a number as a float."""
        return float(self.number(name, default))

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.known(name, default)
        self.expect(isinstance(value, bool), f"'{name}' should be true or false; got {value!r:.40}")
        return bool(value)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text."""
        value = self.known(name, default)
        self.expect(isinstance(value, str), f"'{name}' should be a text; got {value!r:.40}")
        return str(value)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor."""
        value = self.get(name)
        if not isinstance(value, Tensor):
            raise self.misfit(f"'{name}' should be a tensor")
        return value

    def tensors(self, name: str) -> list[Tensor]:
        """Return a list of one tensor or more."""
        value = self.get(name)
        fits = isinstance(value, list) and value and all(isinstance(item, Tensor) for item in value)
        self.expect(bool(fits), f"'{name}' should be a list of tensors")
        return list(value)

    def axis_of(self, rank: int, name: str = "dim", default: int = 0) -> int:
        """Return one of `rank` axes counted from the front; of none, 0."""
        return self._counted(self.integer(name, default), rank)

    def axes_of(self, rank: int, name: str = "dim", default: Sequence[int] = ()) -> list[int]:
        """Return some of `rank` axes counted from the front."""
        return [self._counted(axis, rank) for axis in self.integers(name, default)]

    def _counted(self, axis: int, rank: int) -> int:
        self.expect(-max(rank, 1) <= axis < max(rank, 1), f"there is no axis {axis} among {rank}")
        return axis % max(rank, 1)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""Sizes as numbers of a program: each is read from a tensor that has it, or calculated from others."""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.converters.torch.program import SymInt, Tensor
from fastlstm.converters.torch.sizes import Size, Sizes

__all__ = ["SizeCalls"]

_CALCULATED = {"product": "mul", "sum": "add", "shift": "add", "ratio": "floordiv"}


class SizeCalls:
    """Adds the calls that read or calculate sizes, each once.

    Parameters
    ----------
    z : Sizes
    holder : callable
        Returns a tensor that has a size along an axis, and which axis; None if there is none yet.
    add : callable
        Adds a call, given its name and arguments, that gives the size; returns what the number is called.
    """

    def __init__(
        self,
        z: Sizes,
        holder: Callable[[Size], tuple[str, int] | None],
        add: Callable[[Size, str, dict[str, object]], str],
    ) -> None:
        self._z, self._holder, self._add = z, holder, add
        self.asked: dict[int, str] = {}
        """The numbers that are there, by the identity of the size that they are."""

    def number(self, size: Size) -> SymInt | int | None:
        """Return a size as a number of the program, None if it can be neither read nor calculated."""
        size = size.root
        if not size.is_open:
            return size.value
        if id(size) not in self.asked:
            holder = self._holder(size)
            if holder is not None:
                call = ("aten.sym_size.int", {"self": Tensor(holder[0]), "dim": holder[1]})
            else:
                parts = [size.parts[0], self._rest(size)] if len(size.parts) > 2 else list(size.parts)
                operands = [self.number(part) for part in parts] + [size.number] * (len(parts) == 1)
                if size.kind not in _CALCULATED or len(operands) != 2 or None in operands:
                    return None
                call = (f"_operator.{_CALCULATED[size.kind]}", dict(zip("ab", operands, strict=True)))
            self.asked[id(size)] = self._add(size, *call)
        return SymInt(self.asked[id(size)])

    def _rest(self, size: Size) -> Size:
        """Return a product or sum without its first part."""
        rest = list(size.parts[1:])
        return self._z.product(rest) if size.kind == "product" else self._z.sum(rest)

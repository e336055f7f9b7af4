"""The names of kernels, and which of them are loaded in this process."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

__all__ = ["Compiled", "Kernel", "known", "listings"]

Compiled = Callable[[int, int, int], int]
"""Every kernel: a function of the addresses of its arguments and of its frame, and of one unused word."""


class Kernel(NamedTuple):
    """A variant of a kernel: ``"module.factory"``, and the constants that the factory takes."""

    name: str
    constants: tuple[Hashable, ...] = ()

    @property
    def key(self) -> str:
        """A short name of the variant, for files."""
        import hashlib  # not needed for a kernel whose address is known

        return hashlib.sha256(repr((self.name, self.constants)).encode()).hexdigest()[:16]

    @property
    def symbol(self) -> str:
        """The name of its function in object code."""
        return f"fastlstm_{self.name.replace('.', '_')}_{self.key}"


known: dict[tuple[Kernel, tuple[object, ...]], int] = {}
"""The addresses of kernels, by the properties of the target that their code depends on."""

listings: list[set[Kernel]] = []
"""The sets in which `fastlstm.kernels.compiler.listing` records what is asked for; the last one is in use."""

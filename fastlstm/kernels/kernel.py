"""The names of kernels, and which of them stand in this process."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

__all__ = ["Kernel", "known", "listings"]


class Kernel(NamedTuple):
    """A variant of a kernel: ``"module.factory"``, and the constants that the factory takes."""

    name: str
    constants: tuple[Hashable, ...] = ()

    @property
    def key(self) -> str:
        """A short name of the variant, for files."""
        import hashlib  # a kernel whose address is known needs none

        return hashlib.sha256(repr((self.name, self.constants)).encode()).hexdigest()[:16]

    @property
    def symbol(self) -> str:
        """The name of its function in object code."""
        return f"fastlstm_{self.name.replace('.', '_')}_{self.key}"


known: dict[tuple[Kernel, tuple[object, ...]], int] = {}
"""The addresses of kernels, by what their code depends on of the target."""

listings: list[set[Kernel]] = []
"""While `fastlstm.kernels.compiler.listing` notes what is asked for, where it does; the last one counts."""

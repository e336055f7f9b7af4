"""What the benchmark asks of an engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar

from bench.cases import Case

Call = Callable[[], Any]
"""Runs a case once and returns ``y``, as the engine's own array type that NumPy can read."""


class Refused(Exception):  # noqa: N818 - it names the outcome that the table shows
    """The engine cannot run the case; the message says why."""


class Engine:
    """One engine: its name, whether it is here, how it is set up, and a case made ready to be called."""

    name: ClassVar[str]
    package: ClassVar[str]

    def version(self) -> str:
        """Return the installed version."""
        return importlib.metadata.version(self.package)

    def available(self) -> bool:
        """Return whether the package is installed."""
        return importlib.util.find_spec(self.package) is not None

    def settings(self, threads: int) -> dict[str, str]:
        """Return threads, affinity, spinning and other settings as they are set or left, in words."""
        raise NotImplementedError

    def prepare(self, case: Case, threads: int) -> Call:
        """Return a call that runs `case` once; inputs, weights and compilation are done before.

        Raises
        ------
        Refused
            If the engine cannot express or run the case.
        """
        raise NotImplementedError

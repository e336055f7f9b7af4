"""One way through a program: what the operations of `builtins`, `loops` and `packed` need of the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastlstm.converters.torch.pickles import StoredTensor
from fastlstm.converters.torch.script.calls import Recorder

__all__ = ["Run"]


class Run:
    """What is written down, and where in the code the program stands.

    Parameters
    ----------
    recorder : Recorder
    read : callable
        Returns the numbers of a stored tensor.

    Attributes
    ----------
    where : str
        The line that is followed, for messages.
    fresh : int
        How many constants have been made, for their names.
    """

    def __init__(self, recorder: Recorder, read: Callable[[StoredTensor], Any]) -> None:
        self.recorder = recorder
        self.read = read
        self.where = ""
        self.fresh = 0

    def operation(self, name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Return what ``torch.NAME`` gives."""
        raise NotImplementedError

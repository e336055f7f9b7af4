"""The one family of errors that fastlstm raises on purpose, and the category of its warnings.

Every message is a sentence (or a few) that says what was expected, what came, and what to do.
Anything else that escapes from the package is a bug.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = [
    "AssumptionWarning",
    "DependencyError",
    "FastLSTMError",
    "FileFormatError",
    "InputError",
    "UnsupportedError",
    "VerificationError",
    "counted",
    "nearest",
]


class FastLSTMError(Exception):
    """Base class of every error that fastlstm raises on purpose.

    Examples
    --------
    >>> import fastlstm
    >>> try:
    ...     fastlstm.load("model.xyz")
    ... except fastlstm.FastLSTMError as error:
    ...     print(type(error).__name__)
    UnsupportedError
    """


class AssumptionWarning(UserWarning):
    """A model's file leaves something open that was assumed, or something that was asked for has no effect.

    The same sentences are in `Model.notes`. A program that expects them can filter the category.

    Examples
    --------
    >>> import warnings, fastlstm
    >>> warnings.filterwarnings("ignore", category=fastlstm.AssumptionWarning)
    """


class InputError(FastLSTMError, ValueError):
    """A caller's array or argument does not fit the model: wrong name, rank, size, dtype or value.

    It is a ValueError, too.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> fastlstm.LSTM(np.ones((8, 3)), np.ones((8, 2)))(np.ones((5, 3)))
    Traceback (most recent call last):
    fastlstm.errors.InputError: x should have three axes, [time, batch, features]; got [5, 3].
    """


class UnsupportedError(FastLSTMError):
    """A model holds an operator, attribute, tensor or layer that is not understood.

    The message names it and says what is supported: nothing is ever ignored silently.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> weights = {"conv.weight": np.ones((2, 2, 3, 3, 3, 3))}
    >>> try:
    ...     fastlstm.from_state_dict(weights)
    ... except fastlstm.UnsupportedError as error:
    ...     print("conv" in str(error))
    True
    """


class FileFormatError(FastLSTMError):
    """A model file is damaged, from a newer version, or not what its name says.

    Examples
    --------
    >>> import fastlstm, pathlib
    >>> size = pathlib.Path("broken.fastlstm").write_bytes(b"half a model")
    >>> try:
    ...     fastlstm.load("broken.fastlstm")
    ... except fastlstm.FileFormatError as error:
    ...     print("broken.fastlstm" in str(error))
    True
    """


class VerificationError(FastLSTMError):
    """Outputs differ by more than the tolerance, so what was asked was not done.

    Attributes
    ----------
    found : Verification or Comparison
        How far each output is off; it prints as a report.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> weights = {"gru.weight_ih_l0": np.ones((6, 3)), "gru.weight_hh_l0": np.ones((6, 2))}
    >>> model = fastlstm.from_state_dict(weights, layers="gru | last", batch_first=True)
    >>> wrong = lambda inputs: {name: y + 1 for name, y in model.run(inputs).items()}
    >>> try:
    ...     fastlstm.bench(model, against=wrong)
    ... except fastlstm.VerificationError as error:
    ...     print(error.found.holds)
    False
    """

    def __init__(self, message: str, found: Any) -> None:
        super().__init__(f"{message}\n{found}")
        self.found = found


class DependencyError(FastLSTMError, ImportError):
    """An optional package is missing; the message holds the command that installs it.

    It is an ImportError, too.

    Examples
    --------
    >>> import fastlstm
    >>> print(fastlstm.DependencyError.missing("onnx", "onnx", "Reading an ONNX file"))
    Reading an ONNX file needs the package 'onnx', which is not installed. Install it with: pip install 'fastlstm[onnx]'
    """

    @classmethod
    def missing(cls, package: str, extra: str, purpose: str) -> DependencyError:
        """Return the error for `package`, which the extra ``fastlstm[extra]`` installs."""
        return cls(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'fastlstm[{extra}]'"
        )


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which gets an "s" unless there is one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the (at most three) known names that are most like `name`, as the end of a sentence."""
    import difflib  # for who made a mistake

    lower = {word.lower(): word for word in known}
    found = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)
    return f"the nearest that are: {', '.join(lower[word] for word in found)}" if found else "none is called alike"

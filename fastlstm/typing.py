"""Types that all parts share."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

__all__ = ["Array", "Integers"]

Array = npt.NDArray[Any]
"""A NumPy array; docstrings say its shape and dtype."""

Integers = Array
"""The same; as an operator's input it has to hold integers: indices, axes, sizes."""

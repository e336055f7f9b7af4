"""What kernels are written down as computes what Python would, and is no more than they need."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable

import pytest

from fastlstm import machine
from fastlstm.kernels import loader
from fastlstm.kernels.emit import emit
from fastlstm.kernels.image import image_of
from fastlstm.kernels.pipeline import inlined, template
from fastlstm.simd import float_from_word, word_from_float

NUMBERS = (-7, -2, 0, 1, 3, 1 << 40)


def runnable(function: Callable[[int, int, int], int]) -> Callable[[int, int, int], int]:
    """Return a function of three whole numbers as machine code."""
    image = image_of(emit(template(function, "tried"), "tried", machine.detect()), "tried")
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    return kind(loader.place(image.code) + image.entry)


@inlined
def comparisons(a, b):
    """Each comparison as a bit of its own, and what Python calls true."""
    found = 0
    if a < b:
        found += 1
    if a <= b:
        found += 2
    if a > b:
        found += 4
    if a >= b:
        found |= 8
    if a == b:
        found |= 16
    if a != b:
        found |= 32
    if a:
        found |= 64
    if not b:
        found |= 128
    return found


def arithmetic(a: int, b: int, which: int) -> int:
    if which == 0:
        return comparisons(a, b)
    if which == 1:
        return min(a, b) - max(3, b) * 5
    if which == 2:
        return a // 4 + a % 4 + (a >> 1) + (b & 255 | 3 ^ a)
    if which == 3:
        total = 0
        for i in range(a, b, 3):
            total += i
        return total
    small = (a > 0 and b < 3) or not a
    return (7 if small else b) + -a


def test_whole_numbers_are_computed_as_python_computes_them() -> None:
    code = runnable(arithmetic)
    comparisons_in_python = comparisons.py_func
    for a in NUMBERS:
        for b in NUMBERS:
            assert code(a, b, 0) == comparisons_in_python(a, b)
            for which in (1, 2, 4) if abs(a - b) > 100 else (1, 2, 3, 4):
                assert code(a, b, which) == arithmetic(a, b, which), (a, b, which)


@inlined
def both(a, b):
    return a + b, a * b


def floats(a: int, b: int, which: int) -> int:
    x, y = float_from_word(a), float_from_word(b)
    if which:
        more, product = both(x, y)
        return word_from_float(more - product + 2 * which)
    return comparisons(x, y)


@pytest.mark.parametrize("x", [-1.5, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("y", [-1.5, 0.25, math.nan])
def test_fractions_and_what_is_no_number_compare_as_in_python(x: float, y: float) -> None:
    code = runnable(floats)
    words = [ctypes.c_int64.from_buffer(ctypes.c_double(one)).value for one in (x, y)]
    assert code(*words, 0) == comparisons.py_func(x, y)
    answer = ctypes.c_double.from_buffer(ctypes.c_int64(code(*words, 3))).value
    expected = (x + y) - x * y + 6
    assert answer == expected or (math.isnan(answer) and math.isnan(expected))


def test_a_helper_is_written_once_and_nothing_of_numba_comes_along() -> None:
    def kernel(a: int, b: int, unused: int) -> int:
        return comparisons(a, 1) + comparisons(a, 2) + comparisons(b, a)

    text = template(kernel, "tried")
    assert len(re.findall("^define ", text, re.M)) == 3  # itself, the helper, and the C function
    assert not re.search("^(declare|@|!)", text, re.M)

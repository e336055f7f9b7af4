"""What kernels are written down as computes what Python would, and is no more than they need."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable

import numba
import pytest

from fastlstm.kernels import loader
from fastlstm.kernels.emit import emit
from fastlstm.kernels.image import image_of
from fastlstm.kernels.pipeline import inlined, template
from fastlstm.kernels.simd import load_f32, store_f32
from fastlstm.target import machine

NUMBERS = (-7, -2, 0, 1, 3, 1 << 40)


def runnable(function: Callable[[int, int, int], int]) -> Callable[[int, int, int], int]:
    """Return a function of three integers as machine code."""
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


def floats(numbers: int, out: int, more: int) -> int:
    x, y = load_f32(numbers), load_f32(numbers + 4)
    total, product = both(x, y)
    store_f32(out, total - product + 2 * more)
    return comparisons(x, y) + 1000 * comparisons(1.0 * x, 1.0 * y)  # in single and in double precision


@pytest.mark.parametrize("x", [-1.5, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("y", [-1.5, 0.25, math.nan])
def test_fractions_and_what_is_no_number_compare_as_in_python(x: float, y: float) -> None:
    numbers, out = (ctypes.c_float * 2)(x, y), ctypes.c_float()
    found = runnable(floats)(ctypes.addressof(numbers), ctypes.addressof(out), 3)
    assert found == 1001 * comparisons.py_func(x, y)
    expected = x + y - x * y + 6  # of these numbers float32 rounds nothing
    assert out.value == expected or (math.isnan(out.value) and math.isnan(expected))


def test_a_helper_is_written_once_and_nothing_of_numba_comes_along() -> None:
    def kernel(a: int, b: int, unused: int) -> int:
        return comparisons(a, 1) + comparisons(a, 2) + comparisons(b, a)

    text = template(kernel, "tried")
    assert len(re.findall("^define ", text, re.M)) == 3  # itself, the helper, and the C function
    assert not re.search("^(declare|@|!)", text, re.M)


def test_functions_compiled_for_others_change_nothing() -> None:
    def kernel(a: int, b: int, unused: int) -> int:
        return comparisons(a, b)

    numba.njit("int64(int64)")(lambda x: x + 1)  # Numba then knows functions as values, too
    assert runnable(kernel)(1, 2, 0) == comparisons.py_func(1, 2)

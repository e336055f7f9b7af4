"""Symbolic dimensions: an int, or a sum of products of names written in one canonical way.

``"2*batch*time + 4*time - 1"`` is a dimension. Two dimensions are equal for every input exactly when their
strings are equal, because every function here returns the canonical string: products sorted by degree and
name, the constant last, nothing that cancels. What cannot be written as a polynomial becomes one opaque
name, such as ``"floor((time - 1)/2)"``; so does what is too long to be written, ``"long#..."`` with a digest.
Names stand for integers that are zero or more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

__all__ = [
    "Dim",
    "Shape",
    "add",
    "at_least",
    "broadcast",
    "ceil_divide",
    "divide",
    "floor_divide",
    "linear",
    "multiply",
    "opaque",
    "product",
    "subtract",
]

Dim = int | str
Shape = tuple[Dim, ...]

_Terms = dict[tuple[str, ...], int]
"""A polynomial: the names that are multiplied, sorted -> coefficient; ``()`` holds the constant."""


MOST_TEXT = 1024
"""Characters of a dimension: sums of products multiplied with one another would double them at every step."""

MOST_PRODUCTS = 256
"""Products that are multiplied out; as above."""


def add(a: Dim, b: Dim) -> Dim:
    """Return a + b."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    terms = dict(_parse(a))
    for names, coefficient in _parse(b):
        terms[names] = terms.get(names, 0) + coefficient
    return _format(terms)


def subtract(a: Dim, b: Dim) -> Dim:
    """Return a - b."""
    return add(a, multiply(-1, b))


def multiply(a: Dim, b: Dim) -> Dim:
    """Return a * b."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    terms: _Terms = {}
    if len(_parse(a)) * len(_parse(b)) > MOST_PRODUCTS:
        return _bounded("*".join(sorted((f"({a})", f"({b})"))), always=True)
    for left, i in _parse(a):
        for right, j in _parse(b):
            names = tuple(sorted(left + right))
            terms[names] = terms.get(names, 0) + i * j
    return _format(terms)


def product(dims: Iterable[Dim]) -> Dim:
    """Return the product of all `dims`, 1 if there are none."""
    result: Dim = 1
    for dim in dims:
        result = multiply(result, dim)
    return result


def divide(a: Dim, b: Dim) -> Dim | None:
    """Return a / b if `b` divides `a` as a polynomial, else None."""
    divisor, rest = dict(_parse(b)), {names: c for names, c in _parse(a) if c}
    first = _leading(divisor)
    if not divisor[first] or (not rest and not isinstance(b, int)):
        return None
    terms: _Terms = {}
    while rest and len(terms) < MOST_PRODUCTS:
        names = _leading(rest)
        quotient = _without(names, first)
        if quotient is None or rest[names] % divisor[first]:
            return None
        terms[quotient] = coefficient = rest[names] // divisor[first]
        for factors, times in divisor.items():
            product_of = tuple(sorted(quotient + factors))
            rest[product_of] = rest.get(product_of, 0) - coefficient * times
            if not rest[product_of]:
                del rest[product_of]
    return None if rest else _format(terms)


def _leading(terms: _Terms) -> tuple[str, ...]:
    """Return the product that comes first in an order which multiplying by another product keeps."""
    return min(terms, key=lambda names: (-len(names), names))


def _without(names: tuple[str, ...], factors: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return a product without some of its factors, None if it does not have all of them."""
    rest = list(names)
    for factor in factors:
        if factor not in rest:
            return None
        rest.remove(factor)
    return tuple(rest)


def floor_divide(a: Dim, b: Dim) -> Dim:
    """Return floor(a / b); an opaque name if it is not a polynomial."""
    if isinstance(a, int) and isinstance(b, int) and b:
        return a // b
    exact = divide(a, b)
    if exact is None and isinstance(b, int) and b > 0:
        rest = dict(_parse(a)).get((), 0)
        exact = divide(subtract(a, rest), b)  # floor((4*time - 1)/2) is 2*time - 1
        exact = None if exact is None else add(exact, rest // b)
    return _bounded(f"floor({_grouped(a)}/{_grouped(b)})") if exact is None else exact


def ceil_divide(a: Dim, b: Dim) -> Dim:
    """Return ceil(a / b); an opaque name if it is not a polynomial."""
    if isinstance(b, int) and b > 0:
        whole = floor_divide(add(a, b - 1), b)
        if isinstance(whole, int) or not whole.startswith("floor("):
            return whole
    exact = divide(a, b)
    return _bounded(f"ceil({_grouped(a)}/{_grouped(b)})") if exact is None else exact


def linear(dim: Dim, name: str) -> tuple[int, int] | None:
    """Return a and b of a dimension a * name + b, None if it is not one."""
    terms = dict(_parse(dim))
    factor, rest = terms.pop((name,), 0), terms.pop((), 0)
    return None if terms else (factor, rest)


def at_least(a: Dim, b: Dim) -> bool:
    """Tell whether a >= b holds whatever the names stand for."""
    return all(coefficient >= 0 for _, coefficient in _parse(subtract(a, b)))


def broadcast(a: Dim, b: Dim) -> Dim | None:
    """Return the dimension that `a` and `b` broadcast to, None if they do not fit."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        return None
    # A number other than 1 decides; two names may each turn out to be 1.
    if isinstance(a, int):
        return a
    if isinstance(b, int):
        return b
    return _bounded("broadcast({}, {})".format(*sorted((a, b))))


def opaque(value: str, axis: int) -> str:
    """Return the name for the unknown dimension `axis` of `value`; different values, different names."""
    escaped = "".join(c if c.isalnum() or c == "_" else f".{ord(c):x}." for c in value)
    return f"{escaped}[{axis}]"


@lru_cache(maxsize=8192)
def _parse(dim: Dim) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Return the terms of a dimension; a name that is not one of ours is taken as it is."""
    if isinstance(dim, int):
        return (((), dim),)
    terms: _Terms = {}
    for sign, text in _summands(dim):
        coefficient, names = sign, []
        for factor in _split(text, "*"):
            if factor.lstrip("-").isdigit():
                coefficient *= int(factor)
            else:
                names.append(factor)
        key = tuple(sorted(names))
        terms[key] = terms.get(key, 0) + coefficient
    return tuple(terms.items())


def _summands(text: str) -> list[tuple[int, str]]:
    found = []
    for part in _split(text, " + "):
        first, *others = _split(part, " - ")
        if first.startswith("-") and len(first) > 1 and not first[1:].isdigit():
            found.append((-1, first[1:]))
        else:
            found.append((1, first))
        found += [(-1, other) for other in others]
    return found


def _split(text: str, separator: str) -> Sequence[str]:
    """Split at `separator` where it stands outside parentheses."""
    if separator not in text:
        return [text]
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0 and i > start and text.startswith(separator, i):
            parts.append(text[start:i])
            i = start = i + len(separator)
        else:
            i += 1
    return [*parts, text[start:]]


def _format(terms: _Terms) -> Dim:
    kept = {names: c for names, c in terms.items() if c}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    text = ""
    for names in sorted(kept, key=lambda names: (-len(names), names)):
        c = kept[names]
        factors = ([str(abs(c))] if abs(c) != 1 or not names else []) + list(names)
        sign = (" - " if c < 0 else " + ") if text else ("-" if c < 0 else "")
        text += sign + "*".join(factors)
    return _bounded(text)


def _bounded(text: str, always: bool = False) -> str:
    """Return the text, or one name for it if it is too long: the same text has the same name."""
    if len(text) <= MOST_TEXT and not always:
        return text
    return f"long#{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _grouped(dim: Dim) -> str:
    text = str(dim)
    return f"({text})" if " " in text or "*" in text else text

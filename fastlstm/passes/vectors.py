"""Rows of features as algebra: sums of products of activations, states and inputs.

A `Vector` is ``bias + Σ coefficient · monomial``: a monomial is a product, element by element, of atoms; a
coefficient is one number an element ([width]) or a matrix ([width of the monomial, width]). An atom is

* a `Leaf`: (some columns of) a value of the graph of which nothing more is known;
* an `Act`: an activation function of a vector;
* a `Block`: a sum with matrices, taken as one factor of a product.

Two spellings of the same formula, ``(1 - z) * n + z * h`` and ``n + z * (h - n)``, are the same Vector, and gates
computed together and then split are the same as gates computed one by one. Atoms and vectors are compared by a digest
of everything they are made of. Nothing here multiplies two matrices: if a formula would need that, the caller takes the
value between them as a Leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fastlstm.typing import Array

__all__ = [
    "Act",
    "Atom",
    "Block",
    "Leaf",
    "Monomial",
    "Vector",
    "activated",
    "add",
    "as_matrix",
    "digest",
    "digests_kept",
    "multiply",
    "width_of",
]

MOST_TERMS = 16
"""A sum with more terms than this is not written out: no gate has so many, and a long residual network would."""

MOST_PARTS = 256
"""Nor is a formula of more leaves, functions and factors, each counted as often as it is written: a cell has some 50,
and a value squared twenty times a million."""


Place = tuple[object, ...]

_SEEN: ContextVar[dict[Place, tuple[Array, bytes]] | None] = ContextVar("seen", default=None)
"""Matrices, by where their numbers are in memory, and their digests, within `digests_kept`."""


@contextmanager
def digests_kept() -> Iterator[None]:
    """Compute the digest of a matrix once, as long as nobody writes to any.

    All steps of an unrolled layer read the same weights: 30 steps of 256 units took 2.5 s for their digests.
    """
    token = _SEEN.set({})
    try:
        yield
    finally:
        _SEEN.reset(token)


def digest(*parts: object) -> bytes:
    """Return a digest of arrays, whose numbers count and not their dtype, bytes, and what `repr` tells apart."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(_digest_of_matrix(part) if part.ndim == 2 else _digest_of_numbers(part))
        else:
            state.update(part if isinstance(part, bytes) else repr(part).encode())
        state.update(b";")
    return state.digest()


def _digest_of_numbers(array: Array) -> bytes:
    state = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    state.update(np.ascontiguousarray(array, dtype=np.float64).data)
    return state.digest()


def _digest_of_matrix(matrix: Array) -> bytes:
    seen = _SEEN.get()
    if seen is None:
        return _digest_of_numbers(matrix)
    place = (matrix.__array_interface__["data"][0], matrix.shape, matrix.strides, matrix.dtype.str)
    if place not in seen:
        seen[place] = matrix, _digest_of_numbers(matrix)  # the place is its own as long as it is kept
    return seen[place][1]


@dataclass(frozen=True, eq=False)
class Atom:
    """One factor: equal atoms are equal functions of the same values."""

    width: int

    @cached_property
    def key(self) -> bytes:
        """A digest of everything the atom is made of."""
        raise NotImplementedError

    @cached_property
    def parts(self) -> int:
        """The length of the atom's formula (see `MOST_PARTS`)."""
        return 1

    def columns(self, start: int, stop: int) -> Atom:
        """Return the atom of some of the columns."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Atom) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True, eq=False)
class Leaf(Atom):
    """Columns `start` to `start + width` of the graph's value `value`, which has `size` of them.

    With `cut` = (axis, position) it is not the value itself but its slice at one position of an axis that is
    not the last one, without that axis.
    """

    value: str
    size: int
    start: int = 0
    cut: tuple[int, int] | None = None

    @cached_property
    def key(self) -> bytes:
        """A digest of the name and the columns."""
        return digest("leaf", self.value, self.size, self.start, self.width, self.cut)

    @property
    def whole(self) -> Leaf:
        """The leaf of all columns."""
        return Leaf(self.size, self.value, self.size, 0, self.cut)

    def columns(self, start: int, stop: int) -> Leaf:
        """Return some of the columns."""
        return Leaf(stop - start, self.value, self.size, self.start + start, self.cut)


@dataclass(frozen=True, eq=False)
class Act(Atom):
    """An activation function, with its parameters as in `fastlstm.graph`, of a vector."""

    name: str
    alpha: float | None
    beta: float | None
    of: Vector

    @cached_property
    def key(self) -> bytes:
        """A digest of function and argument."""
        return digest("act", *self.function, self.of.key)

    @cached_property
    def parts(self) -> int:
        """The function and its argument."""
        return 1 + self.of.parts

    @property
    def function(self) -> tuple[str, float | None, float | None]:
        """Name, alpha and beta."""
        return self.name, self.alpha, self.beta

    def columns(self, start: int, stop: int) -> Act:
        """Return the function of some of the columns."""
        return Act(stop - start, self.name, self.alpha, self.beta, self.of.columns(start, stop))


@dataclass(frozen=True, eq=False)
class Block(Atom):
    """A vector as one factor."""

    of: Vector

    @cached_property
    def key(self) -> bytes:
        """The vector's digest."""
        return digest("block", self.of.key)

    @cached_property
    def parts(self) -> int:
        """The factor and what it is a sum of."""
        return 1 + self.of.parts

    def columns(self, start: int, stop: int) -> Block:
        """Return some of the columns."""
        return Block(stop - start, self.of.columns(start, stop))


Monomial = tuple[Atom, ...]


def width_of(monomial: Monomial) -> int:
    """Return the width of a product; factors of width 1 are spread."""
    return max(atom.width for atom in monomial)


def _monomial(atoms: Iterable[Atom]) -> Monomial:
    return tuple(sorted(atoms, key=lambda atom: atom.key))


@dataclass(frozen=True, eq=False)
class Vector:
    """``bias + Σ coefficient · monomial``.

    Attributes
    ----------
    width : int
    bias : array, [width]
    terms : mapping of tuple of Atom to array
        Coefficients [width], or [width of the monomial, width].
    """

    width: int
    bias: Array
    terms: Mapping[Monomial, Array] = field(default_factory=dict)

    @classmethod
    def constant(cls, row: Array, width: int) -> Vector:
        """Return a vector that depends on nothing."""
        return cls(width, np.broadcast_to(np.asarray(row, np.float64).reshape(-1), (width,)))

    @classmethod
    def of_atom(cls, atom: Atom) -> Vector:
        """Return an atom as a vector."""
        return cls(atom.width, np.zeros(atom.width), {(atom,): np.ones(atom.width)})

    @cached_property
    def key(self) -> bytes:
        """A digest of everything the vector is made of."""
        terms = sorted((tuple(atom.key for atom in m), c) for m, c in self.terms.items())
        return digest(self.width, self.bias, *[part for keys, c in terms for part in (*keys, c)])

    @cached_property
    def parts(self) -> int:
        """The length of the vector's formula (see `MOST_PARTS`)."""
        return sum(atom.parts for monomial in self.terms for atom in monomial)

    @property
    def elements(self) -> int:
        """How many numbers it owns, without views of the graph's constants."""
        return sum(array.size for array in (self.bias, *self.terms.values()) if array.base is None)

    @property
    def atom(self) -> Atom | None:
        """The one atom that the vector equals, if it does."""
        monomial = self.product
        return monomial[0] if monomial is not None and len(monomial) == 1 else None

    @property
    def product(self) -> Monomial | None:
        """The one monomial that the vector equals, if it does."""
        if len(self.terms) != 1 or self.bias.any():
            return None
        ((monomial, coefficient),) = self.terms.items()
        return monomial if coefficient.ndim == 1 and bool(np.all(coefficient == 1)) else None

    @property
    def has_matrices(self) -> bool:
        """Whether any coefficient is a matrix."""
        return any(c.ndim == 2 for c in self.terms.values())

    def columns(self, start: int, stop: int) -> Vector:
        """Return the vector of some of the elements."""
        if (start, stop) == (0, self.width):
            return self
        terms: dict[Monomial, Array] = {}
        for monomial, c in self.terms.items():
            if c.ndim == 2:
                terms[monomial] = c[:, start:stop]
            else:
                cut = _monomial(a if a.width == 1 else a.columns(start, stop) for a in monomial)
                terms[cut] = c[start:stop]
        return Vector(stop - start, self.bias[start:stop], terms)

    def scaled(self, factor: Array | float) -> Vector:
        """Return the vector times a constant, [width] or a number."""
        if isinstance(factor, float) and factor == -1:  # matrices stay as narrow as they are
            return _vector(self.width, -self.bias, [(m, -c) for m, c in self.terms.items()])
        row = np.broadcast_to(np.asarray(factor, np.float64).reshape(-1), (self.width,))
        return _vector(self.width, self.bias * row, [(m, _rounded(c * row)) for m, c in self.terms.items()])

    def times_matrix(self, matrix: Array) -> Vector | None:
        """Return the vector (as a row) times a matrix [width, new width]; None if that multiplies two matrices."""
        spread = any(width_of(monomial) != self.width for monomial in self.terms)
        if self.has_matrices or spread:
            return None
        terms: dict[Monomial, Array] = {}
        for monomial, c in self.terms.items():
            terms[monomial] = matrix if bool(np.all(c == 1)) else c[:, None] * matrix
        bias = self.bias @ matrix if self.bias.any() else np.zeros(matrix.shape[1])
        return Vector(matrix.shape[1], np.asarray(bias, np.float64), terms)

    def replaced(self, change: Callable[[Leaf], Leaf | None]) -> Vector | None:
        """Return the vector with its leaves changed; None if it has other atoms or a leaf cannot be changed."""
        terms: dict[Monomial, Array] = {}
        for monomial, c in self.terms.items():
            leaves = [change(atom) if isinstance(atom, Leaf) else None for atom in monomial]
            if any(leaf is None for leaf in leaves):
                return None
            terms[_monomial(leaf for leaf in leaves if leaf is not None)] = c
        return Vector(self.width, self.bias, terms)


def _vector(width: int, bias: Array, terms: Iterable[tuple[Monomial, Array]]) -> Vector:
    """Return the sum of terms, collecting equal monomials and dropping zeros."""
    collected: dict[Monomial, Array] = {}
    for monomial, c in terms:
        before = collected.get(monomial)
        if before is not None and before.ndim != c.ndim:
            before, c = as_matrix(before), as_matrix(c)
        collected[monomial] = c if before is None else before.astype(np.float64) + c
    # A recurrent matrix of zeros is still a recurrent matrix.
    return Vector(width, bias, {m: c for m, c in collected.items() if c.ndim == 2 or c.any()})


def _rounded(coefficient: Array) -> Array:
    """Return the coefficient, exactly 1 where it is 1 but for one rounding of float32, as in 6 * float32(1/6)."""
    if coefficient.ndim == 2:
        return coefficient
    return np.where(abs(abs(coefficient) - 1) <= 2.0**-23, np.sign(coefficient), coefficient)


def as_matrix(coefficient: Array) -> Array:
    """Return a coefficient as the matrix that it stands for."""
    return np.diag(coefficient) if coefficient.ndim == 1 else coefficient


def add(a: Vector, b: Vector, sign: float = 1.0) -> Vector | None:
    """Return ``a + sign * b``, None if the widths differ or it has too many terms; a constant of width 1 is spread."""
    if len(a.terms) + len(b.terms) > MOST_TERMS or a.parts + b.parts > MOST_PARTS:
        return None
    if a.width != b.width:
        if a.width == 1 and not a.terms:
            a = Vector.constant(a.bias, b.width)
        elif b.width == 1 and not b.terms:
            b = Vector.constant(b.bias, a.width)
        else:
            return None
    other = b if sign == 1.0 else b.scaled(sign)
    return _vector(a.width, a.bias + other.bias, [*a.terms.items(), *other.terms.items()])


def activated(name: str, alpha: float | None, beta: float | None, of: Vector) -> Vector | None:
    """Return a function of a vector, None if its formula would be too long."""
    return None if of.parts >= MOST_PARTS else Vector.of_atom(Act(of.width, name, alpha, beta, of))


def multiply(a: Vector, b: Vector) -> Vector | None:
    """Return ``a * b``, element by element.

    A sum with matrices becomes a `Block`; a vector of width 1 (a mask) is spread. None if the widths differ or
    the result has too many terms.
    """
    if not b.terms:
        a, b = b, a
    if not a.terms:
        if a.width not in (1, b.width):
            return None
        return b.scaled(a.bias)
    if a.width != b.width and 1 not in (a.width, b.width):
        return None
    width = max(a.width, b.width)
    a, b = _factor(a), _factor(b)
    parts = a.parts * (len(b.terms) + 1) + b.parts * (len(a.terms) + 1)
    if len(a.terms) * len(b.terms) > MOST_TERMS or parts > 2 * MOST_PARTS:
        return None
    terms: list[tuple[Monomial, Array]] = []
    spread = np.ones(width)
    for m, c in a.terms.items():
        if b.bias.any():
            terms.append((m, c * b.bias * spread))
        terms.extend((_monomial((*m, *n)), c * d * spread) for n, d in b.terms.items())
    if a.bias.any():
        terms.extend((n, a.bias * d * spread) for n, d in b.terms.items())
    return _vector(width, a.bias * b.bias * spread, terms)


def _factor(vector: Vector) -> Vector:
    return Vector.of_atom(Block(vector.width, vector)) if vector.has_matrices else vector

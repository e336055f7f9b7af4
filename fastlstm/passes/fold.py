"""Constant folding: what does not depend on the inputs is computed once, sizes checked first."""

from __future__ import annotations

import math

import numpy as np

from fastlstm import operators
from fastlstm.errors import FastLSTMError
from fastlstm.graph import Graph, Node
from fastlstm.operators.values import ValueInfo
from fastlstm.passes.rewrite import RANDOM, Scope, renamed, what_is_computed
from fastlstm.typing import Array

__all__ = ["fold_constants", "fold_known_content", "inline_if", "inlined"]

MAX_BYTES = 2**30
"""A folded tensor is never larger than this."""

MAX_GROWN_BYTES = 2**20
"""Nor larger than this if it is more than four times as large as what it is made from: a small file must not
become a large model, and nothing gets faster by storing copies."""


def fold_constants(scope: Scope, node: Node) -> list[Node] | None:
    """``Op(constants)``  →  constants."""
    if node.op not in operators.SUPPORTED or node.op in RANDOM or not node.inputs or "" in node.outputs:
        return None
    if not any(node.inputs) or any(name and name not in scope.constants for name in node.inputs):
        return None
    arrays = [scope.const(name) for name in node.inputs]
    if any(isinstance(value, Graph) for value in node.attrs.values()):
        return None
    key = what_is_computed(node)
    if key not in scope.folded:
        results = _computed(scope, node, arrays)
        if results is None:
            return None
        scope.folded[key] = results
    for name, result in zip(node.outputs, scope.folded[key], strict=False):
        _define(scope, name, result)
    return []


def _computed(scope: Scope, node: Node, arrays: list[Array | None]) -> list[Array] | None:
    """Return the results of a node over constants, None if they are too large or it fails."""
    given = sum(a.nbytes for a in arrays if a is not None)
    sizes = [_affordable(info, given) for info in scope.infer(node)]
    if None in sizes or not scope.budget.take(sum(size or 0 for size in sizes)):
        return None
    try:
        results = operators.evaluate(node, arrays)
    except FastLSTMError:
        return None  # it will fail when it runs, with its own message
    plain = [np.ascontiguousarray(result).reshape(result.shape) for result in results if isinstance(result, np.ndarray)]
    return plain if len(plain) == len(results) else None


def fold_known_content(scope: Scope, node: Node) -> list[Node] | None:
    """Shape arithmetic with a known result, such as ``Shape(x)[2]`` of a fixed feature size  →  constant."""
    if len(node.outputs) != 1 or node.op in ("If", "Loop", "Scan"):
        return None
    (info,) = scope.infer(node)
    numbers = info.numbers
    if numbers is None or info.shape is None or info.dtype is None or len(info.shape) > 1:
        return None
    shape = tuple(d for d in info.shape if isinstance(d, int))
    if math.prod(shape) != len(numbers):
        return None
    _define(scope, node.outputs[0], np.array(numbers, info.dtype).reshape(shape))
    return []


def _define(scope: Scope, name: str, array: Array) -> None:
    scope.constants[name] = array
    scope.infos[name] = ValueInfo.of_array(array)


def _affordable(info: ValueInfo, given: int) -> int | None:
    """Return the bytes of a result that is known to be small enough to compute, else None."""
    if info.shape is None or info.dtype is None or not all(isinstance(d, int) for d in info.shape):
        return None
    size = math.prod(int(d) for d in info.shape) * np.dtype(info.dtype).itemsize
    return size if size <= MAX_BYTES and (size <= MAX_GROWN_BYTES or size <= 4 * given) else None


def inline_if(scope: Scope, node: Node) -> list[Node] | None:
    """``If(true) {then} {else}``  →  the nodes of ``then``."""
    condition = scope.numbers(node.input(0))
    if condition is None or len(condition) != 1:
        return None
    body: Graph = node.attrs["then_branch" if condition[0] else "else_branch"]
    return inlined(scope, body, {}, node.outputs)


def inlined(scope: Scope, body: Graph, inputs: dict[str, str], outputs: tuple[str, ...]) -> list[Node]:
    """Return a body's nodes under new names, its inputs and outputs bound to the values around it."""
    names = dict(inputs)
    for name, array in body.constants.items():
        names[name] = scope.constant(name, array)
    nodes = []
    for node in body.nodes:
        node = renamed(node, names)
        names.update((v, scope.fresh(v)) for v in node.outputs if v)
        nodes.append(Node(node.op, node.inputs, tuple(names.get(v, "") for v in node.outputs), node.attrs, node.name))
    results = [names.get(spec.name, spec.name) for spec in body.outputs]
    return nodes + [Node("Identity", (v,), (out,)) for v, out in zip(results, outputs, strict=True) if out]

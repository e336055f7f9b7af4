"""Which inputs of a model hold states, and which outputs return their new values.

A graph shows a pair in three ways: the input is the initial state of recurrent layers and the output their final
state; the output is a slice of what the input was concatenated with, like the cache of a convolution; or the output
depends on the input, and both have the same shape and, except for words like "in" and "out", the same name. All other
pairs have to be given by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastlstm.errors import InputError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs, TensorSpec, outer_values

__all__ = ["final_states", "initial_states", "likely_pairs", "state_pairs"]

States = frozenset[tuple[str, str]]
"""States of recurrent layers: the name of the layer's first output, and "h" or "c"."""

_MOVEMENT = "Slice Gather Split Squeeze Unsqueeze Reshape Identity Transpose Concat Cast"
MOVEMENT = frozenset(_MOVEMENT.split())
_PLAIN_WORDS = re.compile(
    r"(?<![a-z])(?:in|out|input|output|prev|previous|next|new|old|past|present|initial|init|final|last|updated|curr|"
    r"current|n|t)(?![a-z0-9])"
)


def state_pairs(graph: Graph, hand: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return state inputs and the outputs that return them, found in an optimised graph or given by `hand`.

    A state input of recurrent layers whose final state is not an output is paired with "".

    Raises
    ------
    InputError
        If what is given by hand names no input or output, or a pair of different shapes.
    """
    inputs = {spec.name: spec for spec in graph.inputs}
    outputs = {spec.name: spec for spec in graph.outputs}
    for given, shown in (hand or {}).items():
        if given not in inputs:
            raise InputError(f"There is no state input '{given}'; the inputs are {', '.join(sorted(inputs))}.")
        if shown not in outputs:
            raise InputError(f"There is no state output '{shown}'; the outputs are {', '.join(sorted(outputs))}.")
        if not _alike(inputs[given], outputs[shown]):
            raise InputError(
                f"The state input {inputs[given]} and the output {outputs[shown]} differ in shape or dtype."
            )
    if len(set((hand or {}).values())) < len(hand or {}):
        raise InputError("Two state inputs are paired with one output; each state has an output of its own.")
    pairs = dict(hand or {})
    free = [spec for name, spec in outputs.items() if name not in pairs.values()]
    finals = {spec.name: final_states(graph, spec.name) for spec in free}
    for spec in graph.inputs:
        states = initial_states(graph, spec.name) if spec.name not in pairs else None
        if states:
            pairs[spec.name] = next((name for name, found in finals.items() if found == states), "")
    _pair(graph, pairs, _cut_from)
    _pair(graph, pairs, _same_name)
    return pairs


def likely_pairs(graph: Graph, pairs: Mapping[str, str]) -> dict[str, str]:
    """Return inputs that recurrent layers start from and the only outputs of their shapes, which look like states."""
    made = graph.producers()
    starts, waiting = set(), [n.input(i) for n in graph.nodes if n.op in RECURRENT_OPS for i in (6, 7)]
    while waiting:
        value = waiting.pop()
        if value and value not in starts:
            starts.add(value)
            node = made.get(value)
            waiting += node.inputs if node is not None and node.op not in RECURRENT_OPS else []
    inputs = [spec for spec in graph.inputs if spec.name in starts and spec.name not in pairs]
    outputs = [spec for spec in graph.outputs if spec.name not in pairs.values()]
    found = [
        (i.name, o.name) for i in inputs for o in outputs if _alike(i, o) and i.name in _all_sources(graph, o.name)
    ]
    givens, showns = ([pair[side] for pair in found] for side in (0, 1))
    return {g: s for g, s in found if givens.count(g) == showns.count(s) == 1}


def _pair(graph: Graph, pairs: dict[str, str], alike: object) -> None:
    """Add the pairs that pass a test, if they are the only ones for their input and their output."""
    inputs = [spec for spec in graph.inputs if spec.name not in pairs]
    outputs = [spec for spec in graph.outputs if spec.name not in pairs.values()]
    found = [(i.name, o.name) for o in outputs for i in inputs if _alike(i, o) and alike(graph, i.name, o.name)]  # type: ignore[operator]
    givens, showns = ([pair[side] for pair in found] for side in (0, 1))
    pairs |= {g: s for g, s in found if givens.count(g) == showns.count(s) == 1}


def _alike(a: TensorSpec, b: TensorSpec) -> bool:
    """Whether shapes agree where both are known, and dtypes."""
    if "..." in b.shape or "..." in a.shape:
        return a.dtype == b.dtype
    sizes = zip(a.shape, b.shape, strict=False)
    fit = all(isinstance(m, str) or isinstance(n, str) or m == n for m, n in sizes)
    return len(a.shape) == len(b.shape) and fit and (a.dtype == b.dtype or not a.dtype or not b.dtype)


def _cut_from(graph: Graph, given: str, shown: str) -> bool:
    """Whether the output is taken unchanged from what the input was concatenated with."""
    origins = _origins(graph, shown)
    return given in origins and len(origins) > 1


def _same_name(graph: Graph, given: str, shown: str) -> bool:
    """Whether the output depends on the input and their names differ only in "in", "out" and the like."""
    return given != shown and _root(given) == _root(shown) and given in _all_sources(graph, shown)


def _root(name: str) -> str:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", "_", name).lower().replace(".", "_").replace("_", " ")
    return " ".join(_PLAIN_WORDS.sub(" ", apart).split()) or name


def _states_of(node: Node, value: str) -> set[str]:
    """Return which states of a recurrent node a value sets, "h" and "c"; nothing if it reads it otherwise too."""
    if node.op not in RECURRENT_OPS:
        return set()
    read = RecurrentInputs.of(node)
    if value in (read.x, read.w_ih, read.w_hh, read.bias, read.lengths, read.mask):
        return set()
    return {kind for kind, state in (("h", read.h_0), ("c", read.c_0)) if state == value}


def initial_states(graph: Graph, name: str) -> States:
    """Return the states of recurrent layers that a value sets, nothing if it is read by anything else."""
    readers = graph.consumers()

    def follow(value: str) -> set[tuple[str, str]] | None:
        found: set[tuple[str, str]] = set()
        for node in readers.get(value, []):
            own = _states_of(node, value)
            if own:
                found |= {(node.first_output, kind) for kind in own}
                continue
            if node.op not in MOVEMENT or value in node.inputs[1:] or node.op == "Concat":
                return None
            for output in filter(None, node.outputs):
                more = follow(output)
                if more is None:
                    return None
                found |= more
        return found

    if name in {spec.name for spec in graph.outputs}:
        return frozenset()
    return frozenset(follow(name) or ())


def final_states(graph: Graph, name: str) -> States:
    """Return the final states of recurrent layers that make up a value, nothing if there is anything else in it."""
    made = graph.producers()
    origins = _origins(graph, name)
    found = set()
    for value in origins:
        node = made.get(value)
        if node is None or node.op not in RECURRENT_OPS or value == node.output(0):
            return frozenset()
        found.add((node.first_output, "h" if value == node.output(1) else "c"))
    return frozenset(found)


def _origins(graph: Graph, name: str) -> set[str]:
    """Return the values that a value consists of, unchanged."""
    made = graph.producers()
    found, waiting = set(), [name]
    while waiting:
        value = waiting.pop()
        node = made.get(value)
        if node is not None and node.op in MOVEMENT:
            waiting += node.inputs if node.op == "Concat" else node.inputs[:1]
        elif value not in graph.constants:
            found.add(value)
    return found


def _all_sources(graph: Graph, name: str) -> set[str]:
    """Return every value that a value depends on."""
    made = graph.producers()
    found, waiting = {name}, [name]
    while waiting:
        node = made.get(waiting.pop())
        more = {v for v in (*node.inputs, *outer_values(node)) if v} - found if node is not None else set()
        found |= more
        waiting += more
    return found

"""The order in which Keras runs the calls of a functional model.

Any order would do in which a call comes after those whose outputs it takes, but for one thing: in Keras 3 a
MultiHeadAttention takes the masks away from the tensors it is called on, so layers that read the same
tensors later see no mask. What is later follows from how Keras sorts: by depth, which is the number of calls
between a call and the model's outputs, and within a depth in the order in which a walk up from the outputs
meets the calls (``keras/src/ops/function.py``, `map_graph`).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["CircleError", "execution_order"]


class CircleError(Exception):
    """Calls wait for one another; `index` is one of them."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def execution_order(parents: Sequence[Sequence[int]], layers: Sequence[str], roots: Sequence[int]) -> list[int]:
    """Return the calls in the order in which Keras runs them; those that no output needs come last.

    Parameters
    ----------
    parents : sequence of sequence of int
        Of each call those whose outputs it takes, in the order of its arguments.
    layers : sequence of str
        Of each call its layer.
    roots : sequence of int
        The calls that make the model's outputs.

    Raises
    ------
    CircleError
        If there is no order.
    """
    finished: list[int] = []
    state = [0] * len(parents)  # 0: not met, 1: being walked, 2: finished
    for root in roots:
        _walk(root, parents, state, finished)
    depths = _depths(finished, parents, layers)
    order = sorted(depths, key=lambda index: -depths[index])
    needed = len(finished)
    for index in range(len(parents)):
        _walk(index, parents, state, finished)
    return [*order, *finished[needed:]]


def _walk(root: int, parents: Sequence[Sequence[int]], state: list[int], finished: list[int]) -> None:
    """Append `root` and all that it needs to `finished`, what is needed first."""
    if state[root] == 2:
        return
    state[root] = 1
    stack = [(root, iter(parents[root]))]
    while stack:
        index, left = stack[-1]
        parent = next(left, None)
        if parent is None:
            state[index] = 2
            finished.append(index)
            stack.pop()
        elif state[parent] == 1:
            raise CircleError(parent)
        elif state[parent] == 0:
            state[parent] = 1
            stack.append((parent, iter(parents[parent])))


def _depths(finished: Sequence[int], parents: Sequence[Sequence[int]], layers: Sequence[str]) -> dict[int, int]:
    """Return the depth of each call; a layer that is shared is as deep as the deepest of its calls so far."""
    depths: dict[int, int] = {}
    of_layer: dict[str, int] = {}
    for index in reversed(finished):
        depth = max(depths.setdefault(index, 0), of_layer.get(layers[index], 0))
        of_layer[layers[index]] = depths[index] = depth
        for parent in parents[index]:
            depths[parent] = max(depth + 1, depths.get(parent, 0))
    return depths

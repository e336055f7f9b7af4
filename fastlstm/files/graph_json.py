"""A graph as JSON and a flat mapping of its tensors, and back.

The reader trusts nothing: every field must be there, be known, and be of its kind, so that a graph that
comes out of it can be handed to any other part without further checks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastlstm.errors import FileFormatError
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.operators.validation import validated
from fastlstm.typing import Array

__all__ = ["from_json", "parse_json", "tensors", "to_json"]

MAX_DEPTH = 16
"""Deepest nesting of control-flow bodies, and of lists in an attribute."""

_FIELDS = ("name", "inputs", "outputs", "constants", "notes", "nodes")
_DTYPES = frozenset(
    ["float16", "float32", "float64", "int8", "int16", "int32", "int64"]
    + ["uint8", "uint16", "uint32", "uint64", "bool"]
    + ["", "sequence"]  # not said by the source, and a sequence of tensors (see `TensorSpec`)
)


def tensors(graph: Graph, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Yield every constant of the graph and of the bodies in it, each with a name of its own.

    A constant NAME is ``constants/NAME``; in the body that node I carries in its attribute ATTR,
    ``nodes/I/ATTR/constants/NAME``.
    """
    for name, array in graph.constants.items():
        yield f"{prefix}constants/{name}", array
    for position, node in enumerate(graph.nodes):
        for attribute, value in node.attrs.items():
            if isinstance(value, Graph):
                yield from tensors(value, f"{prefix}nodes/{position}/{attribute}/")


def to_json(graph: Graph) -> str:
    """Return the graph as JSON, its constants by name only (`tensors` yields their values)."""
    return json.dumps(_as_data(graph), separators=(",", ":"))


def _as_data(graph: Graph) -> dict[str, Any]:
    def attr(value: Any) -> Any:
        return {"graph": _as_data(value)} if isinstance(value, Graph) else value

    return {
        "name": graph.name,
        "inputs": [[s.name, list(s.shape), s.dtype] for s in graph.inputs],
        "outputs": [[s.name, list(s.shape), s.dtype] for s in graph.outputs],
        "constants": list(graph.constants),
        "notes": list(graph.notes),
        "nodes": [
            [n.op, n.name, list(n.inputs), list(n.outputs), {k: attr(v) for k, v in n.attrs.items()}]
            for n in graph.nodes
        ],
    }


def from_json(text: str, values: Mapping[str, Array]) -> Graph:
    """Return the graph that `to_json` wrote, validated.

    Parameters
    ----------
    text : str
    values : mapping of str to array
        The constants, named as `tensors` names them; every one must be used.

    Raises
    ------
    FileFormatError
        If the text is not JSON, a field is missing, unknown or of the wrong kind, or a constant is
        missing or left over.
    UnsupportedError
        If the graph does not hold together (see `Graph.validate`).
    """
    rest = dict(values)
    graph = _graph(parse_json(text, "graph"), rest, prefix="", depth=0)
    if rest:
        raise FileFormatError(f"The tensor '{next(iter(rest))}' does not belong to the graph.")
    return validated(graph)


def parse_json(text: str | bytes, what: str) -> Any:
    """Return the value of JSON text, in which no object gives a key twice.

    Raises
    ------
    FileFormatError
        Otherwise; `what` names the text in the message.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise ValueError("an object gives a key twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise FileFormatError(f"The {what} is damaged: its JSON is nested too deeply.") from error
    except ValueError as error:
        raise FileFormatError(f"The {what} is damaged: it is not JSON ({error}).") from error


def _graph(data: Any, values: dict[str, Array], prefix: str, depth: int) -> Graph:
    if depth > MAX_DEPTH:
        raise FileFormatError(f"The graph is damaged: bodies are nested more than {MAX_DEPTH} deep.")
    if not isinstance(data, dict):
        raise FileFormatError(f"The graph is damaged: expected an object, got {_short(data)}.")
    for field in [*_FIELDS, *data]:
        if field not in data:
            raise FileFormatError(f"The graph is damaged: its field '{field}' is missing.")
        if field not in _FIELDS:
            raise FileFormatError(f"The graph has the field '{field}', which is not known.")
    constants = {}
    for name in _strings(data["constants"], "constants"):
        if (key := f"{prefix}constants/{name}") not in values:
            raise FileFormatError(f"The constant '{name}' has no tensor '{key}'.")
        constants[name] = values.pop(key)
    return Graph(
        inputs=tuple(_spec(entry) for entry in _list(data["inputs"], "inputs")),
        outputs=tuple(_spec(entry) for entry in _list(data["outputs"], "outputs")),
        nodes=tuple(
            _node(entry, values, f"{prefix}nodes/{position}/", depth)
            for position, entry in enumerate(_list(data["nodes"], "nodes"))
        ),
        constants=constants,
        name=_string(data["name"], "name"),
        notes=tuple(_strings(data["notes"], "notes")),
    )


def _spec(entry: Any) -> TensorSpec:
    if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)):
        raise FileFormatError(f"The graph is damaged: expected name, shape, dtype; got {_short(entry)}.")
    name, shape, dtype = entry
    for size in _list(shape, f"shape of '{name}'"):
        if not (isinstance(size, str) or (type(size) is int and 0 <= size < 1 << 48)):
            raise FileFormatError(f"The shape of '{name}' is damaged: {_short(size)} is no dimension.")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FileFormatError(f"'{name}' has the dtype {_short(dtype)}, which is not known.")
    return TensorSpec(name, tuple(shape), dtype)


def _node(entry: Any, values: dict[str, Array], prefix: str, depth: int) -> Node:
    if not (isinstance(entry, list) and len(entry) == 5 and isinstance(entry[4], dict)):
        raise FileFormatError(
            f"The graph is damaged: expected op, name, inputs, outputs, attributes; got {_short(entry)}."
        )
    op, name = _string(entry[0], "op"), _string(entry[1], "node's name")
    inputs, outputs = _strings(entry[2], "node's inputs"), _strings(entry[3], "node's outputs")
    _check_op(op, name)
    attrs: dict[str, Any] = {}
    for key, value in entry[4].items():
        if isinstance(value, dict):
            if set(value) != {"graph"}:
                raise FileFormatError(f"The attribute '{key}' of {op} node '{name}' is damaged.")
            attrs[key] = _graph(value["graph"], values, f"{prefix}{key}/", depth + 1)
        else:
            attrs[key] = _attr(value, f"'{key}' of {op} node '{name}'")
    return Node(op, tuple(inputs), tuple(outputs), attrs, name)


def _check_op(op: str, name: str) -> None:
    from fastlstm.operators import OPERATORS  # here, because only a reader of files needs the table

    if op not in OPERATORS:
        raise FileFormatError(
            f"The node '{name}' has the operator {op!r}, which this release does not know. "
            "Update fastlstm, or convert the model again."
        )


def _attr(value: Any, where: str, depth: int = 0) -> Any:
    if isinstance(value, list) and depth < MAX_DEPTH:
        return [_attr(item, where, depth + 1) for item in value]
    if value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        return value
    raise FileFormatError(f"The attribute {where} is damaged: got {_short(value)}.")


def _list(data: Any, what: str) -> list[Any]:
    if not isinstance(data, list):
        raise FileFormatError(f"The {what} should be a list; got {_short(data)}.")
    return data


def _string(data: Any, what: str) -> str:
    if not isinstance(data, str):
        raise FileFormatError(f"The {what} should be a string; got {_short(data)}.")
    return data


def _strings(data: Any, what: str) -> list[str]:
    return [_string(item, what) for item in _list(data, what)]


def _short(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."

"""What every Graph is held against where it enters: names, inputs, attributes, bodies, weights of layers.

Converters build graphs out of files that nobody vouches for, and all that comes behind relies on what is checked
here: a node has the inputs and outputs that its operator takes, its attributes are of their kind, bodies take and
give what their node does. What depends on the shapes of values is told by `fastlstm.operators.misfit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from fastlstm import operators
from fastlstm.errors import UnsupportedError, nearest
from fastlstm.graph import QUANTISED_INPUTS, RECURRENT_OPS, Graph, Node, RecurrentInputs
from fastlstm.operators.activations import ACTIVATIONS
from fastlstm.target.limits import SUM_LIMIT, largest_sums, value_limit
from fastlstm.typing import Array

__all__ = ["MOST_NESTED", "check_weights", "validated"]

MOST_NESTED = 16
"""Deepest nesting of the bodies of control flow."""

MOST_INPUTS = {"LSTM": len(RecurrentInputs._fields), "GRU": 12, "RNN": 12}
_FLAGS = {"LSTM": ("input_forget",), "GRU": ("reset_after",), "RNN": ()}
_NUMBERS = {"LSTM": ("norm_epsilon",), "GRU": (), "RNN": ()}
_ACTIVATIONS_OF = {"LSTM": 3, "GRU": 2, "RNN": 1}
MOST_AXES = 64
"""Axes of an array, at most. NumPy has an axis -2147483648, by which it means all."""

MOST_UNITS = 1 << 24
"""Hidden units of a layer: more than these have weights that no memory holds."""


def validated(graph: Graph) -> Graph:
    """Return a graph of which all was checked that can be told without knowing the shapes of values.

    Raises
    ------
    UnsupportedError
        If a value is defined twice, used before it is defined, or not defined at all, an operator has another
        number of inputs or attributes of another kind than it takes, or a recurrent layer's weights do not fit
        one another. The message names the node and the value.
    """
    for spec in graph.inputs:
        if any(isinstance(size, int) and size < 0 for size in spec.shape):
            raise UnsupportedError(f"The input {spec} has a negative size; a size that may vary has a name instead.")
    _check_graph(graph, frozenset(), 0)
    return graph


def _check_graph(graph: Graph, outer: frozenset[str], depth: int) -> None:
    if depth > MOST_NESTED:
        raise UnsupportedError(f"Bodies of control flow lie more than {MOST_NESTED} deep, the most that is read.")
    defined: set[str] = set()

    def define(value: str, where: str) -> None:
        if value in defined:
            raise UnsupportedError(f"The value '{value}' is defined twice (again by {where}).")
        defined.add(value)

    for spec in graph.inputs:
        define(spec.name, "an input")
    for name in graph.constants:
        define(name, "a constant")
    for node in graph.nodes:
        label = f"{node.op} node '{node.name or node.output(0)}'"
        for value in node.inputs:
            if value and value not in defined and value not in outer:
                raise UnsupportedError(f"{label} reads '{value}', which no input, constant or earlier node defines.")
        for body in (v for v in node.attrs.values() if isinstance(v, Graph)):
            _check_graph(body, outer | frozenset(defined), depth + 1)
        _check_node(node, graph.constants, label)
        gives = None if node.op in RECURRENT_OPS else operators.signature(node.op).gives
        for value in node.outputs[:gives]:  # what is named beyond them is no value
            if value:
                define(value, label)
    for spec in graph.outputs:
        if spec.name not in defined and spec.name not in outer:
            raise UnsupportedError(f"The output '{spec.name}' is defined by no node, constant or input.")


def _check_node(node: Node, constants: Mapping[str, Array], label: str) -> None:
    if not node.outputs:
        raise UnsupportedError(f"{label} has no output; every node makes a value.")
    if node.op not in operators.OPERATORS:
        raise UnsupportedError(f"{label}: the operator is not supported; {nearest(node.op, operators.OPERATORS)}.")
    if node.op in RECURRENT_OPS:
        _check_attributes(node, label)
    else:
        _check_signature(node, constants, label)
    if node.op in _BODIES:
        _BODIES[node.op](node, label)
    elif any(isinstance(value, Graph) for value in node.attrs.values()):
        raise UnsupportedError(f"{label} has a body; only {', '.join(_BODIES)} have one.")
    if node.op in QUANTISED_INPUTS:
        _check_scales(node, constants, label)
    check_weights(node, constants)


# --- operators -------------------------------------------------------------------------------------------


def _check_signature(node: Node, constants: Mapping[str, Array], label: str) -> None:
    """Hold a node against the function that computes its operator."""
    takes = operators.signature(node.op)
    count = len(node.inputs)
    needed = takes.least if takes.gaps else max(takes.least, count)
    missing = next((i for i in range(needed) if not node.input(i) and i not in takes.optional), None)
    if missing is not None or not takes.least <= count <= takes.most:
        upper = "more" if takes.most > 1000 else takes.most
        what = f"has {count}" if missing is None or missing >= count else f"lacks the one at position {missing}"
        raise UnsupportedError(f"{label} should have {takes.least} to {upper} inputs; it {what}.")
    for place in takes.integers:
        given = constants.get(node.input(place))
        if given is not None and given.dtype.kind not in "iu":
            raise UnsupportedError(
                f"{label} takes integers at position {place}; '{node.input(place)}' holds {given.dtype}."
            )
    for name, kind in takes.attributes.items():
        if name not in node.attrs:
            if name in takes.required:
                raise UnsupportedError(f"{label} lacks the attribute '{name}'.")
        elif not (node.attrs[name] in takes.choices[name] if name in takes.choices else _is_of(kind, node.attrs[name])):
            wanted = ", ".join(takes.choices.get(name, (kind,)))
            raise UnsupportedError(
                f"{label}: the attribute '{name}' should be {wanted}; got {_short(node.attrs[name])}."
            )
        elif name == "axis" and node.attrs[name] is not None and not -MOST_AXES <= node.attrs[name] < MOST_AXES:
            raise UnsupportedError(f"{label}: there is no axis {node.attrs[name]}; no array has so many.")


def _is_of(kind: str, value: Any) -> bool:
    """Tell whether a value is of one of the kinds that an annotation such as ``int | None`` names."""
    if kind.startswith("int | str"):  # an element type
        return (value is None and kind.endswith("None")) or _is_dtype(value)
    return any(_KINDS[one](value) for one in kind.split(" | "))


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and -(1 << 63) <= int(value) < 1 << 64


def _is_dtype(value: Any) -> bool:
    try:
        operators.dtype_of(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(of(item) for item in value)


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "int": _is_int,
    "float": lambda value: isinstance(value, Real),
    "str": lambda value: isinstance(value, str),
    "Graph": lambda value: isinstance(value, Graph),
    "Sequence[int]": lambda value: _is_list(value, _is_int),
    "Sequence[Sequence[Any]]": lambda value: _is_list(value, lambda item: isinstance(item, list | tuple)),
}


def _short(value: Any) -> str:
    text = "a graph" if isinstance(value, Graph) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- bodies ----------------------------------------------------------------------------------------------


def _require_counts(label: str, *pairs: tuple[str, int, int]) -> None:
    for what, expected, got in pairs:
        if expected != got:
            raise UnsupportedError(f"{label}: its body should have {expected} {what}; it has {got}.")


def _check_if(node: Node, label: str) -> None:
    for branch in ("then_branch", "else_branch"):
        body = node.attrs[branch]
        _require_counts(
            label, ("inputs", 0, len(body.inputs)), ("outputs, as the node has", len(node.outputs), len(body.outputs))
        )


def _check_loop(node: Node, label: str) -> None:
    body, carried = node.attrs["body"], max(len(node.inputs) - 2, 0)
    if len(node.outputs) < carried or "" in node.inputs[2:]:
        raise UnsupportedError(f"{label} has {carried} states; it should give as many, each with a first value.")
    _require_counts(
        label,
        ("inputs (round, condition and states)", 2 + carried, len(body.inputs)),
        ("outputs (condition and what the node gives)", 1 + len(node.outputs), len(body.outputs)),
    )


def _check_scan(node: Node, label: str) -> None:
    body, scanned = node.attrs["body"], int(node.attrs["num_scan_inputs"])
    if not 1 <= scanned <= len(node.inputs) or len(node.outputs) < len(node.inputs) - scanned or "" in node.inputs:
        raise UnsupportedError(
            f"{label}: num_scan_inputs is {scanned} with {len(node.inputs)} inputs and {len(node.outputs)} outputs; "
            "it should be 1 or more, and every other input a state, which has an output too."
        )
    _require_counts(
        label, ("inputs", len(node.inputs), len(body.inputs)), ("outputs", len(node.outputs), len(body.outputs))
    )
    collected = len(node.outputs) - len(node.inputs) + scanned
    for name in ("axes", "directions"):
        for kind, count in (("input", scanned), ("output", collected)):
            given = node.attrs.get(f"scan_{kind}_{name}")
            if given and len(given) != count:
                raise UnsupportedError(
                    f"{label}: scan_{kind}_{name} should have {count} entries, one for each; it has {len(given)}."
                )


_BODIES: Mapping[str, Callable[[Node, str], None]] = {"If": _check_if, "Loop": _check_loop, "Scan": _check_scan}


# --- layers ----------------------------------------------------------------------------------------------


_LEFT_OUT: Mapping[str, Any] = {"clip": None, "input_forget": 0, "norm_epsilon": None}
"""Attributes of a recurrent layer that it may leave out, and what that means."""


def _check_attributes(node: Node, label: str) -> None:
    """Check the attributes of a recurrent layer, and how many inputs and outputs it has."""
    flags = _FLAGS[node.op]
    expected = {"hidden_size", "directions", "activations", "clip", *flags, *_NUMBERS[node.op]}
    attrs = {**{name: value for name, value in _LEFT_OUT.items() if name in expected}, **node.attrs}
    if set(attrs) != expected:
        raise UnsupportedError(f"{label} should have the attributes {sorted(expected)}; it has {sorted(attrs)}.")

    def require(key: str, holds: bool, what: str) -> None:
        if not holds:
            raise UnsupportedError(f"{label}: the attribute '{key}' should be {what}; got {_short(attrs[key])}.")

    size, directions, clip, activations = (attrs[k] for k in ("hidden_size", "directions", "clip", "activations"))
    require(
        "hidden_size", isinstance(size, Integral) and 0 < int(size) <= MOST_UNITS, f"a number from 1 to {MOST_UNITS}"
    )
    words = _is_list(directions, lambda d: d in ("forward", "reverse"))
    require("directions", words and 1 <= len(directions) <= 2, "one or two of 'forward' and 'reverse'")
    require("clip", clip is None or (isinstance(clip, Real) and float(clip) > 0), "a number above 0, or None")
    for flag in flags:
        require(flag, isinstance(attrs[flag], Integral) and attrs[flag] in (0, 1), "0 or 1")
    count = _ACTIVATIONS_OF[node.op]
    fits = _is_list(activations, lambda one: _is_list(one, _is_activation) and len(one) == count)
    require("activations", fits and len(activations) == len(directions), f"{count} of [name, alpha, beta] a direction")
    for name, *_ in (one for per_direction in activations for one in per_direction):
        if name not in ACTIVATIONS:
            raise UnsupportedError(f"{label}: unknown activation '{name}'; supported: {', '.join(ACTIVATIONS)}.")
    if node.op == "LSTM":
        _check_norm(node, attrs["norm_epsilon"], require)
    outputs = 3 if node.op == "LSTM" else 2
    lacks = next((i for i in range(3) if not node.input(i)), None)
    if lacks is not None or len(node.inputs) > MOST_INPUTS[node.op] or len(node.outputs) > outputs:
        what = f"lacks the one at position {lacks}" if lacks is not None else f"has {len(node.inputs)}"
        raise UnsupportedError(
            f"{label} should have 3 to {MOST_INPUTS[node.op]} inputs and up to {outputs} outputs; it {what} and has "
            f"{len(node.outputs)} outputs."
        )


def _check_norm(node: Node, epsilon: Any, require: Callable[[str, bool, str], None]) -> None:
    """Check that an LSTM with layer normalisation has all of it, and none of what goes without."""
    read = RecurrentInputs.of(node)
    if not read.norm:
        require("norm_epsilon", epsilon is None, "None in a layer without the input 'norm'")
        return
    require("norm_epsilon", isinstance(epsilon, Real) and 0 <= float(epsilon) < 1, "a number from 0 to 1")
    if read.peephole or read.w_hr or node.attrs.get("input_forget"):
        raise UnsupportedError(
            f"{_label(node)}: a layer with layer normalisation has no peepholes, no projection and no coupled gates."
        )


def _is_activation(entry: Any) -> bool:
    return (
        isinstance(entry, list | tuple)
        and len(entry) == 3
        and isinstance(entry[0], str)
        and all(value is None or isinstance(value, Real) for value in entry[1:])
    )


def _check_scales(node: Node, constants: Mapping[str, Array], label: str) -> None:
    """Check that integer weights, and only they, have a scale for each row that fits."""
    for position, scale_position in QUANTISED_INPUTS[node.op]:
        weight, scale = constants.get(node.input(position)), constants.get(node.input(scale_position))
        if bool(node.input(scale_position)) != (weight is not None and weight.dtype.kind == "i"):
            raise UnsupportedError(
                f"{label}: integer weights, and only they, take a scale; '{node.input(position)}' "
                f"{'has' if node.input(scale_position) else 'has no'} scale."
            )
        if weight is None or not node.input(scale_position):
            continue
        wanted = weight.shape[1:] if node.op == "Dense" else weight.shape[:-1]
        if weight.dtype.itemsize > 2 or scale is None or scale.dtype.name != "float32" or scale.shape != wanted:
            got = "none" if scale is None else f"{scale.dtype}{list(scale.shape)}"
            raise UnsupportedError(
                f"{label}: '{node.input(position)}' should be int16 or int8 with a float32 scale of the shape "
                f"{list(wanted)}; got {weight.dtype}{list(weight.shape)} with {got}."
            )
        rows = weight.T if node.op == "Dense" else weight
        limit, block = value_limit(
            8 * weight.dtype.itemsize, node.op in RECURRENT_OPS and position == RecurrentInputs.position("w_hh")
        )
        if limit * largest_sums(rows.astype("int64"), block).max(initial=0) > SUM_LIMIT:
            raise UnsupportedError(
                f"{label}: '{node.input(position)}' holds integers so large that their sums could pass 32 bits. "
                "Convert the model again from its source."
            )


def _label(node: Node) -> str:
    return f"{node.op} node '{node.name or node.output(0)}'"


def check_weights(node: Node, constants: Mapping[str, Array]) -> None:
    """Check those weights of a recurrent or dense layer that are constants; other nodes pass.

    Kernels take the sizes of weights from the layer. So whatever packs weights for a kernel asks here first: what
    passes have folded and what comes at run time has not been part of the graph that was validated.

    Raises
    ------
    UnsupportedError
        If a weight is missing, or its shape or dtype is not the layer's. The message names the node.
    """
    if node.op in RECURRENT_OPS:
        _check_recurrent(node, constants, _label(node))
    elif node.op == "Dense":
        _check_dense(node, constants, _label(node))


def _check_dense(node: Node, constants: Mapping[str, Array], label: str) -> None:
    weight, bias = constants.get(node.input(1)), constants.get(node.input(2))
    if weight is None:
        return
    if weight.ndim != 2 or not (weight.dtype.kind == "f" or (node.input(3) and weight.dtype.kind == "i")):
        raise UnsupportedError(
            f"{label}: the weight should be a float array of shape [inputs, outputs]; "
            f"got {weight.dtype}{list(weight.shape)}."
        )
    if bias is not None and (bias.dtype.kind != "f" or bias.shape != weight.shape[1:]):
        raise UnsupportedError(
            f"{label}: the bias should be a float array of shape {list(weight.shape[1:])}; "
            f"got {bias.dtype}{list(bias.shape)}."
        )


def _check_recurrent(node: Node, constants: Mapping[str, Array], label: str) -> None:
    G, H = RECURRENT_OPS[node.op], int(node.attrs["hidden_size"])
    D, read = len(node.attrs["directions"]), RecurrentInputs.of(node)
    if H < 1 or not all((read.x, read.w_ih, read.w_hh)):
        raise UnsupportedError(f"{label}: expected x, w_ih, w_hh and a hidden size of at least 1; got a size of {H}.")
    w_hr = constants.get(read.w_hr)
    P: int | None = H
    if read.w_hr:
        P = int(w_hr.shape[1]) if w_hr is not None and w_hr.ndim == 3 else None
    expected: dict[str, tuple[int | None, ...]] = {
        "w_ih": (D, G * H, None),
        "w_hh": (D, G * H, P),
        "bias": (D, 4 * H if node.op == "GRU" else G * H),
        "peephole": (D, 3 * H),
        "w_hr": (D, P, H),
        "norm": (D, 10 * H),
    }
    for name, shape in expected.items():
        array = constants.get(getattr(read, name))
        if array is None:
            continue
        fits = array.ndim == len(shape) and all(
            want in (None, got) for got, want in zip(array.shape, shape, strict=True)
        )
        scaled = bool(getattr(read, f"{name}_scale", ""))
        narrow = array.dtype.name in ("int16", "int8") and scaled
        # Products over no value at all are nobody's layer, and kernels start from at least one.
        if not fits or not array.size or not (array.dtype.kind == "f" or narrow):
            wanted = ", ".join("any but 0" if w is None else str(w) for w in shape)
            raise UnsupportedError(
                f"{label}: {name} should be a float array of shape [{wanted}] "
                f"(directions {D}, hidden size {H}); got {array.dtype}{list(array.shape)}."
            )

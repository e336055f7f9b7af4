"""The graph: the one description of a model that every part of fastlstm agrees on.

A `Graph` is plain frozen data. Converters build it, passes rewrite it, the plan reads it, the
``.fastlstm`` file stores it, and `fastlstm.operators.reference` defines what it means.

Operators
---------
Operators carry ONNX names and have the meaning of ONNX opset 21 (axes, shapes, pads and the like that
newer opsets take as inputs are inputs here too), with these additions in one canonical form:

``LSTM``, ``GRU``, ``RNN``
    Time-major; gates in the order i, f, g, o (LSTM) or r, z, n (GRU); one bias vector.

    inputs, in this order (``""`` = absent; absent ones at the end may be left out):

    ========  ===========  ==================================================================
    position  name         shape and meaning
    ========  ===========  ==================================================================
    0         x            [T, B, I]
    1         w_ih         [D, G*H, I]   G = 4, 3, 1
    2         w_hh         [D, G*H, P]   P = H unless there is a projection
    3         bias         [D, G*H]; GRU [D, 4*H]: b_r, b_z, b_in, b_hn (the last one is
                           inside the product with r when reset_after=1, else added to n)
    4         lengths      [B] integers; absent: every row has length T
    5         mask         [T, B] bool; a False step keeps the state and repeats the last output
                           (zero before the first True step, as Keras does)
    6         h_0          [D, B, P]; absent: zero
    7         c_0          [D, B, H]; LSTM only; absent: zero
    8         peephole     [D, 3*H] in the order i, f, o; LSTM only
    9         w_hr         [D, P, H] projection; LSTM only
    10        w_ih_scale   [D, G*H]; present if w_ih is int16 or int8: the weights are w * scale
    11        w_hh_scale   the same for w_hh
    12        w_hr_scale   [D, P]; the same for w_hr
    13        norm         [D, 10*H] scales of layer normalisation: of the input's sums [4*H], of the
                           recurrent sums [4*H], of the cell states [H], and these states' bias
                           [H]; ``bias`` is that of the sums. LSTM only, without 8 and 9
    ========  ===========  ==================================================================

    outputs: y [T, B, D*P] (0 past a row's length), h_n [D, B, P], c_n [D, B, H] (LSTM only), the states
    after each row's last valid step; a row of length 0 keeps its initial state.

    attributes: ``hidden_size`` int; ``directions`` list of "forward" | "reverse" (a reverse direction starts at
    each row's own end and its y stands at the time it belongs to); ``activations`` one list a direction of
    [name, alpha, beta] (None where a parameter does not apply) in the order f, g, h (LSTM: gates, cell input,
    cell output), f, g (GRU: gates, candidate), f (RNN), names as in `fastlstm.operators.activations`; ``clip``
    float or None, which is the default; ``input_forget`` 0, the default, or 1 (LSTM); ``norm_epsilon`` what is
    added to variances, None, the default, without ``norm`` (LSTM); ``reset_after`` 0 | 1 (GRU).

``Dense``
    x [..., I], weight [I, O], bias [O] or absent, scale [O] if the weight is int16 or int8 -> [..., O].

Layers with integer weights are made by `fastlstm.graph.quantise`; they are computed with rows quantised to 16 bits,
and `fastlstm.operators.reference` defines what they approximate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from fastlstm.typing import Array

__all__ = [
    "QUANTISED_INPUTS",
    "RECURRENT_OPS",
    "Graph",
    "Node",
    "Recurrent",
    "RecurrentInputs",
    "TensorSpec",
    "default_activations",
    "is_narrow",
    "is_normalised",
    "multiplies_integers",
]

RECURRENT_OPS: Mapping[str, int] = MappingProxyType({"LSTM": 4, "GRU": 3, "RNN": 1})
"""Recurrent operators and their number of gates."""


def default_activations(op: str, directions: int = 1) -> list[list[list[Any]]]:
    """Return the standard activations of `op` for each direction, in the form of the attribute."""
    names = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[op]
    return [[[name, None, None] for name in names] for _ in range(directions)]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a model's input or output.

    Attributes
    ----------
    name : str
    shape : tuple of int or str
        A dimension that is not known before run time is a str, such as ``"batch"``; ``("...",)`` is an
        unknown rank (of outputs, and inside the bodies of control flow).
    dtype : str
        NumPy's name of the dtype, such as ``"float32"`` or ``"int64"``; ``""`` where the source does not say
        it, ``"sequence"`` for a sequence.

    Examples
    --------
    >>> import fastlstm
    >>> print(fastlstm.TensorSpec("x", ("time", "batch", 3)))
    x: float32[time, batch, 3]
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class Node:
    """One operation: named values in, named values out, attributes as plain data.

    `attrs` holds ints, floats, strings, None, lists of these, and `Graph` (bodies of If, Loop, Scan).
    An absent optional input or output is ``""``.

    Attributes
    ----------
    op : str
        An ONNX operator's name, or one of those at the top of this module.
    inputs, outputs : tuple of str
        Names of values.
    attrs : mapping of str to plain data
    name : str

    Examples
    --------
    >>> import fastlstm
    >>> print(fastlstm.Node("Add", ("x", "bias"), ("y",)))
    y = Add(x, bias)
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def input(self, position: int) -> str:
        """Return the input's value name at `position`, ``""`` if it is absent."""
        return self.inputs[position] if position < len(self.inputs) else ""

    def output(self, position: int) -> str:
        """Return the output's value name at `position`, ``""`` if it is absent."""
        return self.outputs[position] if position < len(self.outputs) else ""

    @property
    def first_output(self) -> str:
        """The first output that is not absent, ``""`` if all are."""
        return next(filter(None, self.outputs), "")

    def __str__(self) -> str:
        attrs = ", ".join(f"{k}={'<graph>' if isinstance(v, Graph) else v}" for k, v in self.attrs.items())
        return f"{', '.join(self.outputs)} = {self.op}({', '.join(self.inputs)}{'; ' + attrs if attrs else ''})"


class RecurrentInputs(NamedTuple):
    """The values that a recurrent node reads, in the order of its inputs; ``""`` where one is absent.

    This is the one place that knows the order; what each means stands at the top of the module.
    """

    x: str
    w_ih: str
    w_hh: str
    bias: str = ""
    lengths: str = ""
    mask: str = ""
    h_0: str = ""
    c_0: str = ""
    peephole: str = ""
    w_hr: str = ""
    w_ih_scale: str = ""
    w_hh_scale: str = ""
    w_hr_scale: str = ""
    norm: str = ""

    @classmethod
    def of(cls, node: Node) -> RecurrentInputs:
        """Return what a node reads."""
        return cls(*(node.input(position) for position in range(len(cls._fields))))

    @classmethod
    def position(cls, name: str) -> int:
        """Return at which position an input stands."""
        return cls._fields.index(name)

    def given(self) -> tuple[str, ...]:
        """Return the inputs of a node: without the absent ones at the end."""
        last = max(position for position, name in enumerate(self) if name)
        return self[: last + 1]


@dataclass(frozen=True)
class Recurrent:
    """A recurrent node by the names of its inputs and options; `of` makes it.

    Attributes
    ----------
    op : str
    label : str
        What people call it.
    inputs : RecurrentInputs
    y, h_n, c_n : str
        The outputs, ``""`` where one is absent.
    hidden_size : int
    directions : tuple of str
    activations : sequence
        As the attribute has them.
    clip : float or None
    input_forget, reset_after : bool
    norm_epsilon : float or None
    """

    op: str
    label: str
    inputs: RecurrentInputs
    y: str
    h_n: str
    c_n: str
    hidden_size: int
    directions: tuple[str, ...]
    activations: Sequence[Sequence[Sequence[Any]]]
    clip: float | None
    input_forget: bool
    reset_after: bool
    norm_epsilon: float | None

    @classmethod
    def of(cls, node: Node) -> Recurrent:
        """Return the view of a node that was validated."""
        attrs, clip = node.attrs, node.attrs.get("clip")
        return cls(
            node.op, node.name or node.output(0) or node.op, RecurrentInputs.of(node),
            node.output(0), node.output(1), node.output(2),
            int(attrs["hidden_size"]), tuple(attrs["directions"]), attrs["activations"],
            None if clip is None else float(clip), bool(attrs.get("input_forget")), bool(attrs.get("reset_after")),
            float(attrs["norm_epsilon"]) if attrs.get("norm_epsilon") is not None else None,
        )  # fmt: skip

    @property
    def gates(self) -> int:
        """Gates of a cell."""
        return RECURRENT_OPS[self.op]


def _with_scale(*weights: str) -> tuple[tuple[int, int], ...]:
    position = RecurrentInputs.position
    return tuple((position(name), position(f"{name}_scale")) for name in weights)


QUANTISED_INPUTS: Mapping[str, tuple[tuple[int, int], ...]] = MappingProxyType(
    {
        "LSTM": _with_scale("w_ih", "w_hh", "w_hr"),
        "GRU": _with_scale("w_ih", "w_hh"),
        "RNN": _with_scale("w_ih", "w_hh"),
        "Dense": ((1, 3),),
    }
)
"""Operators whose weights may be integers: the positions of each weight and of its scale."""


@dataclass(frozen=True)
class Graph:
    """A model as data: inputs, outputs, nodes in the order they run, and constant tensors.

    Attributes
    ----------
    inputs, outputs : tuple of TensorSpec
    nodes : tuple of Node
        In topological order. Every value has one definition: an input, a constant or a node's output.
    constants : mapping of str to array
        Weights and other constant tensors.
    name : str
    notes : tuple of str
        What a converter assumed because the source did not say it; shown to the user.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> x, y = (fastlstm.TensorSpec(name, ("batch", 3)) for name in "xy")
    >>> node = fastlstm.Node("Add", ("x", "one"), ("y",))
    >>> graph = fastlstm.Graph((x,), (y,), (node,), {"one": np.ones(3, np.float32)})
    >>> fastlstm.Model(graph)(np.zeros((1, 3), np.float32))
    array([[1., 1., 1.]], dtype=float32)
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array] = field(default_factory=dict)
    name: str = ""
    notes: tuple[str, ...] = ()

    def replace(self, **changes: Any) -> Graph:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def producers(self) -> dict[str, Node]:
        """Return, for every value that a node makes, that node."""
        return {output: node for node in self.nodes for output in node.outputs if output}

    def consumers(self) -> dict[str, list[Node]]:
        """Return, for every value, the nodes that read it (bodies of control flow included)."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys([*node.inputs, *outer_values(node)]):
                if value:
                    readers.setdefault(value, []).append(node)
        return readers

    def subgraphs(self) -> Iterator[Graph]:
        """Yield the bodies of this graph's control-flow nodes, one level deep."""
        for node in self.nodes:
            yield from (value for value in node.attrs.values() if isinstance(value, Graph))

    def __str__(self) -> str:
        lines = [f"graph {self.name or '(unnamed)'}"]
        lines += [f"  input  {spec}" for spec in self.inputs]
        lines += [f"  const  {name}: {a.dtype}{list(a.shape)}" for name, a in self.constants.items()]
        lines += [f"  {node}" for node in self.nodes]
        lines += [f"  output {spec}" for spec in self.outputs]
        lines += [f"  note   {note}" for note in self.notes]
        return "\n".join(lines)


def is_normalised(graph: Graph) -> bool:
    """Return whether any layer of the graph is an LSTM with layer normalisation."""
    norm = RecurrentInputs.position("norm")
    return any(node.op == "LSTM" and bool(node.input(norm)) for node in graph.nodes) or any(
        is_normalised(body) for body in graph.subgraphs()
    )


def is_narrow(graph: Graph) -> bool:
    """Return whether any layer of the graph has integer weights."""
    return any(
        bool(node.input(scale)) for node in graph.nodes for _, scale in QUANTISED_INPUTS.get(node.op, ())
    ) or any(is_narrow(body) for body in graph.subgraphs())


def multiplies_integers(graph: Graph) -> bool:
    """Return whether any node of the graph multiplies integers as they are."""
    return any("integers" in node.attrs for node in graph.nodes) or any(
        multiplies_integers(body) for body in graph.subgraphs()
    )


def outer_values(node: Node) -> list[str]:
    """Return the values that the bodies of a control-flow node read from the graph around them."""
    found: list[str] = []
    for body in (v for v in node.attrs.values() if isinstance(v, Graph)):
        own = {spec.name for spec in body.inputs} | set(body.constants) | set(body.producers())
        reads = [v for n in body.nodes for v in [*n.inputs, *outer_values(n)]]
        reads += [spec.name for spec in body.outputs]
        found += [v for v in reads if v and v not in own]
    return list(dict.fromkeys(found))

"""Applying small rewrites to a graph until nothing changes.

A rewrite is a function ``(scope, node) -> nodes or None``: it looks at one node, at the nodes before it and
at what is known of their values, and returns the nodes to put in its place (the last of them make the same
output names), or None to leave it. ``Identity(a) -> b`` as a result means that b is a.

`sweep` walks the graph once, in order; every node is rewritten until no rule applies to it, and what is known
of its outputs is inferred as it is put in place. So one sweep is linear, and a rule always sees the finished
part of the graph before its node. Correctness never depends on `Scope.sole`, only the amount of work does.
"""

from __future__ import annotations

from collections import ChainMap, Counter, deque
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlstm.graph import Graph, Node, outer_values
from fastlstm.operators import misfit
from fastlstm.operators.dims import Shape
from fastlstm.operators.values import UNKNOWN, ValueInfo
from fastlstm.passes.shapes import body_inputs, infer, infer_node, operands
from fastlstm.typing import Array

__all__ = [
    "RANDOM",
    "Budget",
    "Names",
    "Rewrite",
    "Rules",
    "Scope",
    "fixpoint",
    "prune",
    "renamed",
    "renamed_body",
    "sweep",
    "what_is_computed",
]

_STEPS_PER_NODE = 64
"""This many rewrites in a row at one node mean that two rules undo each other; the node is then kept."""

_BUDGET = 64 << 20
_COPIES = 8
"""Weights may be rearranged in several steps (Slice, Concat, Unsqueeze, Transpose), each of which copies them."""

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
"""Operators whose result is different every time."""


class Budget:
    """How many bytes may still be folded into constants, in proportion to the model's own constants.

    A limit on each result is not enough: twenty steps that each double it make it a million times as large.

    Parameters
    ----------
    graph : Graph
        As it was read.
    """

    def __init__(self, graph: Graph) -> None:
        self.left = _BUDGET + _COPIES * _nbytes(graph)

    def take(self, size: int) -> bool:
        """Spend `size` bytes, if that many are left."""
        enough = size <= self.left
        self.left -= size if enough else 0
        return enough


def _nbytes(graph: Graph) -> int:
    own = sum(array.nbytes for array in graph.constants.values())
    return own + sum(_nbytes(body) for body in graph.subgraphs())


class Names:
    """The names that are taken anywhere in a graph or its bodies; makes new ones."""

    def __init__(self, graph: Graph) -> None:
        self._taken: set[str] = set()
        self._collect(graph)
        self._numbers: Counter[str] = Counter()

    def _collect(self, graph: Graph) -> None:
        self._taken.update(spec.name for spec in (*graph.inputs, *graph.outputs))
        self._taken.update(graph.constants)
        for node in graph.nodes:
            self._taken.update(node.outputs)
        for body in graph.subgraphs():
            self._collect(body)

    def fresh(self, hint: str) -> str:
        """Return a new name like `hint`."""
        while True:
            self._numbers[hint] += 1
            name = f"{hint}~{self._numbers[hint]}"
            if name not in self._taken:
                self._taken.add(name)
                return name


@dataclass
class Scope:
    """What a rewrite may look at and use.

    Attributes
    ----------
    constants : mapping of str to array
        This graph's constants, then those around it.
    infos : mapping of str to ValueInfo
        Of every value that is defined before the node at hand.
    producers : dict of str to Node
        The nodes of this graph already in place, by output.
    transposes : dict of str to list of Node
        Those of them that transpose a value, by that value.
    order : dict of str to int
        The position of the node that makes a value.
    uses : Counter
        How often each value is read.
    outputs : frozenset of str
        The names that this graph must define in the end.
    budget : Budget
        For constants, of the whole model.
    whole : dict of str to (array, array)
        Of constants that were bytes: the integers and the scale, which broadcasts over them.
    folded : dict of tuple to list of array
        The results of nodes over constants, by what is computed: all steps of an unrolled layer transpose the same
        weights.
    """

    constants: MutableMapping[str, Array]
    infos: MutableMapping[str, ValueInfo]
    names: Names
    uses: Counter[str]
    outputs: frozenset[str]
    budget: Budget
    producers: dict[str, Node] = field(default_factory=dict)
    transposes: dict[str, list[Node]] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    whole: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    folded: dict[tuple[Any, ...], list[Array]] = field(default_factory=dict)
    _derived: dict[tuple[Any, ...], str | None] = field(default_factory=dict)
    _fitted: tuple[Node | None, bool] = (None, False)
    _inferred: tuple[Node | None, tuple[ValueInfo, ...]] = (None, ())

    def info(self, name: str) -> ValueInfo:
        """Return what is known of a value; of an absent one, nothing."""
        return self.infos.get(name, UNKNOWN) if name else UNKNOWN

    def shape(self, name: str) -> Shape | None:
        """Return a value's symbolic shape."""
        return self.info(name).shape

    def fits(self, node: Node) -> bool:
        """Tell whether a node can run on its inputs."""
        if self._fitted[0] is not node:
            self._fitted = node, not misfit(operands(node, self.infos))
        return self._fitted[1]

    def infer(self, node: Node) -> tuple[ValueInfo, ...]:
        """Return what is known of the outputs of a node that is not in place yet."""
        if self._inferred[0] is not node:  # several rules ask for it, and then it takes its place
            self._inferred = node, infer_node(node, self.infos, self.fits(node))
        return self._inferred[1]

    def const(self, name: str) -> Array | None:
        """Return the constant called `name`, if there is one."""
        return self.constants.get(name) if name else None

    def numbers(self, name: str) -> list[int] | None:
        """Return the elements of a small integer tensor if they are all known."""
        return self.info(name).numbers

    def maker(self, name: str, *ops: str) -> Node | None:
        """Return the node that makes `name` if it is one of `ops` (any, if none are given)."""
        node = self.producers.get(name)
        return node if node is not None and (not ops or node.op in ops) else None

    def sole(self, name: str) -> bool:
        """Tell whether `name` has one reader and is not an output of the graph."""
        return self.uses[name] <= 1 and name not in self.outputs

    def fresh(self, hint: str) -> str:
        """Return a new value name."""
        return self.names.fresh(hint)

    def constant(self, hint: str, value: Any) -> str:
        """Add a constant and return its name. Python ints become int64."""
        name, array = self.fresh(hint), np.asarray(value)
        self.constants[name] = array
        self.infos[name] = ValueInfo.of_array(array)
        return name

    def derived(self, source: str, how: tuple[Any, ...], make: Callable[[], Array | None]) -> str | None:
        """Return the name of a constant that is made of another one, None if it cannot be.

        It is made once: all steps of an unrolled layer read the same weights, and ask for the same thing.
        """
        key = (source, *how)
        if key not in self._derived:
            array = make()
            self._derived[key] = None if array is None else self.constant(source, array)
        return self._derived[key]

    def slice(
        self,
        value: str,
        output: str,
        starts: Sequence[int],
        ends: Sequence[int],
        axes: Sequence[int],
        steps: Sequence[int] | None = None,
        name: str = "",
    ) -> Node:
        """Return a Slice of `value` with constant bounds."""
        bounds = {"start": starts, "end": ends, "axes": axes, **({} if steps is None else {"steps": steps})}
        inputs = (value, *(self.constant(f"{output}.{what}", numbers) for what, numbers in bounds.items()))
        return Node("Slice", inputs, (output,), {}, name)


Rewrite = Callable[[Scope, Node], "Sequence[Node] | None"]
Rules = Mapping[str, Sequence[Rewrite]]
"""Operator -> the rewrites to try; those under ``"*"`` are tried on every node."""


def fixpoint(graph: Graph, rules: Rules, budget: Budget, rounds: int = 12) -> tuple[Graph, Mapping[str, ValueInfo]]:
    """Sweep and prune until nothing changes, `rounds` times at most; return the graph and what is known of its values.

    That is what `shapes.infer` tells, which would compute it again, and perhaps of values that are no longer there.
    """
    for _ in range(rounds):
        last = _Sweep(graph, rules, Names(graph), budget, None, None)
        swept, changed = last.run()
        graph = prune(swept)
        if not changed:
            return graph, last.scope.infos
    return graph, infer(graph)


def sweep(
    graph: Graph,
    rules: Rules,
    names: Names,
    budget: Budget,
    around: Scope | None = None,
    inputs: Sequence[ValueInfo] | None = None,
) -> tuple[Graph, bool]:
    """Rewrite a graph once; return it and whether anything changed.

    Parameters
    ----------
    graph : Graph
    rules : Rules
    names : Names
        Of the whole model.
    budget : Budget
        For its constants.
    around : Scope, optional
        For a body: the scope of the control-flow node.
    inputs : sequence of ValueInfo, optional
        For a body: what holds of its inputs.
    """
    return _Sweep(graph, rules, names, budget, around, inputs).run()


class _Sweep:
    def __init__(
        self,
        graph: Graph,
        rules: Rules,
        names: Names,
        budget: Budget,
        around: Scope | None,
        inputs: Sequence[ValueInfo] | None,
    ) -> None:
        self.graph, self.rules, self.names = graph, rules, names
        self.nodes: list[Node] = []
        self.aliases: dict[str, str] = {}
        self.seen: dict[tuple[Any, ...], Node] = {}
        self.changed = False
        self.own: dict[str, Array] = dict(graph.constants)
        infos = {name: ValueInfo.of_array(array) for name, array in self.own.items()}
        given = [ValueInfo.of_spec(spec) for spec in graph.inputs] if inputs is None else inputs
        infos.update((spec.name, info) for spec, info in zip(graph.inputs, given, strict=True))
        outputs = [spec.name for spec in graph.outputs]
        uses = Counter(v for n in graph.nodes for v in (*n.inputs, *outer_values(n)) if v)
        uses.update(outputs)
        self.scope = Scope(
            self.own if around is None else ChainMap(self.own, around.constants),
            infos if around is None else ChainMap(infos, around.infos),
            names,
            uses,
            frozenset(outputs),
            budget,
        )

    def run(self) -> tuple[Graph, bool]:
        for node in self.graph.nodes:
            self.place(node)
        outputs = tuple(self.graph.outputs)
        return self.graph.replace(nodes=tuple(self.nodes), constants=self.own, outputs=outputs), self.changed

    def place(self, original: Node) -> None:
        """Rewrite one node until no rule applies, and add the result to the graph."""
        waiting, steps = deque([original]), 0
        while waiting:
            node = renamed(waiting.popleft(), self.aliases)
            fits = self.scope.fits(node)
            replacement = self.first(node) if fits and steps < _STEPS_PER_NODE else None
            if replacement is None:
                self.put(node, fits)
            else:
                steps += 1
                self.changed = True
                waiting.extendleft(reversed(replacement))

    def first(self, node: Node) -> Sequence[Node] | None:
        """Return what the first rule that applies makes of the node."""
        for rewrite in (*self.rules.get(node.op, ()), *self.rules.get("*", ())):
            replacement = rewrite(self.scope, node)
            if replacement is not None:
                return replacement
        return None

    def put(self, node: Node, fits: bool) -> None:
        if node.op == "Identity" and node.outputs[0] not in self.scope.outputs:
            self.alias(node.outputs[0], node.inputs[0])
            return
        if any(isinstance(value, Graph) for value in node.attrs.values()):
            node = self.with_bodies(node)
        if self.repeats(node):
            return
        # Rewrites ignore nodes that cannot run, or that reverse an unknown number of axes.
        plain = fits and (node.op != "Transpose" or node.attrs.get("perm") is not None)
        for name, info in zip(node.outputs, self.scope.infer(node), strict=True):
            if name:
                self.scope.infos[name] = info
                self.scope.order[name] = len(self.nodes)
                if plain:
                    self.scope.producers[name] = node
        if node.op == "Transpose" and plain:
            self.scope.transposes.setdefault(node.inputs[0], []).append(node)
        self.nodes.append(node)

    def alias(self, name: str, meaning: str) -> None:
        self.aliases[name] = meaning
        self.scope.uses[meaning] += self.scope.uses[name] - 1
        self.changed = True

    def repeats(self, node: Node) -> bool:
        """Make the outputs of a node that repeats an earlier one aliases of the earlier one's."""
        if node.op in RANDOM or node.op == "Identity" or any(isinstance(v, Graph) for v in node.attrs.values()):
            return False
        key = what_is_computed(node)
        earlier = self.seen.setdefault(key, node)
        if earlier is node:
            return False
        for name, meaning in zip(node.outputs, earlier.outputs, strict=True):
            if not name:
                continue
            if not meaning or name in self.scope.outputs:
                return False
        for name, meaning in zip(node.outputs, earlier.outputs, strict=True):
            if name:
                self.alias(name, meaning)
        return True

    def with_bodies(self, node: Node) -> Node:
        """Sweep the bodies of a control-flow node with what holds of their inputs."""
        inputs = None if node.op == "If" else body_inputs(node, self.scope.infos)
        attrs = dict(node.attrs)
        for key, value in node.attrs.items():
            if isinstance(value, Graph):
                body, changed = sweep(value, self.rules, self.names, self.scope.budget, self.scope, inputs)
                attrs[key] = body
                self.changed |= changed
        return Node(node.op, node.inputs, node.outputs, attrs, node.name)


def what_is_computed(node: Node) -> tuple[Any, ...]:
    """Return a key that nodes without bodies share if they compute the same."""
    return node.op, node.inputs, len(node.outputs), repr(sorted(node.attrs.items()))


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """Return the node reading other values, inside its bodies too."""
    if not names:
        return node
    inputs = tuple(names.get(v, v) for v in node.inputs)
    attrs = {k: renamed_body(v, names) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
    same = inputs == node.inputs and all(attrs[k] is v for k, v in node.attrs.items())
    return node if same else Node(node.op, inputs, node.outputs, attrs, node.name)


def renamed_body(body: Graph, names: Mapping[str, str]) -> Graph:
    """Return the body reading other values from around it."""
    own = {spec.name for spec in body.inputs} | set(body.constants) | set(body.producers())
    visible = {old: new for old, new in names.items() if old not in own}
    if not visible:
        return body
    # A body's output keeps its name: what it passes on from outside goes through an Identity.
    passed_on = [spec.name for spec in body.outputs if spec.name in visible]
    forwarded = [Node("Identity", (visible[name],), (name,)) for name in passed_on]
    return body.replace(nodes=(*forwarded, *(renamed(node, visible) for node in body.nodes)))


def prune(graph: Graph) -> Graph:
    """Drop nodes and constants that nothing reads, and Identity nodes in front of outputs.

    Nodes inside bodies are dropped too; a body keeps its inputs and outputs.
    """
    graph = _without_forwarding(graph)
    needed = {spec.name for spec in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            continue
        attrs = {k: prune(v) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
        node = Node(node.op, node.inputs, node.outputs, attrs, node.name)
        needed.update(node.inputs, outer_values(node))
        kept.append(node)
    constants = {name: array for name, array in graph.constants.items() if name in needed}
    return graph.replace(nodes=tuple(reversed(kept)), constants=constants)


def _without_forwarding(graph: Graph) -> Graph:
    """``v = Op(…); out = Identity(v)``  →  ``out = Op(…)``: the value takes the output's name."""
    taken = {spec.name for spec in graph.outputs}
    made = {name for node in graph.nodes for name in node.outputs}
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "Identity" or node.outputs[0] not in taken:
            continue
        value = node.inputs[0]
        if value in made and value not in taken and value not in names:
            names[value] = node.outputs[0]
    if not names:
        return graph
    nodes = []
    for node in graph.nodes:
        if node.op == "Identity" and names.get(node.inputs[0]) == node.outputs[0]:
            continue
        node = renamed(node, names)
        outputs = tuple(names.get(v, v) for v in node.outputs)
        nodes.append(Node(node.op, node.inputs, outputs, node.attrs, node.name))
    return graph.replace(nodes=tuple(nodes))

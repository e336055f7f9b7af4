"""Reading a ``GraphProto`` node by node into a `Graph`.

Every node passes the same gates: its operator is known to ONNX at the model's opset, inputs and attributes
are those of its schema, older forms become the opset-21 form, and what remains must be in the table of
`operators`, or one of those that ONNX's reference implementation runs. Recurrent nodes and the calls of local
functions are written out instead.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from fastlstm.converters.onnx import microsoft
from fastlstm.converters.onnx.constants import Budget
from fastlstm.converters.onnx.operators import DTYPE_ATTRIBUTES, OPERATORS
from fastlstm.converters.onnx.opsets import FORMS, current_form, referred
from fastlstm.converters.onnx.recurrent import ATTRIBUTES as RECURRENT
from fastlstm.converters.onnx.recurrent import recurrent
from fastlstm.converters.onnx.scope import OnnxNode, Scope
from fastlstm.converters.onnx.tensors import BFLOAT16, UNKNOWN_RANK, TensorReader, element_type, tensor_spec
from fastlstm.errors import FileFormatError, UnsupportedError, nearest
from fastlstm.graph import Graph, TensorSpec
from fastlstm.operators import onnx_reference
from fastlstm.operators.validation import validated

__all__ = ["NEWEST_OPSET", "OLDEST_OPSET", "Importer"]

OLDEST_OPSET = 6
NEWEST_OPSET = 28
"""The newest ai.onnx opset whose operators were compared with this converter's reading of them."""

# Functions that call functions can multiply a small file without end.
_MOST_NODES = 50_000
_DEEPEST = 64

# AttributeProto.type: where the value is and what it is called in messages.
_FIELDS = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings"}
_KINDS = dict(zip(_FIELDS, ("float", "int", "string", "tensor", "graph", "floats", "ints", "strings"), strict=True))


@dataclass(frozen=True)
class Frame:
    """What a name, an operator or an attribute reference means at one place of the file.

    Attributes
    ----------
    opsets : mapping of domain to version
    names : ChainMap
        The file's value names to those of the Graph: this graph's first, then those of the graphs around.
    used : frozenset of str
        The file's names that something reads.
    attrs : mapping
        Inside a local function: attribute name to (type, value) of the call.
    prefix : str
        Put before new names inside a function, where one body is read several times.
    """

    opsets: Mapping[str, int]
    names: ChainMap[str, str]
    used: frozenset[str]
    attrs: Mapping[str, tuple[int, Any]] = field(default_factory=dict)
    prefix: str = ""


class Importer:
    """Reads one model.

    Parameters
    ----------
    model : onnx.ModelProto
    tensors : TensorReader
    schemas : module
        ``onnx.defs``.
    """

    def __init__(self, model: Any, tensors: TensorReader, schemas: Any) -> None:
        self.model = model
        self.tensors = tensors
        self.schemas = schemas
        self.functions = {(_domain(f), f.name, getattr(f, "overload", "")): f for f in model.functions}
        self.dims = _invented_dims(model.graph)
        self.count = self.depth = 0

    def run(self) -> Graph:
        """Return the model as a validated Graph."""
        frame = Frame(_opsets(self.model), ChainMap(), frozenset(_reads(self.model.graph)))
        scope = Scope(self.model.graph.name)
        scope.reserve(list(_definitions(self.model.graph)))
        graph = self._graph(self.model.graph, frame, scope)
        return validated(graph.replace(notes=tuple(scope.notes)))

    def _graph(self, proto: Any, frame: Frame, scope: Scope) -> Graph:
        body = scope.outer is not None
        if proto.sparse_initializer:
            name = proto.sparse_initializer[0].values.name
            raise UnsupportedError(f"The sparse initializer '{name}' is not supported; supported: dense ones.")
        initial = [tensor.name for tensor in proto.initializer]
        for value in proto.input:
            if value.name not in initial:
                self._input(value, frame, scope, body)
        for tensor in proto.initializer:
            name = _write(frame, scope, tensor.name, "an initializer")
            if tensor.data_type == BFLOAT16:
                _note_bfloat16(scope)
            scope.constants[name] = self.tensors.read(tensor, "The initializer")
        if not body:
            scope.budget = Budget(self.tensors.available)
        for value in [*proto.value_info, *proto.output]:
            scope.specs.setdefault(value.name, tensor_spec(value, "The value"))
        for node in proto.node:
            self._node(node, frame, scope)
        outputs: list[TensorSpec] = []
        for value in proto.output:
            name = _read(frame, value.name, "The graph's output list")
            if name in (spec.name for spec in outputs):
                raise FileFormatError(f"The output '{name}' is listed twice.")
            outputs.append(replace(self._with_dims(tensor_spec(value, "The output")), name=name))
        return scope.finish(outputs)

    def _input(self, value: Any, frame: Frame, scope: Scope, body: bool) -> None:
        spec = tensor_spec(value, "The input")
        if not body and spec.dtype != "sequence" and (spec.shape == UNKNOWN_RANK or not spec.dtype):
            raise UnsupportedError(f"The input '{spec.name}' has no shape; supported are tensors of known rank.")
        if value.type.tensor_type.elem_type == BFLOAT16:
            _note_bfloat16(scope)
        name = _write(frame, scope, spec.name, "an input")
        scope.specs[name] = replace(self._with_dims(spec), name=name)
        scope.inputs.append(scope.specs[name])

    def _with_dims(self, spec: TensorSpec) -> TensorSpec:
        """Give unnamed dimensions of unknown size names of their own."""
        if spec.shape == UNKNOWN_RANK:
            return spec
        return replace(spec, shape=tuple(next(self.dims) if d == "" else d for d in spec.shape))

    def _node(self, proto: Any, frame: Frame, scope: Scope) -> None:
        """Read one node: check it, bring it to its current form, and add it to `scope`."""
        self.count += bool(frame.prefix)
        if self.count > _MOST_NODES:
            raise UnsupportedError(
                f"The model's functions write out to more than {_MOST_NODES} nodes, the most that are read."
            )
        domain = _domain(proto)
        label = f"{proto.op_type} node '{_title(proto)}'"
        attrs = self._attributes(proto, frame, scope, label)
        inputs = tuple(_read(frame, name, label) for name in proto.input)
        key = (domain, proto.op_type, getattr(proto, "overload", ""))
        if key in self.functions:
            self._call(key, proto, inputs, attrs, frame, scope)
            return
        if domain not in frame.opsets:
            raise FileFormatError(f"{label}: the model names no version of its domain '{domain}'.")
        if domain not in ("", microsoft.DOMAIN):
            raise UnsupportedError(
                f"{label}: the domain '{domain}' is not supported; supported: ai.onnx, local functions, "
                f"and of {microsoft.DOMAIN}: {', '.join(microsoft.OPERATORS)}."
            )
        if not domain:
            self._check_schema(proto, frame.opsets[""], attrs, label)
        outputs = tuple(
            _write(frame, scope, name, label) if name and name in frame.used else "" for name in proto.output
        )
        values = {name: value for name, (_, value) in attrs.items()}
        name = frame.prefix + _title(proto)
        node = OnnxNode(proto.op_type, frame.opsets[domain], inputs, outputs, values, name)
        if domain:
            microsoft.convert(node, scope)
        else:
            convert(node, scope)

    def _attributes(self, proto: Any, frame: Frame, scope: Scope, label: str) -> dict[str, tuple[int, Any]]:
        """Return the attributes as (type, value), references to a function's attributes resolved."""
        found: dict[str, tuple[int, Any]] = {}
        for attribute in proto.attribute:
            name = attribute.name
            if name in found:
                raise FileFormatError(f"{label} has the attribute '{name}' twice.")
            if attribute.ref_attr_name:
                if attribute.ref_attr_name in frame.attrs:
                    found[name] = frame.attrs[attribute.ref_attr_name]
                continue
            found[name] = (attribute.type, self._attribute(attribute, frame, scope, f"{label}: '{name}'"))
        return found

    def _attribute(self, attribute: Any, frame: Frame, scope: Scope, where: str) -> Any:
        if attribute.type not in _FIELDS:
            raise UnsupportedError(
                f"{where} is an attribute of type {attribute.type}; supported: {', '.join(_KINDS.values())}."
            )
        value = getattr(attribute, _FIELDS[attribute.type])
        try:
            if attribute.type == 3:
                return value.decode()
            if attribute.type == 8:
                return [v.decode() for v in value]
        except UnicodeDecodeError:
            raise FileFormatError(f"{where} is text that is not UTF-8.") from None
        if attribute.type == 4:
            if value.data_type == BFLOAT16:
                _note_bfloat16(scope)
            return self.tensors.read(value, where)
        if attribute.type == 5:
            self._descend(where)
            inner = replace(frame, names=frame.names.new_child(), used=frozenset(_reads(value)))
            body = self._graph(value, inner, Scope(value.name, outer=scope))
            self.depth -= 1
            return body
        return list(value) if attribute.type > 5 else value

    def _check_schema(self, proto: Any, opset: int, attrs: Mapping[str, tuple[int, Any]], label: str) -> None:
        """Hold a node against ONNX's own definition of its operator at this opset."""
        known = proto.op_type in OPERATORS or proto.op_type in FORMS or proto.op_type in RECURRENT
        known = known or proto.op_type in onnx_reference.REFERRED
        schema = None
        if known:
            try:
                schema = self.schemas.get_schema(proto.op_type, opset, "")
            except self.schemas.SchemaError:  # there is no such operator at this opset
                schema = None
        if schema is None:
            alike = nearest(proto.op_type, {*OPERATORS, *FORMS, *RECURRENT, *onnx_reference.REFERRED})
            raise UnsupportedError(
                f"{label}: the operator is not supported at opset {opset}; {alike}. The table in converters/README.md "
                "names all."
            )
        for name, (kind, _) in attrs.items():
            if name not in schema.attributes:
                supported = ", ".join(sorted(schema.attributes)) or "none"
                raise UnsupportedError(
                    f"{label}: the attribute '{name}' is not one of {proto.op_type}'s at opset {opset}; "
                    f"supported: {supported}."
                )
            wanted = int(schema.attributes[name].type.value)
            if kind != wanted:
                raise FileFormatError(
                    f"{label}: the attribute '{name}' should be of type {_KINDS.get(wanted, wanted)}; "
                    f"got {_KINDS[kind]}."
                )
        for name, attribute in schema.attributes.items():
            if attribute.required and name not in attrs:
                raise FileFormatError(f"{label} lacks the attribute '{name}'.")
        _check_arity(proto, schema, label)

    def _call(
        self,
        key: tuple[str, str, str],
        proto: Any,
        inputs: tuple[str, ...],
        attrs: Mapping[str, tuple[int, Any]],
        frame: Frame,
        scope: Scope,
    ) -> None:
        """Write out the call of a local function."""
        function = self.functions[key]
        label = f"{proto.op_type} node '{_title(proto)}'"
        self._descend(label)
        defaults = {a.name: a for a in function.attribute_proto}
        unknown = sorted(set(attrs) - set(defaults) - set(function.attribute))
        if unknown:
            supported = ", ".join([*function.attribute, *defaults]) or "none"
            raise UnsupportedError(f"{label}: the function has no attribute '{unknown[0]}'; supported: {supported}.")
        if len(inputs) > len(function.input) or len(proto.output) > len(function.output):
            raise FileFormatError(
                f"{label} has {len(inputs)} inputs and {len(proto.output)} outputs; the function has "
                f"{len(function.input)} and {len(function.output)}."
            )
        inside = Frame(
            opsets=_opsets(function),
            names=ChainMap({"": ""}),
            used=frozenset(_reads(function)),
            attrs={n: (a.type, self._attribute(a, frame, scope, f"{label}: '{n}'")) for n, a in defaults.items()}
            | dict(attrs),
            prefix=f"{frame.prefix}{_title(proto)}/",
        )
        given = [*inputs, *[""] * (len(function.input) - len(inputs))]
        inside.names.update(zip(function.input, given, strict=True))
        for node in function.node:
            self._node(node, inside, scope)
        for name, inner in zip(proto.output, function.output, strict=False):
            if name in frame.used:
                source = _read(inside, inner, label)
                scope.define("Identity", [source], [_write(frame, scope, name, label)], inside.prefix[:-1])
        self.depth -= 1

    def _descend(self, label: str) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise FileFormatError(f"{label}: a function calls itself, or bodies lie over {_DEEPEST} deep.")


def convert(node: OnnxNode, scope: Scope) -> None:
    """Write a node of ai.onnx, whose schema was checked, into `scope` in its canonical form.

    Raises
    ------
    UnsupportedError
        If what it asks for is not in the table of operators.
    """
    if node.op in RECURRENT:
        recurrent(node, scope)
        return
    if node.op in onnx_reference.REFERRED and node.op not in OPERATORS:
        referred(node, scope)
        return
    current = current_form(node, scope)
    if current is None:
        return
    known = OPERATORS[current.op]
    attrs: dict[str, Any] = {}
    for name, value in current.attrs.items():
        if name not in known:
            supported = ", ".join(known) or "none"
            raise node.unsupported(f"the attribute '{name}' is not supported; supported: {supported}.")
        if known[name].choices and str(value) not in known[name].choices:
            supported = ", ".join(known[name].choices)
            raise node.unsupported(f"{name}={value!r} is not supported; supported: {supported}.")
        if not known[name].dropped:
            attrs[name] = _dtype_number(node, name, value, scope) if name in DTYPE_ATTRIBUTES else value
    scope.define(current.op, current.inputs, current.outputs, current.name, **attrs)


def _dtype_number(node: OnnxNode, name: str, value: Any, scope: Scope) -> Any:
    if isinstance(value, str):  # ConstantOfShape's, a NumPy name already
        return value
    element_type(value, f"{node.op} node '{node.name}', attribute '{name}'")
    if value == BFLOAT16:
        _note_bfloat16(scope)
        return 1
    return value


def _note_bfloat16(scope: Scope) -> None:
    scope.note("bfloat16 is computed as float32.")


def _check_arity(proto: Any, schema: Any, label: str) -> None:
    single = type(schema.inputs[0].option).Single if schema.inputs else None
    for formal, name in zip(schema.inputs, [*proto.input, *[""] * len(schema.inputs)], strict=False):
        if formal.option == single and not name:
            raise FileFormatError(f"{label} lacks its input '{formal.name}'.")
    for what, names, least, most in (
        ("input", proto.input, schema.min_input, schema.max_input),
        ("output", proto.output, schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            raise FileFormatError(
                f"{label} should have {least} to {most} {what}s; it has {len(names)}."
                if least != most
                else f"{label} should have {least} {what}(s); it has {len(names)}."
            )


def _domain(proto: Any) -> str:
    return "" if proto.domain == "ai.onnx" else str(proto.domain)


def _title(proto: Any) -> str:
    """Return what a node is called in messages: its name, or else its first output's."""
    return str(proto.name or next((o for o in proto.output if o), proto.op_type))


def _opsets(proto: Any) -> dict[str, int]:
    """Return the versions that a model or function imports, checked for what is supported."""
    opsets = {_domain(entry): int(entry.version) for entry in proto.opset_import}
    if "" in opsets and not OLDEST_OPSET <= opsets[""] <= NEWEST_OPSET:
        raise UnsupportedError(
            f"'{proto.name if hasattr(proto, 'name') else 'The model'}' is written for ai.onnx opset "
            f"{opsets['']}; supported: {OLDEST_OPSET} to {NEWEST_OPSET}."
        )
    return opsets


def _read(frame: Frame, name: str, label: str) -> str:
    if not name:
        return ""
    if name not in frame.names:
        raise FileFormatError(
            f"{label} reads '{name}', which nothing before it defines: "
            "the name is wrong, the nodes are out of order, or the graph is cyclic."
        )
    return frame.names[name]


def _write(frame: Frame, scope: Scope, name: str, label: str) -> str:
    """Define a name of the file and return what it is called in the Graph."""
    if name in frame.names.maps[0]:
        raise FileFormatError(f"The value '{name}' is defined twice (again by {label}).")
    if not name:
        raise FileFormatError(f"A value without a name is defined (by {label}).")
    frame.names[name] = scope.unique(frame.prefix + name) if frame.prefix else name
    return frame.names[name]


def _reads(proto: Any) -> Iterator[str]:
    """Yield every name that a graph or function reads, the bodies inside it included."""
    for node in proto.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == 5:
                yield from _reads(attribute.g)
    for output in proto.output:
        yield output if isinstance(output, str) else output.name


def _definitions(graph: Any) -> Iterator[str]:
    """Yield every name that a graph and the bodies inside it define."""
    for value in [*graph.input, *graph.initializer]:
        yield value.name
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            if attribute.type == 5:
                yield from _definitions(attribute.g)


def _invented_dims(graph: Any) -> Iterator[str]:
    """Yield names for the dimensions of inputs and outputs to which the file gives neither size nor name."""
    values = [*graph.input, *graph.output]
    named = {d.dim_param for value in values for d in value.type.tensor_type.shape.dim}
    return (name for name in (f"dim{number}" for number in count()) if name not in named)

"""PyTorch's exported programs (``.pt2``) read as data: JSON and raw numbers, without torch.

A ``.pt2`` file is a zip archive: ``models/NAME.json`` holds the graph (schema: ``torch/_export/serde/schema.py``),
``data/weights`` and ``data/constants`` the tensors as raw bytes. Its ``sample_inputs`` are a pickle and are not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlstm.converters.common.archive import Archive
from fastlstm.converters.common.json_fields import Fields, parsed
from fastlstm.converters.torch.kept_state import kept
from fastlstm.converters.torch.pickles import StoredTensor
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.typing import Array

__all__ = ["Call", "LoopBody", "Program", "SymInt", "Tensor", "TensorMeta", "read_program", "short_name"]

_JSON_BYTES = 64 << 20
_SCHEMA = 8
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
           12: "bool", 13: "bfloat16"}  # fmt: skip
_SYMBOL = re.compile(r"Symbol\('(\w+)'[^)]*\)")


@dataclass(frozen=True)
class Tensor:
    """A reference to a tensor of the program."""

    name: str


@dataclass(frozen=True)
class SymInt:
    """A reference to an integer that is known at run time."""

    name: str


@dataclass(frozen=True)
class TensorMeta:
    """What the program says of a tensor; a dimension known only at run time is an expression."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Call:
    """One operation: its target such as ``aten.linear.default``, arguments by name, names of its outputs.

    An output that is a list of tensors is a tuple of names; one that is absent is ``""``.
    """

    target: str
    arguments: Mapping[str, Any]
    outputs: tuple[str | tuple[str, ...], ...]


def short_name(target: str) -> str:
    """Return the name in a target such as ``aten.NAME.OVERLOAD``."""
    return target.split(".")[1] if "." in target else target


@dataclass(frozen=True)
class LoopBody:
    """What a loop does in every round.

    Attributes
    ----------
    index : str
        The number of the round, as the program calls it.
    carried, results : tuple of str
        Tensors that are handed on: before a round and after it.
    calls : tuple of Call
    collected : tuple of str
        Tensors that are stacked over the rounds.
    """

    index: str
    carried: tuple[str, ...]
    calls: tuple[Call, ...]
    results: tuple[str, ...]
    collected: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """An exported program: the names of its inputs, constants, calls in order, and outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    calls: tuple[Call, ...]
    constants: Mapping[str, Array]
    metas: Mapping[str, TensorMeta]
    hints: Mapping[str, int] = field(default_factory=dict)
    """What the expressions among the sizes were in the example."""
    notes: tuple[str, ...] = ()

    def meta(self, name: str) -> TensorMeta:
        """Return dtype and shape of a tensor; FileFormatError if the program does not say them."""
        meta = self.metas.get(name)
        if meta is None:
            raise FileFormatError(f"The program does not say the shape of the tensor '{name}'.")
        return meta


def read_program(archive: Archive) -> Program:
    """Return the program that the archive holds.

    Raises
    ------
    FileFormatError
        If a part is missing or damaged.
    UnsupportedError
        If the program was stored by another version of the format, or changes its inputs or buffers.
    """
    return _Reader(archive).read()


class _Reader:
    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.where = f"'{archive.path}'"

    def read(self) -> Program:
        models = [n for n in self.archive.names if re.fullmatch(re.escape(self.archive.root) + r"models/\w+\.json", n)]
        if len(models) != 1:
            raise UnsupportedError(
                f"{self.where} holds {len(models)} programs where one is expected. Files written by torch.export.save "
                "of PyTorch 2.9 and newer are read: load an older one there and save it again."
            )
        model = self._json(models[0])
        version = model.object("schema_version").integer("major")
        if version != _SCHEMA:
            raise UnsupportedError(
                f"{self.where} has the schema {version}; supported: {_SCHEMA} "
                "(PyTorch 2.9 to 2.13). Load it with torch.export.load there and save it again."
            )
        module = model.object("graph_module")
        graph, signature = module.object("graph"), module.object("signature")
        name = models[0].rpartition("/")[2].removesuffix(".json")
        stored = {**self._tensors("weights", name), **self._tensors("constants", name)}
        inputs: list[str] = []
        constants: dict[str, Array] = {}
        for spec in signature.objects("input_specs"):
            kind = spec.only_key()
            if kind == "user_input":
                inputs += _tensor_names(spec.object(kind).object("arg"))
            elif kind in _STORED:
                held = spec.object(kind)
                key = held.text(_STORED[kind], None)
                if key not in stored:
                    raise FileFormatError(f"{held.where}: the archive lacks the tensor '{key}'.")
                constants[_name(held.object("arg"))] = stored[key]
            elif kind != "constant_input":
                raise UnsupportedError(f"{self.where}: an input of the kind '{kind}' is not supported.")
        tensors = graph.object("tensor_values")
        described = {key: tensors.object(key) for key in tensors.keys}
        return Program(
            inputs=tuple(inputs),
            outputs=tuple(self._outputs(signature)),
            calls=tuple(self._call(node) for node in graph.objects("nodes")),
            constants=constants,
            metas={key: _meta(tensor) for key, tensor in described.items()},
            hints=dict(hint for tensor in described.values() for hint in _hints(tensor)),
        )

    def _json(self, member: str) -> Fields:
        return parsed(self.archive.read(member, _JSON_BYTES), f"{self.where}, {member}")

    def _tensors(self, folder: str, model: str) -> dict[str, Array]:
        """Return the tensors of one folder by their names, each checked against its file's size."""
        base = f"{self.archive.root}data/{folder}/"
        listing = f"{base}{model}_{folder}_config.json"
        if listing not in self.archive:
            return {}
        tensors: dict[str, Array] = {}
        data: dict[str, bytes] = {}
        total = 0
        config = self._json(listing).object("config")
        for name in config.keys:
            entry = config.object(name)
            member = base + entry.text("path_name", None)
            if entry.flag("use_pickle"):
                raise UnsupportedError(f"{self.where}: the tensor '{name}' is stored as a pickle, which is not read.")
            if member not in data:
                data[member] = self.archive.read(member)
            tensor = _stored(entry.object("tensor_meta"), data[member])
            total += tensor.nbytes
            if total > max(16 * self.archive.bytes, 1 << 20):
                raise FileFormatError(f"{self.where} describes tensors far larger than the file.")
            tensors[name] = tensor.view(data[member])
        return tensors

    def _outputs(self, signature: Fields) -> Iterator[str]:
        for spec in signature.objects("output_specs"):
            kind = spec.only_key()
            if kind == "buffer_mutation":
                raise kept(self.where, spec.object(kind).text("buffer_name", None))
            if kind != "user_output":
                raise UnsupportedError(
                    f"{self.where}: the program has an output of the kind '{kind}', so it changes its "
                    "inputs; export it in evaluation mode (model.eval())."
                )
            argument = spec.object(kind).object("arg")
            names = _tensor_names(argument)
            if not names and "as_none" not in argument:
                raise UnsupportedError(f"{self.where}: an output is no tensor; supported: tensors.")
            yield from names

    def _call(self, node: Fields) -> Call:
        target = node.text("target", None)
        outputs: list[str | tuple[str, ...]] = []
        for output in node.objects("outputs"):
            kind = output.only_key()
            if kind in ("as_tensor", "as_optional_tensor"):
                outputs.append(output.object(kind).text("name"))
            elif kind == "as_tensors":
                outputs.append(tuple(map(_name, output.objects(kind))))
            elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
                outputs.append(output.object(kind).text("as_name"))
            elif kind == "as_none":
                outputs.append("")
            else:
                raise UnsupportedError(f"{self.where}: {target} gives an output of the kind '{kind}'.")
        arguments = {}
        for position, item in enumerate(node.objects("inputs")):
            arguments[item.text("name") or str(position)] = self._argument(item.object("arg"), target)
        return Call(target.removeprefix("torch.ops."), arguments, tuple(outputs))

    def _argument(self, argument: Fields, target: str) -> Any:
        kind = argument.only_key()
        if kind in _PLAIN:
            return _PLAIN[kind](argument, kind)
        if kind in ("as_none", "as_device", "as_layout", "as_memory_format"):
            return None
        if kind == "as_tensor":
            return Tensor(_name(argument.object(kind)))
        if kind == "as_tensors":
            return [Tensor(_name(item)) for item in argument.objects(kind)]
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            return _symbolic(argument.object(kind))
        if kind == "as_sym_ints":
            return [_symbolic(item) for item in argument.objects(kind)]
        if kind == "as_optional_tensor":
            return _optional(argument.object(kind))
        if kind == "as_optional_tensors":
            return [_optional(item) for item in argument.objects(kind)]
        if kind == "as_scalar_type":
            return _dtype(argument, kind)
        raise UnsupportedError(f"{self.where}: {target} takes an argument of the kind '{kind}': not supported.")


_STORED = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


def _name(tensor: Fields) -> str:
    return tensor.text("name", None)


def _tensor_names(argument: Fields) -> list[str]:
    return [_name(argument.object("as_tensor"))] if "as_tensor" in argument else []


def _optional(item: Fields) -> Tensor | None:
    return Tensor(_name(item.object("as_tensor"))) if "as_tensor" in item else None


def _symbolic(content: Fields) -> Any:
    kind = content.only_key()
    if kind == "as_name":
        return SymInt(content.text(kind, None))
    if kind in _PLAIN:
        return _PLAIN[kind](content, kind)
    raise FileFormatError(f"{content.where}: a number of the kind '{kind}' is not known.")


def _dtype(fields: Fields, key: str) -> str:
    code = fields.integer(key)
    if code not in _DTYPES:
        raise UnsupportedError(f"{fields.where}: the element type {code} is not supported.")
    return _DTYPES[code]


def _meta(content: Fields) -> TensorMeta:
    return TensorMeta(_dtype(content, "dtype"), tuple(map(_dimension, content.objects("sizes"))))


def _dimension(size: Fields) -> int | str:
    if "as_expr" not in size:
        return size.size("as_int", least=0)
    return _SYMBOL.sub(r"\1", size.object("as_expr").text("expr_str", None))


def _hints(tensor: Fields) -> Iterator[tuple[str, int]]:
    """Yield the expressions among a tensor's sizes with what they were in the example."""
    for size in tensor.objects("sizes"):
        expression = size.object("as_expr") if "as_expr" in size else None
        if expression is not None and "hint" in expression and "as_int" in expression.object("hint"):
            yield str(_dimension(size)), expression.object("hint").size("as_int", least=0)


def _stored(content: Fields, data: bytes) -> StoredTensor:
    meta = _meta(content)
    strides = [stride.integer("as_int") for stride in content.objects("strides")]
    itemsize = 2 if meta.dtype == "bfloat16" else np.dtype(meta.dtype).itemsize
    offset = content.object("storage_offset").integer("as_int")
    if len(data) % itemsize:
        raise FileFormatError(f"{content.where}: its {len(data)} bytes are no multiple of a {meta.dtype}.")
    try:
        return StoredTensor.checked("", meta.dtype, len(data) // itemsize, offset, meta.shape, strides)
    except ValueError as error:
        raise FileFormatError(f"{content.where}: {error}.") from None


_PLAIN: Mapping[str, Callable[[Fields, str], Any]] = {
    "as_int": Fields.integer,
    "as_float": Fields.real,
    "as_bool": Fields.flag,
    "as_string": lambda fields, key: fields.text(key, None),
    "as_ints": lambda fields, key: fields.each(key, Fields.integer),
    "as_floats": lambda fields, key: fields.each(key, Fields.real),
    "as_bools": lambda fields, key: fields.each(key, Fields.flag),
}
"""Arguments that are numbers, texts and lists of them, by their kind."""

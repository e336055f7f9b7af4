"""PyTorch's exported programs (``.pt2``) read as data: JSON and raw numbers, without torch.

A ``.pt2`` file is a zip archive: ``models/NAME.json`` holds the graph (schema: ``torch/_export/serde/schema.py``),
``data/weights`` and ``data/constants`` the tensors as raw bytes. Its ``sample_inputs`` are a pickle and stay unread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.converters.common.archive import Archive
from fastlstm.converters.torch.kept_state import kept
from fastlstm.converters.torch.pickles import StoredTensor
from fastlstm.errors import FileFormatError, UnsupportedError

__all__ = ["Call", "LoopBody", "Program", "SymInt", "Tensor", "TensorMeta", "read_program"]

Array = npt.NDArray[Any]

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
    """A reference to a whole number that is known at run time."""

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
        Tensors that are put side by side over the rounds.
    """

    index: str
    carried: tuple[str, ...]
    calls: tuple[Call, ...]
    results: tuple[str, ...]
    collected: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """An exported program: what goes in by name, constants, calls in order, and what comes out."""

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
    try:
        return _Reader(archive).read()
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise FileFormatError(f"'{archive.path}' holds a damaged program: {type(error).__name__} {error}.") from None


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
        if model["schema_version"]["major"] != _SCHEMA:
            raise UnsupportedError(
                f"{self.where} has the schema {model['schema_version']['major']}; supported: {_SCHEMA} "
                "(PyTorch 2.9 to 2.13). Load it with torch.export.load there and save it again."
            )
        module = model["graph_module"]
        graph = module["graph"]
        name = models[0].rpartition("/")[2].removesuffix(".json")
        stored = {**self._tensors("weights", name), **self._tensors("constants", name)}
        inputs: list[str] = []
        constants: dict[str, Array] = {}
        for spec in module["signature"]["input_specs"]:
            ((kind, content),) = spec.items()
            if kind == "user_input":
                inputs += _tensor_names(content["arg"])
            elif kind in _STORED:
                constants[content["arg"]["name"]] = stored[content[_STORED[kind]]]
            elif kind != "constant_input":
                raise UnsupportedError(f"{self.where}: an input of the kind '{kind}' is not supported.")
        return Program(
            inputs=tuple(inputs),
            outputs=tuple(self._outputs(module["signature"]["output_specs"])),
            calls=tuple(self._call(node) for node in graph["nodes"]),
            constants=constants,
            metas={key: _meta(value) for key, value in graph["tensor_values"].items()},
            hints=dict(_hints(graph["tensor_values"].values())),
        )

    def _json(self, member: str) -> Any:
        return json.loads(self.archive.read(member, _JSON_BYTES))

    def _tensors(self, folder: str, model: str) -> dict[str, Array]:
        """Return the tensors of one folder by their names, each checked against its file's size."""
        base = f"{self.archive.root}data/{folder}/"
        listing = f"{base}{model}_{folder}_config.json"
        if listing not in self.archive:
            return {}
        tensors: dict[str, Array] = {}
        data: dict[str, bytes] = {}
        total = 0
        for name, entry in self._json(listing)["config"].items():
            meta, member = _meta(entry["tensor_meta"]), base + entry["path_name"]
            if entry["use_pickle"]:
                raise UnsupportedError(f"{self.where}: the tensor '{name}' is stored as a pickle, which is not read.")
            if member not in data:
                data[member] = self.archive.read(member)
            tensor = _stored(entry["tensor_meta"], meta, data[member])
            total += tensor.nbytes
            if total > max(16 * self.archive.bytes, 1 << 20):
                raise FileFormatError(f"{self.where} describes tensors far larger than the file.")
            tensors[name] = tensor.view(data[member])
        return tensors

    def _outputs(self, specs: list[Any]) -> Iterator[str]:
        for spec in specs:
            ((kind, content),) = spec.items()
            if kind == "buffer_mutation":
                raise kept(self.where, content["buffer_name"])
            if kind != "user_output":
                raise UnsupportedError(
                    f"{self.where}: the program has an output of the kind '{kind}', so it changes its "
                    "inputs; export it in evaluation mode (model.eval())."
                )
            names = _tensor_names(content["arg"])
            if not names and "as_none" not in content["arg"]:
                raise UnsupportedError(f"{self.where}: an output is no tensor; supported: tensors.")
            yield from names

    def _call(self, node: Any) -> Call:
        outputs: list[str | tuple[str, ...]] = []
        for output in node["outputs"]:
            ((kind, content),) = output.items()
            if kind in ("as_tensor", "as_optional_tensor"):
                outputs.append(_name(content.get("name", "")))
            elif kind == "as_tensors":
                outputs.append(tuple(_name(item["name"]) for item in content))
            elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
                outputs.append(_name(content.get("as_name", "")))
            elif kind == "as_none":
                outputs.append("")
            else:
                raise UnsupportedError(f"{self.where}: {node['target']} gives an output of the kind '{kind}'.")
        arguments = {}
        for position, item in enumerate(node["inputs"]):
            arguments[item["name"] or str(position)] = self._argument(item["arg"], node["target"])
        return Call(node["target"].removeprefix("torch.ops."), arguments, tuple(outputs))

    def _argument(self, argument: Any, target: str) -> Any:
        ((kind, content),) = argument.items()
        if kind in ("as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools"):
            return content
        if kind in ("as_none", "as_device", "as_layout", "as_memory_format"):
            return None
        if kind == "as_tensor":
            return Tensor(_name(content["name"]))
        if kind == "as_tensors":
            return [Tensor(_name(item["name"])) for item in content]
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            return _symbolic(content)
        if kind == "as_sym_ints":
            return [_symbolic(item) for item in content]
        if kind == "as_optional_tensor":
            return Tensor(_name(content["as_tensor"]["name"])) if "as_tensor" in content else None
        if kind == "as_optional_tensors":
            return [Tensor(_name(item["as_tensor"]["name"])) if "as_tensor" in item else None for item in content]
        if kind == "as_scalar_type":
            return _DTYPES[content]
        raise UnsupportedError(f"{self.where}: {target} takes an argument of the kind '{kind}': not supported.")


_STORED = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


def _tensor_names(argument: Any) -> list[str]:
    return [_name(argument["as_tensor"]["name"])] if "as_tensor" in argument else []


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name is {name!r:.40}")
    return name


def _symbolic(content: Any) -> Any:
    if "as_name" in content:
        return SymInt(_name(content["as_name"]))
    ((_, value),) = content.items()
    return value


def _meta(content: Any) -> TensorMeta:
    return TensorMeta(_DTYPES[content["dtype"]], tuple(_dimension(size) for size in content["sizes"]))


def _dimension(size: Any) -> int | str:
    if "as_int" in size:
        return int(size["as_int"])
    return _SYMBOL.sub(r"\1", size["as_expr"]["expr_str"])


def _hints(tensors: Iterable[Any]) -> Iterator[tuple[str, int]]:
    for size in (size for tensor in tensors for size in tensor["sizes"]):
        hint = (size["as_expr"].get("hint") or {}) if "as_expr" in size else {}
        if "as_int" in hint:
            yield str(_dimension(size)), int(hint["as_int"])


def _stored(content: Any, meta: TensorMeta, data: bytes) -> StoredTensor:
    strides = [stride["as_int"] for stride in content["strides"]]
    itemsize = 2 if meta.dtype == "bfloat16" else np.dtype(meta.dtype).itemsize
    offset = content["storage_offset"]["as_int"]
    return StoredTensor.checked("", meta.dtype, len(data) // itemsize, offset, meta.shape, strides)

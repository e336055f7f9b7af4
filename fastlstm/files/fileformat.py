"""The ``.fastlstm`` file: one safetensors file that holds a graph, its weights and golden samples.

Layout (format versions 1 to 3)
--------------------------------
Tensors, by name:

``constants/NAME``
    a constant of the graph, in its own dtype;
``nodes/I/ATTR/...``
    the same for the body that node I of the graph carries in its attribute ATTR, to any depth;
``golden/I/inputs/NAME``, ``golden/I/outputs/NAME``
    the I-th golden sample: inputs, and what the source's own framework made of them.

Metadata, all strings: ``fastlstm.format`` (the version), ``producer``, ``graph`` (JSON, see
`fastlstm.files.graph_json`), ``tensors`` (JSON: name to dtype and shape), ``golden`` (JSON: where each
sample's outputs come from), ``source`` (JSON: name and SHA-256 of the file it was converted from, or
null), ``sha256`` (of all other metadata and all tensors).

A file is untrusted input: its header is measured against the real size of the file before anything is
allocated, nothing in it is executed, and whatever does not fit is a `FileFormatError`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.errors import FastLSTMError, FileFormatError, InputError, UnsupportedError
from fastlstm.files.graph_json import from_json, parse_json, to_json
from fastlstm.files.graph_json import tensors as graph_tensors
from fastlstm.files.opening import Content, content_of, open_model, refuse_pointer
from fastlstm.graph import Graph, TensorSpec, is_narrow, is_normalised, multiplies_integers
from fastlstm.program.memory import memory_of
from fastlstm.typing import Array
from fastlstm.version import __version__

__all__ = ["FORMAT_VERSION", "GoldenSample", "Source", "StoredModel", "read", "read_content", "release", "write"]

FORMAT_VERSION = 3
"""The newest version that this release reads. Version 2 added layers with integer weights (`fastlstm.graph.quantise`),
version 3 layer normalisation inside of LSTMs, and products of integers. A model is written as the oldest that has
what it needs, which older releases read too."""

MAX_HEADER_BYTES = 16 << 20
"""Largest header that is read or written: parsed as Python objects it stays under half a gigabyte."""

MAX_GOLDEN = 64
"""Most golden samples in one file."""

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_METADATA = ("fastlstm.format", "producer", "graph", "tensors", "golden", "source", "sha256")


@dataclass(frozen=True)
class GoldenSample:
    """Inputs and the outputs that belong to them.

    Attributes
    ----------
    inputs, outputs : mapping of str to array
        By the names of the graph's inputs and outputs.
    origin : str
        What computed the outputs, such as ``"onnxruntime 1.23.0"``.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    origin: str = ""


@dataclass(frozen=True)
class Source:
    """The file a model was converted from: its name without folders, and its SHA-256 in hex."""

    name: str
    sha256: str

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Source:
        """Return the name and hash of the file at `path`."""
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return cls(Path(path).name, digest.hexdigest())


@dataclass(frozen=True)
class StoredModel:
    """What a ``.fastlstm`` file holds."""

    graph: Graph
    golden: tuple[GoldenSample, ...] = ()
    source: Source | None = None
    producer: str = ""


def write(
    path: str | os.PathLike[str],
    graph: Graph,
    golden: Sequence[GoldenSample] | None = None,
    source: Source | None = None,
    *,
    check: Callable[[StoredModel], None] | None = None,
) -> None:
    """Write a model to `path`: beside it first, read back, then renamed.

    So no half-written file is ever seen, and none that cannot be read again.

    Parameters
    ----------
    path : path
        An existing file there is replaced.
    graph : Graph
        Stored as it is. Its constants keep their dtypes.
    golden : sequence of GoldenSample, optional
    source : Source, optional
        The file the model was converted from.
    check : callable, optional
        Called with what was read back, before `path` is touched; whatever it raises keeps the file from being
        written (see `fastlstm.verification.comparison.check_stored`).

    Raises
    ------
    InputError
        If a constant's dtype cannot be stored, or a golden sample does not fit the graph.
    UnsupportedError
        If what was written does not read back as the same model, or `check` raised a `FastLSTMError`.
    """
    samples = tuple(golden or ())
    if len(samples) > MAX_GOLDEN:
        raise InputError(f"A .fastlstm file holds at most {MAX_GOLDEN} golden samples; got {len(samples)}.")
    for position, sample in enumerate(samples):
        if problem := _misfit(sample, graph):
            raise InputError(f"Golden sample {position} does not match the model: {problem}.")
    tensors = {name: _storable(name, array) for name, array in _tensors(graph, samples)}
    metadata = {
        "fastlstm.format": str(
            3 if is_normalised(graph) or multiplies_integers(graph) else 2 if is_narrow(graph) else 1
        ),
        "producer": f"fastlstm {__version__}",
        "graph": to_json(graph),
        "tensors": json.dumps({name: [a.dtype.name, list(a.shape)] for name, a in tensors.items()}),
        "golden": json.dumps([sample.origin for sample in samples]),
        "source": json.dumps([source.name, source.sha256] if source else None),
    }
    metadata["sha256"] = _digest(metadata, tensors)
    if len(json.dumps(metadata)) + sum(len(name) + 150 for name in tensors) > MAX_HEADER_BYTES:
        raise InputError(
            f"The model's graph has {len(graph.nodes)} nodes and {len(tensors)} tensors, more than a "
            f".fastlstm file's header of {MAX_HEADER_BYTES >> 20} MiB takes. Was a recurrence unrolled "
            "over time by the exporter? Export it with a loop or a recurrent layer instead."
        )

    def accept(aside: Path) -> None:
        try:
            stored = read(aside)
            if to_json(stored.graph) != metadata["graph"]:
                raise FileFormatError("its graph reads back as another one.")
            if check is not None:
                check(stored)
        except FastLSTMError as error:
            reason = str(error).removeprefix(f"{aside}: ")
            raise UnsupportedError(f"{path} was not written, because it could not be used again: {reason}") from error

    _replace_file(Path(path), tensors, metadata, accept)


def read(path: str | os.PathLike[str]) -> StoredModel:
    """Read a model from a ``.fastlstm`` file.

    Raises
    ------
    FileFormatError
        If the file is damaged, truncated, of a newer version, or something else altogether; the message
        says which.
    OSError
        If it cannot be opened.
    """
    with open_model(path) as file:
        content = content_of(file)
    return read_content(Path(path), content)


def read_content(path: Path, content: Content) -> StoredModel:
    """Read a model from what a file holds; raises as `read` does, and names the file in what it says."""
    header, start = _read_header(path, content)
    metadata = _check_metadata(path, header.pop("__metadata__", None))
    stored = _parse(path, "tensor table", metadata["tensors"])
    _check_tensors(path, header, stored)
    tensors = {name: _tensor(path, name, header[name], content, start) for name in stored}
    if _digest(metadata, tensors) != metadata["sha256"]:
        raise FileFormatError(
            f"{path} is damaged: its content no longer has the SHA-256 it was written with. Convert the "
            "model again, or fetch the file again."
        )
    return _assemble(path, metadata, tensors)


# --- writing ---------------------------------------------------------------------------------------------


def _tensors(graph: Graph, samples: Sequence[GoldenSample]) -> Iterator[tuple[str, Array]]:
    yield from graph_tensors(graph)
    for position, sample in enumerate(samples):
        for kind, arrays in (("inputs", sample.inputs), ("outputs", sample.outputs)):
            for name, array in arrays.items():
                yield f"golden/{position}/{kind}/{name}", array


def _storable(name: str, array: Array) -> Array:
    array = np.asarray(array, order="C")
    if array.dtype.name not in _DTYPES.values():
        raise InputError(
            f"The tensor '{name}' has the dtype {array.dtype}, which a .fastlstm file cannot hold; "
            f"it holds {', '.join(_DTYPES.values())}."
        )
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()

    def add(data: bytes) -> None:
        digest.update(struct.pack("<Q", len(data)))
        digest.update(data)

    for key in sorted(set(metadata) - {"sha256"}):
        add(key.encode())
        add(metadata[key].encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        add(name.encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _replace_file(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str], accept: Callable[[Path], None]
) -> None:
    """Put a new file in place of `path` once `accept` has taken it; `accept` raises otherwise."""
    import secrets  # who only reads waits for none of these

    import safetensors.numpy

    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", str(path.parent))
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        aside.touch(exist_ok=False)
        mode = aside.stat().st_mode  # as the umask wants it; newer safetensors writers make a private file
        safetensors.numpy.save_file(dict(tensors), aside, metadata=dict(metadata))
        aside.chmod(stat.S_IMODE(mode))
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        accept(aside)
        os.replace(aside, path)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk only when its folder is
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# --- reading ---------------------------------------------------------------------------------------------


def _read_header(path: Path, content: Content) -> tuple[dict[str, Any], int]:
    """Return the parsed safetensors header and where the tensors begin, after checking sizes against the file's."""
    size = len(content)
    refuse_pointer(path, bytes(content[:64]))
    if size < 9:
        raise FileFormatError(f"{path} is truncated: {size} bytes are too few for a .fastlstm file.")
    length = int(struct.unpack("<Q", content[:8])[0])
    if content[8:9] != b"{":
        raise FileFormatError(
            f"{path} is not a .fastlstm file: it does not begin with a safetensors header. "
            "To read a model of another format, give the file the suffix of that format."
        )
    if length > size - 8:
        raise FileFormatError(
            f"{path} is truncated or damaged: its header should take {length} bytes, but only {size - 8} follow."
        )
    if length > MAX_HEADER_BYTES:
        raise FileFormatError(
            f"{path}: the header is too large: {length} bytes, where at most {MAX_HEADER_BYTES} are read."
        )
    header = _parse(path, "header", content[8 : 8 + length])
    if not isinstance(header, dict):
        raise FileFormatError(f"{path}: the header is damaged: it is not a JSON object.")
    end = _end_of_tensors(path, header)
    if 8 + length + end > size:
        raise FileFormatError(
            f"{path} is truncated: its tensors should end at byte {8 + length + end}, but the file ends at byte {size}."
        )
    if 8 + length + end < size:
        raise FileFormatError(
            f"{path} is damaged: {size - 8 - length - end} bytes follow its last tensor, where none should."
        )
    return header, 8 + length


def _end_of_tensors(path: Path, header: Mapping[str, Any]) -> int:
    """Return where the last tensor ends, relative to the end of the header; each begins where another ends."""
    end = 0
    places = {name: _place(path, name, entry) for name, entry in header.items() if name != "__metadata__"}
    for name, (first, last) in sorted(places.items(), key=lambda item: item[1]):
        if first != end:
            raise FileFormatError(f"{path}: the tensor '{name}' begins at byte {first}, where {end} was expected.")
        end = last
    return end


def _tensor(path: Path, name: str, entry: Mapping[str, Any], content: Content, start: int) -> Array:
    """Return a tensor, read-only, as it lies in the file, whose tensors begin at `start`."""
    (first, last), shape = entry["data_offsets"], entry["shape"]
    if entry["dtype"] not in _DTYPES:
        raise FileFormatError(f"{path}: the tensor '{name}' has the dtype {entry['dtype']}, which is not known.")
    kind = np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<")
    if math.prod(shape) * kind.itemsize != last - first:
        raise FileFormatError(f"{path}: the tensor '{name}' has the shape {shape}, which {last - first} bytes are not.")
    flat = np.frombuffer(content, np.uint8, last - first, start + first)
    try:
        return (flat if (start + first) % kind.itemsize == 0 else flat.copy()).view(kind).reshape(shape)
    except ValueError as error:  # no elements, and sizes that no array has
        raise FileFormatError(f"{path}: the tensor '{name}' cannot be read: {error}.") from error


def release(arrays: Iterable[Array]) -> None:
    """Let the system take back the memory of tensors that are mapped from a file; they are read again when used."""
    bases = [memory_of(array).base for array in arrays]
    maps = {id(base): base for base in (getattr(base, "obj", base) for base in bases)}
    for content in maps.values():
        if isinstance(content, mmap.mmap) and hasattr(content, "madvise"):
            content.madvise(mmap.MADV_DONTNEED)


def _place(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Return where the tensor of this header entry begins and ends, relative to the end of the header."""
    fields = {"dtype": str, "shape": list, "data_offsets": list}
    if not (
        isinstance(entry, dict)
        and set(entry) == set(fields)
        and all(isinstance(entry[key], kind) for key, kind in fields.items())
        and len(entry["data_offsets"]) == 2
        and all(type(n) is int and 0 <= n < 1 << 62 for n in [*entry["shape"], *entry["data_offsets"]])
    ):
        raise FileFormatError(f"{path}: the header's entry for the tensor '{name}' is damaged.")
    first, last = entry["data_offsets"]
    return first, last


def _parse(path: Path, what: str, text: str | bytes) -> Any:
    try:
        return parse_json(text, what)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _check_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or "fastlstm.format" not in metadata:
        raise FileFormatError(
            f"{path} is a safetensors file without fastlstm's metadata. If it holds a PyTorch state dict, "
            "give it the suffix .safetensors and convert it."
        )
    version = metadata["fastlstm.format"]
    if not (isinstance(version, str) and version.isascii() and version.isdigit() and len(version) < 9):
        raise FileFormatError(f"{path}: the format version is damaged: {version!r} is not a number.")
    if int(version) > FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has the format version {version}; this release of fastlstm ({__version__}) reads up to "
            f"version {FORMAT_VERSION}. Update it with: pip install --upgrade fastlstm"
        )
    if int(version) < 1:
        raise FileFormatError(f"{path}: the format version is damaged: there is no version {version}.")
    if missing := [key for key in _METADATA if not isinstance(metadata.get(key), str)]:
        raise FileFormatError(f"{path}: the metadata is damaged: '{missing[0]}' is missing or not a string.")
    if unknown := sorted(set(metadata) - set(_METADATA)):
        raise FileFormatError(f"{path}: the metadata is damaged: '{unknown[0]}' is not known.")
    return metadata


def _check_tensors(path: Path, header: Mapping[str, Any], stored: Any) -> None:
    """Compare the tensors that are there with those that were written."""
    if not isinstance(stored, dict):
        raise FileFormatError(f"{path}: the tensor table is damaged: it is not a JSON object.")
    if missing := [name for name in stored if name not in header]:
        raise FileFormatError(f"{path}: the tensor '{missing[0]}' is missing.")
    if surplus := [name for name in header if name not in stored]:
        raise FileFormatError(f"{path}: the tensor '{surplus[0]}' does not belong to the model.")
    for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"])
        if [dtype, entry["shape"]] != stored[name]:
            raise FileFormatError(
                f"{path}: the tensor '{name}' has the dtype and shape "
                f"{dtype or entry['dtype']}{entry['shape']}; it was written as {_described(stored[name])}."
            )


def _described(entry: Any) -> str:
    return f"{entry[0]}{entry[1]}" if isinstance(entry, list) and len(entry) == 2 else "something else"


def _assemble(path: Path, metadata: Mapping[str, str], tensors: dict[str, Array]) -> StoredModel:
    rest = dict(tensors)
    origins = _parse(path, "list of golden samples", metadata["golden"])
    if not (
        isinstance(origins, list) and len(origins) <= MAX_GOLDEN and all(isinstance(origin, str) for origin in origins)
    ):
        raise FileFormatError(f"{path}: The list of golden samples is damaged.")
    golden = tuple(
        GoldenSample(_take(rest, f"golden/{position}/inputs/"), _take(rest, f"golden/{position}/outputs/"), origin)
        for position, origin in enumerate(origins)
    )
    try:
        graph = from_json(metadata["graph"], rest)
    except FastLSTMError as error:
        raise FileFormatError(f"{path}: {error}") from error
    for position, sample in enumerate(golden):
        if problem := _misfit(sample, graph):
            raise FileFormatError(f"{path}: golden sample {position} does not match the model: {problem}.")
    source = _parse(path, "source", metadata["source"])
    if source is not None and not (
        isinstance(source, list) and len(source) == 2 and all(isinstance(part, str) for part in source)
    ):
        raise FileFormatError(f"{path}: the source's name and hash are damaged.")
    return StoredModel(graph, golden, None if source is None else Source(*source), metadata["producer"])


def _take(tensors: dict[str, Array], prefix: str) -> dict[str, Array]:
    names = [name for name in tensors if name.startswith(prefix)]
    return {name[len(prefix) :]: tensors.pop(name) for name in names}


def _misfit(sample: GoldenSample, graph: Graph) -> str:
    """Return what keeps a sample from belonging to the graph, or an empty string."""
    for kind, arrays, specs in (
        ("inputs", sample.inputs, graph.inputs),
        ("outputs", sample.outputs, graph.outputs),
    ):
        names = {spec.name for spec in specs}
        if set(arrays) != names:
            return f"its {kind} are {sorted(arrays)}, the model's {sorted(names)}"
        if lists := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
            return f"'{lists[0]}' is no array; a sample holds arrays only"
    for spec in graph.inputs:
        array = sample.inputs[spec.name]
        if spec.dtype not in ("", array.dtype.name) or not _fits(array.shape, spec):
            return f"its input {spec.name} is {array.dtype}{list(array.shape)}, the model's {spec}"
    return ""


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    return spec.shape == ("...",) or (
        len(shape) == len(spec.shape)
        and all(isinstance(want, str) or got == want for got, want in zip(shape, spec.shape, strict=True))
    )

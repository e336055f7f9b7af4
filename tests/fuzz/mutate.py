"""Changes to model files: what damage, mistakes and malice look like, drawn from one number."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import safetensors
import safetensors.numpy
from onnx import numpy_helper

from fastlstm.converters.onnx.operators import OPERATORS
from fastlstm.files import fileformat

__all__ = ["draw", "is_changeable", "mutated"]

SIZES = (-(2**63), -(2**31), -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 16, 255, 4096, 2**20, 1919120248, 2**31, 2**40, 2**62)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e38, 1e300, float("inf"), float("nan"))
KINDS = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")
WORDS = ("", "forward", "reverse", "bidirectional", "Tanh", "Relu", "linear", "float64", "int64", "bool", "SAME_UPPER")
OPS = tuple(sorted(OPERATORS))


def draw(seed: int, files: Sequence[Path]) -> tuple[str, bytes]:
    """Return the name and the content of the mutated file that a seed stands for."""
    choose = random.Random(seed)
    path = choose.choice(files)
    return path.name, mutated(path, choose)


def mutated(path: Path, choose: random.Random) -> bytes:
    """Return the file's content changed; by its structure three times of four, else byte by byte."""
    data = path.read_bytes()
    by_structure = _STRUCTURES.get(path.suffix)
    if by_structure is None or choose.random() < 0.25:
        return damaged(data, choose)
    return by_structure(data, choose)


def is_changeable(name: str, data: bytes) -> bool:
    """Whether a file that was changed can be changed by its structure once more."""
    by_structure = _STRUCTURES.get(Path(name).suffix, damaged)
    try:
        return all(by_structure(data, random.Random(seed)) for seed in range(20))
    except Exception:  # noqa: BLE001 (whatever reads formats raises whatever it does)
        return False


def damaged(data: bytes, choose: random.Random) -> bytes:
    """Change bytes, without regard to what they mean."""
    changed = bytearray(data)
    for _ in range(choose.choice((1, 1, 2, 4, 16))):
        at = choose.randrange(len(changed) + 1)
        kind = choose.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] = choose.randrange(256)
        elif kind == 1:
            size = choose.choice(("<i", "<q", "<I", ">i"))
            number = choose.choice(SIZES) & (2 ** (8 * struct.calcsize(size) - 1) - 1)
            changed[at : at + struct.calcsize(size)] = struct.pack(size, number)
        elif kind == 2:
            del changed[at : at + choose.randrange(1, 9)]
        elif kind == 3:
            start = choose.randrange(len(changed) + 1)
            changed[at:at] = changed[start : start + choose.randrange(1, 65)]
        elif choose.random() < 0.2:
            del changed[at:]
    return bytes(changed)


# --- ONNX ------------------------------------------------------------------------------------------------


def _onnx(data: bytes, choose: random.Random) -> bytes:
    model = onnx.ModelProto.FromString(data)
    for _ in range(choose.choice((1, 1, 1, 2, 3, 6))):
        graph = choose.choice(list(_graphs(model.graph)))
        choose.choice(_ONNX_CHANGES)(graph, choose)
    return bytes(model.SerializeToString())


def _graphs(graph: Any) -> Any:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _values(graph: Any) -> list[str]:
    names = [v.name for v in [*graph.input, *graph.initializer]]
    return [*names, *(o for node in graph.node for o in node.output), ""]


def _node(graph: Any, choose: random.Random) -> Any:
    return choose.choice(graph.node) if graph.node else onnx.NodeProto()


def _read_another(graph: Any, choose: random.Random) -> None:
    node = _node(graph, choose)
    if node.input:
        node.input[choose.randrange(len(node.input))] = choose.choice(_values(graph))


def _inputs(graph: Any, choose: random.Random) -> None:
    node = _node(graph, choose)
    if choose.random() < 0.5:
        node.input.append(choose.choice(_values(graph)))
    elif node.input:
        del node.input[choose.randrange(len(node.input))]


def _outputs(graph: Any, choose: random.Random) -> None:
    node = _node(graph, choose)
    kind = choose.randrange(3)
    if kind == 0:
        node.output.append(f"more{choose.randrange(99)}")
    elif kind == 1 and node.output:
        node.output[choose.randrange(len(node.output))] = ""
    elif graph.output:
        graph.output[choose.randrange(len(graph.output))].name = choose.choice(_values(graph))


def _another_op(graph: Any, choose: random.Random) -> None:
    _node(graph, choose).op_type = choose.choice(OPS)


def _attribute(graph: Any, choose: random.Random) -> None:
    node = _node(graph, choose)
    if not node.attribute:
        name, number = choose.choice(("axis", "keepdims", "hidden_size", "perm", "axes")), choose.choice(SIZES)
        node.attribute.append(onnx.helper.make_attribute(name, [number] if name in ("perm", "axes") else number))
        return
    attribute = choose.choice(node.attribute)
    if choose.random() < 0.1:
        node.attribute.remove(attribute)
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = choose.choice(SIZES)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = choose.choice(FLOATS[:6])
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = choose.choice(WORDS).encode()
    elif attribute.type == onnx.AttributeProto.INTS:
        _list(attribute.ints, choose, SIZES)
    elif attribute.type == onnx.AttributeProto.STRINGS:
        _list(attribute.strings, choose, [word.encode() for word in WORDS])


def _list(held: Any, choose: random.Random, others: Sequence[Any]) -> None:
    kind = choose.randrange(3)
    if kind == 0 and held:
        held[choose.randrange(len(held))] = choose.choice(others)
    elif kind == 1 and held:
        del held[choose.randrange(len(held))]
    else:
        held.append(choose.choice(others))


def _tensor(graph: Any, choose: random.Random) -> None:
    """Give a constant another shape, element type or content, which its bytes fit."""
    if not graph.initializer:
        return
    tensor = choose.choice(graph.initializer)
    try:
        array = numpy_helper.to_array(tensor)
    except (TypeError, ValueError):  # changed before, so that its bytes do not fit any more
        return
    kind = choose.randrange(4)
    if array.dtype.kind == "i" and kind < 3:
        array = array.copy()
        for _ in range(choose.choice((1, 1, 2))):
            if array.size:
                array.reshape(-1)[choose.randrange(array.size)] = _fitting(choose.choice(SIZES), array.dtype)
    elif kind == 0:
        array = array.astype(choose.choice(KINDS))
    else:
        shape = list(array.shape)
        _list(shape, choose, (0, 1, 2, 3, 4, 8, 16, 32, 512))
        if choose.random() < 0.2:
            tensor.dims[:] = [choose.choice(SIZES) for _ in shape]
            return
        array = np.resize(array, shape) if array.size and np.prod(shape) < 1 << 16 else array[:0].ravel()
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _fitting(number: int, dtype: Any) -> int:
    limits = np.iinfo(dtype)
    return min(max(number, int(limits.min)), int(limits.max))


def _nodes(graph: Any, choose: random.Random) -> None:
    """Drop, double or swap nodes."""
    if not graph.node:
        return
    i, j = choose.randrange(len(graph.node)), choose.randrange(len(graph.node))
    kind = choose.randrange(3)
    if kind == 0:
        gone = graph.node[i]
        if gone.input and gone.output and choose.random() < 0.7:  # its output is its first input
            kept = onnx.helper.make_node("Identity", gone.input[:1], gone.output[:1])
            gone.CopyFrom(kept)
        else:
            del graph.node[i]
    elif kind == 1:
        copy = onnx.NodeProto()
        copy.CopyFrom(graph.node[i])
        for k, name in enumerate(copy.output):
            copy.output[k] = f"{name}'"
        graph.node.insert(min(i + 1, len(graph.node)), copy)
    else:
        first, second = onnx.NodeProto(), onnx.NodeProto()
        first.CopyFrom(graph.node[i])
        second.CopyFrom(graph.node[j])
        graph.node[i].CopyFrom(second)
        graph.node[j].CopyFrom(first)


def _inserted(graph: Any, choose: random.Random) -> None:
    """Put an operator between a value and one of its readers."""
    node = _node(graph, choose)
    if not node.input:
        return
    k = choose.randrange(len(node.input))
    new = onnx.helper.make_node(choose.choice(OPS), [node.input[k]], [f"new{choose.randrange(10**6)}"])
    for _ in range(choose.choice((0, 0, 1, 2))):
        new.input.append(choose.choice(_values(graph)))
    at = next(i for i, n in enumerate(graph.node) if n is node or n == node)
    node.input[k] = new.output[0]
    graph.node.insert(at, new)


def _described(graph: Any, choose: random.Random) -> None:
    """Change what an input is said to be."""
    if not graph.input:
        return
    kind = choose.choice(graph.input).type.tensor_type
    if choose.random() < 0.2:
        kind.elem_type = choose.choice((1, 6, 7, 9, 10, 11))
    elif kind.shape.dim and choose.random() < 0.7:
        dim = choose.choice(kind.shape.dim)
        if choose.random() < 0.5:
            dim.dim_value = max(choose.choice(SIZES), 0)
        else:
            dim.dim_param = choose.choice(("batch", "time", "n", ""))
    elif choose.random() < 0.5:
        kind.shape.dim.add().dim_value = choose.choice((1, 2, 3))
    elif kind.shape.dim:
        del kind.shape.dim[choose.randrange(len(kind.shape.dim))]


_ONNX_CHANGES: Sequence[Callable[[Any, random.Random], None]] = (
    _read_another, _inputs, _outputs, _another_op, _attribute, _attribute, _tensor, _tensor, _nodes, _inserted,
    _described,
)  # fmt: skip


# --- JSON, and what holds it -----------------------------------------------------------------------------


def changed_json(tree: Any, choose: random.Random) -> Any:
    """Return JSON data with one to six places changed."""
    for _ in range(choose.choice((1, 1, 2, 3, 6))):
        places = list(_places(tree))
        if not places:
            break
        # Long lists of weights would otherwise take nearly all of the changes.
        few = [place for place in places if not isinstance(place[0][place[1]], float)]
        holder, key = choose.choice(few if few and choose.random() < 0.9 else places)
        _change(holder, key, choose)
    return tree


def _places(tree: Any) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, held in list(items):
        yield tree, key
        yield from _places(held)


def _change(holder: Any, key: Any, choose: random.Random) -> None:
    held, kind = holder[key], choose.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, held)
    elif kind == 2:
        holder[key] = choose.choice((None, True, [], {}, "", 0, 0.5, [held], [[]]))
    elif kind == 3 and isinstance(held, list):
        choose.shuffle(held)
    elif isinstance(held, str):
        others = [h[k] for h, k in _places(holder) if isinstance(h[k], str)]
        holder[key] = choose.choice([*others, *WORDS, *choose.sample(OPS, 3)])
    elif isinstance(held, float):
        holder[key] = choose.choice(FLOATS)
    elif isinstance(held, int) or held is None:
        holder[key] = choose.choice(SIZES)


def _json(data: bytes, choose: random.Random) -> bytes:
    return json.dumps(changed_json(json.loads(data), choose)).encode()


def _safetensors(data: bytes, choose: random.Random) -> bytes:
    """Change the header; its length fits, its offsets may."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(changed_json(json.loads(data[8 : 8 + length]), choose)).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _fastlstm(data: bytes, choose: random.Random) -> bytes:
    """Change the graph or its tensors, and sign what comes of it: past the checksum, the graph is what counts."""
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = dict(safetensors.numpy.load(data))
    if choose.random() < 0.7:
        metadata["graph"] = json.dumps(changed_json(json.loads(metadata["graph"]), choose))
    if choose.random() < 0.5 and tensors:
        name = choose.choice(sorted(tensors))
        array, shape = tensors[name], list(tensors[name].shape)
        if array.dtype.kind in "iu" and array.size and choose.random() < 0.7:
            array = array.copy()
            array.reshape(-1)[choose.randrange(array.size)] = _fitting(choose.choice(SIZES), array.dtype)
        else:
            _list(shape, choose, (0, 1, 2, 3, 4, 8, 16, 512))
            array = np.resize(array, shape) if array.size and np.prod(shape) < 1 << 16 else array.reshape(-1)[:0]
        tensors[name] = array
        metadata["tensors"] = json.dumps({n: [a.dtype.name, list(a.shape)] for n, a in tensors.items()})
    try:
        metadata["sha256"] = fileformat._digest(metadata, tensors)
        return bytes(safetensors.numpy.save(tensors, metadata=metadata))
    except (safetensors.SafetensorError, TypeError):
        return data


def _zip(data: bytes, choose: random.Random) -> bytes:
    """Change one member of an archive, and write it with checksums that fit."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        # Weights are mostly what an archive holds; what says how to read them is more interesting.
        telling = [n for n in names if n.endswith((".json", ".py", ".pkl", ".h5"))] or names
        chosen = choose.choice(telling if choose.random() < 0.8 else names)
        for name in names:
            content = source.read(name)
            if name == chosen:
                if name.endswith(".json") and choose.random() < 0.9:
                    content = _json(content, choose)
                elif name.endswith(".py"):
                    content = _code(content.decode(), choose).encode()
                elif name.endswith(".pkl") and choose.random() < 0.9:
                    content = _pickle(content, choose)
                elif name.endswith(".h5") and choose.random() < 0.9:
                    content = _hdf5(content, choose)
                else:
                    content = damaged(content, choose) if content else b"\0"
            target.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def _code(text: str, choose: random.Random) -> str:
    """Change TorchScript: numbers, or words for other words of it."""
    import re

    words = list(re.finditer(r"-?\d+|[A-Za-z_][\w.]*", text))
    for _ in range(choose.choice((1, 1, 2, 3))):
        if not words:
            break
        word = choose.choice(words)
        number = word.group().lstrip("-").isdigit()
        other = str(choose.choice(SIZES)) if number else choose.choice(words).group()
        text = text[: word.start()] + other + text[word.end() :]
        words = list(re.finditer(r"-?\d+|[A-Za-z_][\w.]*", text))
    return text


def _pickle(data: bytes, choose: random.Random) -> bytes:
    """Change operations of a pickle: their numbers and names, their order, which there are."""
    try:
        starts = [at for _, _, at in pickletools.genops(data)]
    except ValueError:  # changed before
        return damaged(data, choose)
    parts = [data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        i, j = sorted(choose.randrange(len(parts)) for _ in range(2))
        kind = choose.randrange(6)
        if kind == 0:
            parts[i : i + choose.randrange(1, 4)] = []
        elif kind == 1:
            parts[j:j] = parts[i : i + choose.randrange(1, 6)]
        elif kind == 2:
            parts[i], parts[j] = parts[j], parts[i]
        elif kind == 3:  # an int of one, two, four or eight bytes, or a bool, where something else was
            number = choose.choice(SIZES)
            parts[i] = choose.choice((pickle.dumps(number, 2)[2:-1], b"\x88", b"\x89", b"N", b")", b"]", b"}"))
        elif kind == 4:
            parts[i] = choose.choice(_GLOBALS)
        else:
            parts[i] = damaged(parts[i], choose)
        if not parts:
            return data[:1]
    return b"".join(parts)


_GLOBALS = tuple(
    f"c{module}\n{name}\n".encode()
    for module, name in (
        ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage"),
        ("torch", "LongStorage"), ("builtins", "dict"), ("builtins", "eval"), ("os", "system"), ("", ""),
    )
)  # fmt: skip


def _hdf5(data: bytes, choose: random.Random) -> bytes:
    """Change what an HDF5 file holds: groups, data sets, attributes, the JSON among them."""
    held = io.BytesIO(data)
    try:
        with h5py.File(held, "r+") as file:
            objects: list[Any] = [file]
            file.visititems(lambda _, found: objects.append(found))
            for _ in range(choose.choice((1, 1, 2, 3))):
                _change_object(choose.choice(objects), choose)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError):  # this change is none that HDF5 takes
        return damaged(data, choose)
    return held.getvalue()


def _change_object(found: Any, choose: random.Random) -> None:
    if found.attrs and choose.random() < 0.6:
        name = choose.choice(sorted(found.attrs))
        value = found.attrs[name]
        text = value.decode() if isinstance(value, bytes) else value
        if isinstance(text, str) and text[:1] in ("{", "["):
            value = json.dumps(changed_json(json.loads(text), choose))
        elif isinstance(value, np.ndarray) and value.size:
            value = choose.choice((value[::-1], value[:-1], np.repeat(value, 2), np.arange(3), np.zeros((0,))))
        else:
            value = choose.choice((*SIZES[4:9], *FLOATS[:4], *WORDS))
        if choose.random() < 0.2:
            del found.attrs[name]
        else:
            found.attrs[name] = value
    elif isinstance(found, h5py.Dataset):
        parent, name, array = found.parent, found.name, found[()]
        shape = list(array.shape)
        _list(shape, choose, (0, 1, 2, 3, 4, 8, 16, 512))
        del parent[name]
        if np.prod(shape, dtype=float) < 1 << 16:
            parent.create_dataset(name, data=np.resize(array, shape).astype(choose.choice(KINDS)))
    elif len(found):
        names = sorted(found)
        one, other = choose.choice(names), choose.choice(names)
        if choose.random() < 0.5:
            del found[one]
        elif f"{one}2" not in found:
            found[f"{one}2"] = found[other]


_STRUCTURES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".onnx": _onnx,
    ".fastlstm": _fastlstm,
    ".safetensors": _safetensors,
    ".json": _json,
    ".nam": _json,
    ".pt": _zip,
    ".torchscript": _zip,
    ".pt2": _zip,
    ".keras": _zip,
    ".h5": _hdf5,
}

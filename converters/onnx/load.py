"""ONNX models, opset 6 and newer, as a `Graph`.

The reading is in `graph`; see there for the way a node takes. Nothing is executed, external data is
read from the model's own folder only, and what is not understood is an error that names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastlstm.converters.onnx import microsoft
from fastlstm.converters.onnx.graph import NEWEST_OPSET, OLDEST_OPSET, Importer
from fastlstm.converters.onnx.operators import OPERATORS
from fastlstm.converters.onnx.recurrent import ACTIVATION_NAMES, ATTRIBUTES
from fastlstm.converters.onnx.tensors import TensorReader
from fastlstm.errors import DependencyError, FileFormatError, InputError
from fastlstm.graph import Graph
from fastlstm.operators import onnx_reference

__all__ = ["from_onnx", "load", "supported"]


def load(path: str | Path) -> Graph:
    """Read an ``.onnx`` file.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Graph
        Inputs and outputs keep the names they have in the file.

    Raises
    ------
    OSError
        If the file cannot be opened.
    FileFormatError
        If it is damaged or no ONNX model.
    UnsupportedError
        If it holds an operator, attribute or tensor that is not understood; the message names it.
    DependencyError
        If the package onnx is not installed.
    """
    onnx = _onnx()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    path = Path(path)
    data = path.read_bytes()
    try:
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, UnicodeDecodeError):
        raise FileFormatError(f"'{path}' is no ONNX model, or it is damaged or cut short.") from None
    if not _is_text(model):
        raise FileFormatError(f"'{path}' is damaged: a name in it is not UTF-8.")
    return _read(onnx, model, TensorReader(len(data), path.parent))


def _is_text(message: Any) -> bool:
    """Whether every string in a protobuf message is one: those that are not UTF-8 come as bytes."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for item in [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value:
            if isinstance(item, bytes) or (field.type == field.TYPE_MESSAGE and not _is_text(item)):
                return False
    return True


def from_onnx(model: Any) -> Graph:
    """Read an ``onnx.ModelProto`` that is in memory, its external data loaded.

    Parameters
    ----------
    model : onnx.ModelProto

    Returns
    -------
    Graph

    Raises
    ------
    InputError
        If `model` is something else.
    FileFormatError, UnsupportedError, DependencyError
        As `load`.
    """
    onnx = _onnx()
    if not isinstance(model, onnx.ModelProto):
        raise InputError(f"from_onnx takes an onnx.ModelProto; got {type(model).__name__}.")
    return _read(onnx, model, TensorReader(model.ByteSize()))


def supported() -> list[tuple[str, str, str]]:
    """Return the rows (operator, options, "supported" or why it is refused) of the feature table."""
    rows = []
    for op, attributes in ATTRIBUTES.items():
        rows.append((op, f"{', '.join(attributes)}; every input and output", "supported"))
    rows.append(("LSTM, GRU, RNN", f"activations {', '.join(ACTIVATION_NAMES.values())}", "supported"))
    for op, known in OPERATORS.items():
        options = [
            f"{n}={'|'.join(a.choices)}" if a.choices else n for n, a in known.items() if a.choices or not a.dropped
        ]
        rows.append((op, ", ".join(options), "supported"))
    rows += [
        ("Constant", "value, value_float(s), value_int(s)", "supported"),
        ("Dropout", "inference", "supported"),
        ("Scatter, Upsample", "as ScatterElements and Resize", "supported"),
        ("functions in the model", "written out where they are called", "supported"),
        ("external data", "inside the model's folder", "supported"),
    ]
    for op, names in microsoft.OPERATORS.items():
        rows.append((f"{microsoft.DOMAIN}.{op}", ", ".join(names), "supported"))
    rows += [
        (op, "through ONNX's reference implementation (slow)", "supported")
        for op in onnx_reference.REFERRED
        if op not in OPERATORS
    ]
    return rows + [
        ("opset", f"{OLDEST_OPSET} to {NEWEST_OPSET}", "supported"),
        ("BatchNormalization", "training_mode=1: through ONNX's reference implementation (slow)", "supported"),
        ("GroupNormalization", "opset 18 to 20: through ONNX's reference implementation (slow)", "supported"),
        ("Dropout", "training", "refused: results would not repeat"),
        ("Scan", "opset 8", "refused: batched form, replaced in opset 9"),
        ("RandomNormal, RandomUniform, Bernoulli, Multinomial", "", "refused: results would not repeat"),
        ("Optional, SequenceMap, strings, images", "", "refused: not found in recurrent models"),
        ("element types", "float8, float4, int4, complex, string", "refused: NumPy has no such numbers"),
        ("sparse tensors", "", "refused: not found in recurrent models"),
    ]


def _onnx() -> Any:
    try:
        import onnx
        import onnx.defs
    except ImportError:
        raise DependencyError.missing("onnx", "onnx", "Reading ONNX models") from None
    return onnx


def _read(onnx: Any, model: Any, tensors: TensorReader) -> Graph:
    if not model.HasField("graph") or not model.graph.output:
        raise FileFormatError("The ONNX model holds no graph with outputs: it is damaged or cut short.")
    try:
        return Importer(model, tensors, onnx.defs).run()
    except UnicodeDecodeError:
        raise FileFormatError("The ONNX model holds a name that is not UTF-8: it is damaged.") from None

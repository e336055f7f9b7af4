"""The format of a model file by what stands in it, for models that have no file name."""

from __future__ import annotations

import io
import json
import zipfile

from fastlstm.errors import UnsupportedError

__all__ = ["suffix_of"]

_LONGEST = 64 << 20  # of text that is looked into


def suffix_of(content: bytes) -> str:
    """Return the ending that a file of this content would have; the readers then check every byte of it.

    Raises
    ------
    UnsupportedError
        If it begins as no supported format does.
    """
    if content.startswith(b"PK\x03\x04"):
        return _archive(content)
    if content.startswith(b"\x89HDF\r\n\x1a\n"):
        return ".h5"
    if content.startswith(b"\x80"):  # a pickle: torch.save before PyTorch 1.6
        return ".pt"
    if content[8:9] == b"{":  # safetensors: the header's length, then JSON
        return ".fastlstm" if b'"fastlstm.format"' in content[8 : 8 + 4096] else ".safetensors"
    if content.lstrip()[:1] == b"{":
        return _text(content)
    if content[:1] in (
        b"\x08",
        b"\x0a",
        b"\x12",
        b"\x3a",
    ):  # a protobuf's first field: an ONNX model's version or graph
        return ".onnx"
    raise UnsupportedError(
        f"The {len(content):,} bytes begin as no model file that is supported: ONNX, PyTorch, Keras, safetensors, JSON "
        "of audio models, or .fastlstm. Pass a file's whole content, or the path of a file."
    )


def _archive(content: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise UnsupportedError(f"The bytes are a zip archive that cannot be read: {error}.") from error
    if "config.json" in names:
        return ".keras"
    exported = any("serialized_exported_program" in name or "/models/" in f"/{name}" for name in names)
    return ".pt2" if exported else ".pt"


def _text(content: bytes) -> str:
    try:
        fields = json.loads(content[:_LONGEST])
    except (ValueError, RecursionError):
        return ".json"  # its reader says what is wrong
    return ".nam" if isinstance(fields, dict) and {"architecture", "weights"} <= set(fields) else ".json"

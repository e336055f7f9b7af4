"""Packs: files of images, each with a checksum, made for one target from one state of the kernels' sources.

    8 bytes   b"fastlstm"
    4, 4      version of the format, bytes of the header (little-endian)
    32        SHA-256 of the header
    header    JSON: target, sources, what made it, and for each kernel its offset, size, entry and SHA-256
    images    each at a multiple of `ALIGNMENT`, so that the file can be mapped and run in place

The same images give the same bytes. A file in the cache is a pack of one kernel.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastlstm.errors import FileFormatError
from fastlstm.kernels.image import ALIGNMENT, Image
from fastlstm.target import Target

__all__ = ["FORMAT", "Pack", "pack_bytes", "read_pack"]

MAGIC = b"fastlstm"
FORMAT = 1
HEAD = struct.Struct("<8sII32s")


@dataclass(frozen=True)
class Pack:
    """A pack with an intact header; an image is checked when it is asked for."""

    content: memoryview
    header: Mapping[str, Any]

    def find(self, key: str) -> tuple[int, Image] | None:
        """Return the offset of a kernel's image in the file and the image, None if the pack does not contain it.

        Raises
        ------
        FileFormatError
            If the image has changed since the pack was made.
        """
        row = self.header["kernels"].get(key)
        if row is None:
            return None
        code = bytes(self.content[row["at"] : row["at"] + row["size"]])
        if hashlib.sha256(code).hexdigest() != row["sha256"]:
            raise FileFormatError(f"The code of {row['kernel']} is damaged: its checksum is another.")
        return row["at"], Image(code, row["entry"])


def pack_bytes(
    target: Target, sources: str, images: Mapping[str, tuple[str, Image]], made_with: Mapping[str, str]
) -> bytes:
    """Return the bytes of a pack.

    Parameters
    ----------
    target : Target
    sources : str
        See `fastlstm.kernels.cache.sources`.
    images : mapping of str to (str, Image)
        By the kernels' keys; the name is for people.
    made_with : mapping of str to str
        Names and versions of what compiled them, for people.
    """
    order = sorted(images, key=lambda key: (images[key][0], key))
    rows: dict[str, dict[str, Any]] = {}
    header, size = b"", -1
    while size != len(header):  # the offsets depend on the header's size, which depends on their digits
        size = len(header)
        at = -(-(HEAD.size + size) // ALIGNMENT) * ALIGNMENT
        for key in order:
            name, image = images[key]
            digest = hashlib.sha256(image.code).hexdigest()
            rows[key] = {"kernel": name, "at": at, "size": len(image.code), "entry": image.entry, "sha256": digest}
            at += -(-len(image.code) // ALIGNMENT) * ALIGNMENT
        whole = {
            "level": target.name, "target": repr(target.code), "sources": sources, "made with": dict(made_with),
            "kernels": rows,
        }  # fmt: skip
        header = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
    content = bytearray(HEAD.pack(MAGIC, FORMAT, len(header), hashlib.sha256(header).digest()) + header)
    for key in order:
        content += bytes(rows[key]["at"] - len(content)) + images[key][1].code
    return bytes(content)


def read_pack(content: memoryview, target: Target, sources: str) -> Pack:
    """Return the pack in a file's content.

    Raises
    ------
    FileFormatError
        If it is damaged, of another version of the format or of fastlstm, or for another target.
    """
    if len(content) < HEAD.size or bytes(content[:8]) != MAGIC:
        raise FileFormatError("It is no pack of compiled kernels.")
    _, version, size, digest = HEAD.unpack_from(content)
    if version != FORMAT:
        raise FileFormatError(f"It has version {version} of the format; this fastlstm reads version {FORMAT}.")
    head = bytes(content[HEAD.size : HEAD.size + size])
    if hashlib.sha256(head).digest() != digest:
        raise FileFormatError("It is damaged: the checksum of its header is another.")
    header = json.loads(head)
    if header["target"] != repr(target.code):
        raise FileFormatError(f"It is for {header['level']}; this process runs code for {target.name}.")
    if header["sources"] != sources:
        raise FileFormatError("It was made from the sources of another version of fastlstm.")
    return Pack(content, header)

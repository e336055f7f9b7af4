"""Opening a model file, and what is in it for as long as somebody may want to read it."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from typing import BinaryIO

from fastlstm.errors import FileFormatError

__all__ = ["MAPPED_BYTES", "Content", "content_of", "digest_of", "open_model", "refuse_pointer"]

Content = bytes | mmap.mmap
MAPPED_BYTES = 1 << 20
"""Size from which files and tensors are mapped and not copied: the packed weights are then the only ones in memory."""


def open_model(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file without blocking on a pipe or a device.

    Raises
    ------
    FileFormatError
        If it is not a regular file.
    OSError
        If it cannot be opened.
    """

    def regular(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileFormatError(f"{name} is not a regular file; a .fastlstm file is expected.")
        return descriptor

    return open(path, "rb", opener=regular)


def refuse_pointer(path: str | os.PathLike[str], start: bytes) -> None:
    """FileFormatError if a file begins as Git LFS writes what it leaves in a file's place."""
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise FileFormatError(
            f"'{os.fspath(path)}' is a Git LFS pointer, a few lines of text that stand for the model. Run "
            "'git lfs pull' where it was cloned."
        )


def digest_of(file: BinaryIO) -> str:
    """Return the SHA-256 of a file from its start, in hex."""
    digest, block = hashlib.sha256(), bytearray(1 << 18)
    file.seek(0)
    while size := file.readinto(block):  # type: ignore[attr-defined]  # of files that are open for reading
        digest.update(memoryview(block)[:size])
    return digest.hexdigest()


def content_of(file: BinaryIO) -> Content:
    """Return all that a file holds; where that is much, its pages come to memory when they are read.

    A file that is replaced by renaming stays what it was for who has mapped it. On Windows it could not be replaced,
    so nothing is mapped there.
    """
    if os.name != "nt" and os.fstat(file.fileno()).st_size >= MAPPED_BYTES:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    file.seek(0)
    return file.read()

"""Zip archives read without trust: nothing is written, nothing is inflated past a bound.

PyTorch's ``.pt``, ``.pth`` and ``.pt2`` files are zip archives. Members are read by the exact name that
the archive's directory gives, into memory only, so a name such as ``../../etc/passwd`` is just a name.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from functools import cached_property
from pathlib import Path

from fastlstm.errors import FileFormatError

__all__ = ["Archive"]

_MEMBERS = 200_000
_SMALL = 64 << 20
_RATIO = 16


class Archive:
    """The members of one zip file.

    Parameters
    ----------
    source : Path or BytesIO

    Raises
    ------
    OSError
        If there is no such file.
    FileFormatError
        If the file is no zip archive, is damaged, or holds members that would unpack to more than 16 times
        the file's size (64 MiB are always allowed): models store their weights as they are.
    """

    def __init__(self, source: Path | io.BytesIO) -> None:
        path = source if isinstance(source, Path) else Path("program")
        self.path = path
        self.bytes = source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes
        try:
            self._zip = zipfile.ZipFile(source)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise FileFormatError(f"'{path}' is not a readable zip archive: {error}.") from None
        infos = self._zip.infolist()
        if len(infos) > _MEMBERS:
            raise FileFormatError(f"'{path}' holds {len(infos)} members; at most {_MEMBERS} are read.")
        self._members = {info.filename: info for info in infos}
        if len(self._members) != len(infos):
            raise FileFormatError(f"'{path}' names a member twice, so it is not clear which one is meant.")
        total, allowed = sum(info.file_size for info in infos), self.bytes * _RATIO
        if total > max(allowed, _SMALL):
            raise FileFormatError(
                f"'{path}' would unpack to {total} bytes, more than {_RATIO} times its size: "
                "this looks like a zip bomb, so it is not unpacked."
            )

    @property
    def names(self) -> list[str]:
        """The members' names, in the order of the directory."""
        return list(self._members)

    @cached_property
    def root(self) -> str:
        """The folder that every member lies in, with its slash; ``""`` if there is none."""
        folders = {name.split("/", 1)[0] for name in self._members}
        return f"{folders.pop()}/" if len(folders) == 1 and "/" in next(iter(self._members)) else ""

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """Return the unpacked size that the directory states for the member, in bytes."""
        return self._info(name).file_size

    def read(self, name: str, limit: int | None = None) -> bytes:
        """Return the member's bytes.

        Raises
        ------
        FileFormatError
            If there is no such member, it is larger than `limit`, or damaged.
        """
        info = self._info(name)
        if limit is not None and info.file_size > limit:
            raise FileFormatError(
                f"'{self.path}': the member '{name}' has {info.file_size} bytes; at most {limit} are read."
            )
        try:
            with self._zip.open(info) as member:
                data = member.read(info.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
            raise FileFormatError(f"'{self.path}': the member '{name}' is damaged: {error}.") from None
        if len(data) != info.file_size:
            raise FileFormatError(
                f"'{self.path}': the member '{name}' should be {info.file_size} bytes long but is not."
            )
        return data

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._members[name]
        except KeyError:
            raise FileFormatError(f"'{self.path}' lacks the member '{name}'.") from None

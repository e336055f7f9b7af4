"""Files that ``torch.save`` of PyTorch before 1.6 wrote: pickles one after the other, then the bytes of the storages.

`LegacyArchive` shows such a file as the zip archive that newer versions write, so that one reader serves both. The
pickles go through `fastlstm.converters.torch.pickles`: nothing in them is executed.

Format: ``torch/serialization.py``, ``_legacy_save``.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fastlstm.converters.common.archive import Archive
from fastlstm.converters.torch.pickles import MOST_OPCODES, StoredTensor, parse
from fastlstm.errors import FileFormatError, UnsupportedError

__all__ = ["LegacyArchive", "TorchArchive", "open_archive"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PREAMBLE = ("magic number", "protocol version", "system's properties")
_DATA = "data.pkl"


class LegacyArchive:
    """One file, seen as an archive of ``data.pkl`` and a member for each storage.

    Parameters
    ----------
    path : Path

    Raises
    ------
    OSError
        If the file cannot be read.
    FileFormatError
        If it is damaged, or no file of ``torch.save``.
    UnsupportedError
        If it comes from a big-endian machine, or holds what a state dict does not.
    """

    root = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content = path.read_bytes()
        self.bytes = len(self._content)
        stream = io.BytesIO(self._content)
        magic, _, system = (parse(self._pickle(stream, what), str(path)) for what in _PREAMBLE)
        if magic != _MAGIC:
            raise FileFormatError(f"'{path}' is a bare pickle that torch.save did not write; only its files are read.")
        if not isinstance(system, Mapping) or system.get("little_endian") is not True:
            raise UnsupportedError(f"'{path}' was written on a big-endian machine; save it on a little-endian one.")
        content = self._pickle(stream, "content")
        sizes = {tensor.key: tensor.itemsize for tensor in _tensors(parse(content, str(path)))}
        keys = parse(self._pickle(stream, "list of storages"), str(path))
        self._members: dict[str, bytes | memoryview] = {
            _DATA: content,
            **self._storages(stream.tell(), keys, sizes),
        }

    def _pickle(self, stream: io.BytesIO, what: str) -> bytes:
        """Return the bytes of the pickle that begins where the stream is; the stream is then behind it."""
        start = stream.tell()
        try:
            for count, _ in enumerate(pickletools.genops(stream)):
                if count > MOST_OPCODES:
                    raise ValueError(f"it holds more than {MOST_OPCODES} operations")
        except (ValueError, LookupError, OverflowError) as error:
            raise FileFormatError(f"'{self.path}' is a damaged file of torch.save, in its {what}: {error}.") from None
        return self._content[start : stream.tell()]

    def _storages(self, start: int, keys: Any, sizes: Mapping[str, int]) -> dict[str, memoryview]:
        """Return the storages' bytes: for each key a count, then so many numbers."""
        view, found = memoryview(self._content), {}
        if not isinstance(keys, list):
            raise FileFormatError(f"'{self.path}' is a damaged file of torch.save: it has no list of storages.")
        for key in keys:
            name = f"data/{key}"
            count = int.from_bytes(view[start : start + 8], "little", signed=True)
            end = start + 8 + count * sizes.get(name, 0)
            if name not in sizes or count < 0 or end > self.bytes:
                raise FileFormatError(f"'{self.path}' is truncated or damaged in its storage '{key}'.")
            found[name] = view[start + 8 : end]
            start = end
        return found

    @property
    def names(self) -> list[str]:
        """The members' names."""
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """Return the member's size in bytes."""
        return len(self._members[name])

    def read(self, name: str, limit: int | None = None) -> bytes:
        """Return the member's bytes; FileFormatError if there are more than `limit`."""
        data = self._members[name]
        if limit is not None and len(data) > limit:
            raise FileFormatError(f"'{self.path}': its {name} has {len(data)} bytes; at most {limit} are read.")
        return bytes(data)


TorchArchive = Archive | LegacyArchive


def open_archive(path: Path) -> TorchArchive:
    """Return what ``torch.save`` wrote, by any version, as an archive."""
    with path.open("rb") as file:
        bare = file.read(2) == b"\x80\x02"
    return LegacyArchive(path) if bare else Archive(path)


def _tensors(content: Any) -> Iterator[StoredTensor]:
    """Yield the tensors in what a pickle describes, each container once."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, StoredTensor):
            yield value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
            waiting.extend(items)

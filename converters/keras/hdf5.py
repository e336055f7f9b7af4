"""HDF5 files as Keras writes them: groups, attributes and the places of datasets, read without trust.

Written after the HDF5 File Format Specification, version 3 (https://support.hdfgroup.org/documentation/hdf5/latest/),
whose sections the docstrings name. HDF5's own library is not used: a damaged reference to a text makes it
reserve as many bytes as the file claims, or read past the end of its memory.

Every offset is checked against the file's end, nothing is visited twice, and nothing outside the file is
opened: soft and external links, external storage and virtual datasets are refused. Of the newer layout of
groups (links in a fractal heap) only the small form is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastlstm.errors import FileFormatError, UnsupportedError

__all__ = ["NOWHERE", "SIGNATURE", "Dataset", "Group", "Hdf5", "Message", "Raw"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
NOWHERE = (1 << 64) - 1
"""The address of what was never written."""

_MOST_OBJECTS = 200_000
_MOST_MESSAGES = 20_000
_DEEPEST = 64

_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL, _LAYOUT, _FILTERS = 1, 2, 3, 6, 7, 8, 11
_ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE, _ATTRIBUTE_INFO = 12, 16, 17, 21


@dataclass(frozen=True)
class Message:
    """One message of an object's header: its body's place in the file."""

    kind: int
    at: int
    size: int


@dataclass(frozen=True)
class Raw:
    """An attribute or the head of a dataset, not decoded: where its datatype, dataspace and data are."""

    datatype: int
    dataspace: int
    data: int
    size: int


@dataclass(frozen=True)
class Dataset:
    """Where the parts of a dataset are.

    Attributes
    ----------
    path : str
    raw : Raw
        Its `data` is the layout message.
    filters : int
        The filter message, 0 if there is none.
    attributes : dict of str to Raw
    """

    path: str
    raw: Raw
    filters: int
    attributes: dict[str, Raw]


@dataclass(frozen=True)
class Group:
    """A group: what it holds by name, in the order of the names."""

    path: str
    attributes: dict[str, Raw]
    children: dict[str, Group | Dataset] = field(default_factory=dict)

    def child(self, path: str) -> Group | Dataset | None:
        """Return what `path`, relative to this group, leads to."""
        found: Group | Dataset | None = self
        for part in path.split("/"):
            found = found.children.get(part) if isinstance(found, Group) else None
        return found

    def datasets(self) -> Iterator[Dataset]:
        """Yield all datasets under this group, in the order of their paths' parts."""
        for child in self.children.values():
            if isinstance(child, Dataset):
                yield child
            else:
                yield from child.datasets()


class Hdf5:
    """The structure of one file.

    Parameters
    ----------
    data : bytes or mmap
        The whole file.
    where : str
        The file as messages name it.

    Raises
    ------
    FileFormatError
        If the file is damaged, or leads to another file.
    UnsupportedError
        If it uses a form of HDF5 that Keras does not write.
    """

    def __init__(self, data: Any, where: str) -> None:
        self.data = data
        self.where = where
        self._size = len(data)
        self._seen: set[int] = set()
        version = self.uint(8, 1)
        if bytes(data[:8]) != SIGNATURE or version > 3:
            raise self.damaged("it does not begin as an HDF5 file does")
        # Section II: the superblock.
        sizes = 13 if version < 2 else 9
        base = (24, 28, 12, 12)[version]
        if (self.uint(sizes, 1), self.uint(sizes + 1, 1)) != (8, 8) or self.uint(base, 8) != 0:
            raise UnsupportedError(f"{where} has addresses of another size than 8 bytes, or does not begin with them.")
        root = self.uint((64, 68, 36, 36)[version], 8)
        found = self._object(root, "", 0)
        if not isinstance(found, Group):
            raise self.damaged("its root is no group")
        self.root = found

    # ------------------------------------------------------------ bytes

    def uint(self, at: int, size: int) -> int:
        """Return the unsigned integer of `size` bytes at `at`."""
        return int.from_bytes(self.take(at, size), "little")

    def take(self, at: int, size: int) -> bytes:
        """Return `size` bytes from `at` on.

        Raises
        ------
        FileFormatError
            If the file ends before.
        """
        if at < 0 or size < 0 or at + size > self._size:
            raise self.damaged(f"it leads to bytes {at} to {at + size}, and has {self._size}")
        return bytes(self.data[at : at + size])

    def damaged(self, why: str) -> FileFormatError:
        """Return the error that says what is wrong."""
        return FileFormatError(f"{self.where} is damaged, or no HDF5 file: {why}.")

    def _signature(self, at: int, expected: bytes) -> None:
        if self.take(at, len(expected)) != expected:
            raise self.damaged(f"at byte {at} there should be {expected.decode()}")

    def _visit(self, at: int) -> None:
        """Note that a structure is being read; no two lead to the same one."""
        if at in self._seen:
            raise self.damaged(f"two parts of it lead to byte {at}")
        if len(self._seen) >= _MOST_OBJECTS:
            raise self.damaged(f"it has more than {_MOST_OBJECTS} parts")
        self._seen.add(at)

    # ------------------------------------------------------------ objects (section IV.A)

    def _object(self, address: int, path: str, depth: int) -> Group | Dataset:
        if depth > _DEEPEST:
            raise self.damaged(f"its groups are more than {_DEEPEST} deep")
        self._visit(address)
        messages = list(self._messages(address))
        attributes: dict[str, Raw] = {}
        for message in messages:
            if message.kind == _ATTRIBUTE:
                name, raw = self._attribute(message)
                attributes[name] = raw
            if message.kind == _ATTRIBUTE_INFO:
                self._only_in_place(message, "attributes", path, 2)
        by_kind = {message.kind: message for message in reversed(messages)}
        if _LAYOUT not in by_kind:
            group = Group(path, attributes)
            for name, child in sorted(self._links(messages, path)):
                if name in group.children:
                    raise self.damaged(f"'{path or '/'}' holds '{name}' twice")
                group.children[name] = self._object(child, f"{path}/{name}".lstrip("/"), depth + 1)
            return group
        if _EXTERNAL in by_kind:
            raise FileFormatError(
                f"{self.where}: the dataset '{path}' lies in another file; only data of the file itself is read."
            )
        if _DATATYPE not in by_kind or _DATASPACE not in by_kind:
            raise self.damaged(f"the dataset '{path}' has no type or no shape")
        layout = by_kind[_LAYOUT]
        raw = Raw(by_kind[_DATATYPE].at, by_kind[_DATASPACE].at, layout.at, layout.size)
        return Dataset(path, raw, by_kind[_FILTERS].at if _FILTERS in by_kind else 0, attributes)

    def _messages(self, address: int) -> Iterator[Message]:
        """Yield the messages of an object's header, of either version."""
        new = self.take(address, 4) == b"OHDR"
        head = 4
        if new:
            flags = self.uint(address + 5, 1)
            at = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            blocks = [(at + width, self.uint(at, width))]
            head += 2 if flags & 4 else 0
        else:
            if self.uint(address, 1) != 1:
                raise self.damaged(f"at byte {address} there should be the header of an object")
            blocks, head = [(address + 16, self.uint(address + 8, 4))], 8
        count = 0
        for at, size in blocks:  # grows while it is walked
            end = at + size
            self.take(at, 0 if size == 0 else size)
            while at + head <= end:
                kind, length, flags = (
                    (self.uint(at, 1), self.uint(at + 1, 2), self.uint(at + 3, 1))
                    if new
                    else (self.uint(at, 2), self.uint(at + 2, 2), self.uint(at + 4, 1))
                )
                body, at, count = at + head, at + head + length, count + 1
                if at > end or count > _MOST_MESSAGES:
                    raise self.damaged(f"the header at byte {address} does not end where it says")
                if kind == _CONTINUATION:
                    place, length = self.uint(body, 8), self.uint(body + 8, 8)
                    self._visit(place)
                    if new:
                        self._signature(place, b"OCHK")
                    blocks.append((place + 4, length - 8) if new else (place, length))
                elif kind in _UNDERSTOOD:
                    if flags & 2:
                        raise UnsupportedError(f"{self.where} shares parts of headers, which Keras does not.")
                    yield Message(kind, body, length)

    def _attribute(self, message: Message) -> tuple[str, Raw]:
        """Section IV.A.2.m: the attribute message."""
        at, version = message.at, self.uint(message.at, 1)
        if version not in (1, 2, 3) or (version > 1 and self.uint(at + 1, 1)):
            raise UnsupportedError(f"{self.where} has an attribute of a form that Keras does not write.")
        sizes = [self.uint(at + 2 + 2 * i, 2) for i in range(3)]
        places, place = [], at + (9 if version == 3 else 8)
        for size in sizes:
            places.append(place)
            place += -(-size // 8) * 8 if version == 1 else size
        if place > at + message.size:
            raise self.damaged(f"the attribute at byte {at} is larger than its place")
        name = self.take(places[0], sizes[0]).split(b"\0")[0].decode("utf-8", errors="replace")
        return name, Raw(places[1], places[2], place, at + message.size - place)

    # ------------------------------------------------------------ links

    def _links(self, messages: list[Message], path: str) -> Iterator[tuple[str, int]]:
        """Yield names and addresses of what a group holds, in its old form or its new one."""
        for message in messages:
            if message.kind == _SYMBOL_TABLE:
                heap = self.uint(message.at + 8, 8)
                self._signature(heap, b"HEAP")
                names = (self.uint(heap + 24, 8), self.uint(heap + 8, 8))
                yield from self._symbols(self.uint(message.at, 8), names, path)
            elif message.kind == _LINK:
                yield self._link(message, path)
            elif message.kind == _LINK_INFO:
                self._only_in_place(message, "links", path, 8)

    def _symbols(self, root: int, names: tuple[int, int], path: str) -> Iterator[tuple[str, int]]:
        """Sections III.A.1 and III.B: the tree of a group, and the nodes of symbols at its leaves."""
        nodes = [root]
        for node in nodes:  # grows while it is walked
            self._visit(node)
            if self.take(node, 4) == b"TREE":
                if self.uint(node + 4, 1) != 0:
                    raise self.damaged(f"the tree at byte {node} is none of a group's")
                nodes += [self.uint(node + 32 + 16 * i, 8) for i in range(self.uint(node + 6, 2))]
                continue
            self._signature(node, b"SNOD")
            for i in range(self.uint(node + 6, 2)):
                entry = node + 8 + 40 * i
                offset = self.uint(entry, 8)
                if offset >= names[1]:
                    raise self.damaged(f"a name in '{path or '/'}' is not where it should be")
                name = self._text_at(names[0] + offset, names[1] - offset)
                if self.uint(entry + 16, 4) == 2:
                    raise self._refused_link(path, name)
                yield name, self.uint(entry + 8, 8)

    def _text_at(self, at: int, room: int) -> str:
        """Return the text at `at`, which ends with a zero within `room` bytes."""
        self.take(at, min(room, 1))
        text, zero, _ = bytes(self.data[at : at + min(room, 65536)]).partition(b"\0")
        if not zero:
            raise self.damaged(f"the name at byte {at} does not end")
        return text.decode("utf-8", errors="replace")

    def _link(self, message: Message, path: str) -> tuple[str, int]:
        """Section IV.A.2.g: the link message."""
        at, flags = message.at + 2, self.uint(message.at + 1, 1)
        kind = self.uint(at, 1) if flags & 8 else 0
        at += (1 if flags & 8 else 0) + (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
        width = 1 << (flags & 3)
        length = self.uint(at, width)
        if length > message.size:
            raise self.damaged(f"the link at byte {message.at} is larger than its place")
        name = self.take(at + width, length).decode("utf-8", errors="replace")
        if kind != 0:
            raise self._refused_link(path, name)
        return name, self.uint(at + width + length, 8)

    def _refused_link(self, path: str, name: str) -> FileFormatError:
        return FileFormatError(
            f"{self.where}: '{path}/{name}' is a link to another place; only data of the file itself is read."
        )

    def _only_in_place(self, message: Message, what: str, path: str, index: int) -> None:
        """Refuse links or attributes that are kept in a heap: `index` is the size of the optional field."""
        at = message.at + 2 + (index if self.uint(message.at + 1, 1) & 1 else 0)
        if self.uint(at, 8) != NOWHERE:
            raise UnsupportedError(
                f"{self.where}: '{path or '/'}' keeps its {what} in HDF5's newest form, which is not read; "
                "save the model again with Keras."
            )

    def unpack(self, form: str, at: int) -> tuple[Any, ...]:
        """Return values as `struct` unpacks them."""
        return struct.unpack(form, self.take(at, struct.calcsize(form)))


_UNDERSTOOD = frozenset(
    {_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL, _LAYOUT, _FILTERS, _ATTRIBUTE, _SYMBOL_TABLE, _ATTRIBUTE_INFO}
)

"""Static libraries: archives of object files with an index of their symbols, the same bytes for the same members."""

from __future__ import annotations

from collections.abc import Mapping

from fastlstm.export.objects import read_object

__all__ = ["archive"]

MAGIC = b"!<arch>\n"


def archive(members: Mapping[str, bytes]) -> bytes:
    """Return an archive of object files by name, in the layout of ``ar`` that ELF linkers read.

    Owner, date and permissions of every member are zero.
    """
    names = b"".join(f"{name}/\n".encode() for name in members)
    symbols = [(symbol, name) for name, content in members.items() for symbol in read_object(content).defined]
    index_size = 4 + 4 * len(symbols) + sum(len(symbol.encode()) + 1 for symbol, _ in symbols)
    at = len(MAGIC) + _padded(index_size) + _padded(len(names))
    places = {}
    for name, content in members.items():
        places[name] = at
        at += _padded(len(content))
    index = len(symbols).to_bytes(4, "big") + b"".join(places[name].to_bytes(4, "big") for _, name in symbols)
    index += b"".join(symbol.encode() + b"\0" for symbol, _ in symbols)
    parts = [MAGIC, _member("/", index), _member("//", names)]
    offset = 0
    for name, content in members.items():
        parts.append(_member(f"/{offset}", content))
        offset += len(name.encode()) + 2
    return b"".join(parts)


def _padded(size: int) -> int:
    """Return the size in bytes of an archive member, header included."""
    return 60 + size + size % 2


def _member(name: str, content: bytes) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n".encode()
    return head + content + b"\n" * (len(content) % 2)

"""Reading object files: what they hold and what they lack. ELF, COFF and WebAssembly, as LLVM writes them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastlstm.errors import FileFormatError

__all__ = ["ObjectFile", "read_object", "renamed"]


@dataclass(frozen=True)
class ObjectFile:
    """What an object file holds.

    Attributes
    ----------
    kind : str
        "ELF", "COFF" or "wasm".
    code, data : int
        Bytes of instructions and of constants; of WebAssembly both are sizes of its sections.
    written : int
        Bytes of data that is written to: none, in what is exported.
    undefined, defined : tuple of str
        Names that it lacks, and those that it gives to others.
    """

    kind: str
    code: int
    data: int
    written: int
    undefined: tuple[str, ...]
    defined: tuple[str, ...]


def read_object(content: bytes) -> ObjectFile:
    """Return what an object file holds.

    Raises
    ------
    FileFormatError
        If it is of no known format, or damaged.
    """
    try:
        if content[:4] == b"\x7fELF":
            return _elf(content)
        if content[:4] == b"\0asm":
            return _wasm(content)
        if content[:2] in (b"\x64\x86", b"\x64\xaa", b"\x4c\x01"):
            return _coff(content)
    except (struct.error, IndexError, ValueError) as error:
        raise FileFormatError(f"The object file is damaged: {error}.") from error
    raise FileFormatError("Expected an object file of the formats ELF, COFF or WebAssembly.")


def renamed(content: bytes, names: Mapping[str, str]) -> bytes:
    """Return an object file of 64-bit ELF whose symbols have other names; one made for both would take LLVM as long."""
    (table,) = struct.unpack_from("<Q", content, 40)
    size, count = struct.unpack_from("<HH", content, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", content, table + i * size) for i in range(count)]
    (symbols,) = (section for section in sections if section[1] == SYMTAB)
    strings = sections[symbols[6]]
    text = content[strings[4] : strings[4] + strings[5]]
    new = bytearray(content)
    for at in range(symbols[4], symbols[4] + symbols[5], 24):
        (name,) = struct.unpack_from("<I", content, at)
        found = names.get(_text(content, strings[4] + name))
        if found is not None:
            struct.pack_into("<I", new, at, len(text))
            text += found.encode() + b"\0"
    place = table + symbols[6] * size
    struct.pack_into("<QQ", new, place + 24, len(new), len(text))
    return bytes(new) + text


def _text(content: bytes, at: int) -> str:
    return content[at : content.index(b"\0", at)].decode()


# ---------------------------------------------------------------- ELF

PROGBITS, SYMTAB, NOBITS = 1, 2, 8
WRITE, ALLOC, EXECUTE = 1, 2, 4


def _elf(content: bytes) -> ObjectFile:
    wide = content[4] == 2
    head = "<16xHHIQQQIHHHHHH" if wide else "<16xHHIIIIIHHHHHH"
    _, _, _, _, _, table, _, _, _, _, size, count, _ = struct.unpack_from(head, content)
    entry = "<IIQQQQIIQQ" if wide else "<IIIIIIIIII"
    sections = [struct.unpack_from(entry, content, table + i * size) for i in range(count)]
    code = data = written = 0
    for _, kind, flags, _, _, length, *_ in sections:
        if not flags & ALLOC or kind not in (PROGBITS, NOBITS):
            continue
        if flags & WRITE:
            written += length
        elif flags & EXECUTE:
            code += length
        else:
            data += length
    undefined: list[str] = []
    defined: list[str] = []
    for section in sections:
        if section[1] == SYMTAB:
            for name, info, where in _elf_symbols(content, section, sections[section[6]][4], wide):
                if info >> 4 in (1, 2) and name:  # global or weak
                    (defined if where else undefined).append(name)
    return ObjectFile("ELF", code, data, written, tuple(sorted(undefined)), tuple(sorted(defined)))


def _elf_symbols(content: bytes, section: tuple[int, ...], names: int, wide: bool) -> Iterator[tuple[str, int, int]]:
    size = 24 if wide else 16
    for at in range(section[4], section[4] + section[5], size):
        if wide:
            name, info, _, where = struct.unpack_from("<IBBH", content, at)
        else:
            name, _, _, info, _, where = struct.unpack_from("<IIIBBH", content, at)
        yield _text(content, names + name), info, where


# ---------------------------------------------------------------- COFF


def _coff(content: bytes) -> ObjectFile:
    _, count, _, table, symbols, optional, _ = struct.unpack_from("<HHIIIHH", content)
    code = data = written = 0
    for i in range(count):
        name, _, _, length, *_, flags = struct.unpack_from("<8sIIIIIIHHI", content, 20 + optional + 40 * i)
        if name.startswith((b".pdata", b".xdata")) or flags & 0x800 or flags & 0x2000000:  # unwinding; left out
            continue
        if flags & 0x20:
            code += length
        elif flags & 0x80000000:
            written += length
        else:
            data += length
    strings = table + 18 * symbols
    undefined, defined = [], []
    at = 0
    while at < symbols:
        place = table + 18 * at
        value, section, _, kind, more = struct.unpack_from("<IhHBB", content, place + 8)
        zeros, offset = struct.unpack_from("<II", content, place)
        name = _text(content, strings + offset) if not zeros else content[place : place + 8].rstrip(b"\0").decode()
        if kind == 2:  # external
            if section > 0:
                defined.append(name)
            elif section == 0 and not value:
                undefined.append(name)
        at += 1 + more
    # What says that floating point is used; every linker for Windows has it.
    undefined = [name for name in undefined if name != "_fltused"]
    defined = [name for name in defined if name != "_fltused"]
    return ObjectFile("COFF", code, data, written, tuple(sorted(undefined)), tuple(sorted(defined)))


# ---------------------------------------------------------------- WebAssembly


class _Wasm:
    """A place in a WebAssembly module."""

    def __init__(self, content: bytes, at: int) -> None:
        self.content, self.at = content, at

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.content[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def text(self) -> str:
        size = self.number()
        self.at += size
        return self.content[self.at - size : self.at].decode()


def _wasm(content: bytes) -> ObjectFile:
    code = data = 0
    undefined: list[str] = []
    defined: list[str] = []
    imported: list[str] = []
    at = 8
    while at < len(content):
        place = _Wasm(content, at)
        kind, size = content[at], 0
        place.at += 1
        size = place.number()
        at = place.at + size
        if kind == 10:
            code = size
        elif kind == 11:
            data = size
        elif kind == 2:
            imported = _imports(place)
        elif kind == 0 and place.text() == "linking":
            _symbols(place, at, imported, undefined, defined)
    return ObjectFile("wasm", code, data, 0, tuple(sorted(undefined)), tuple(sorted(defined)))


def _imports(place: _Wasm) -> list[str]:
    """Return the names of imported functions."""
    found = []
    for _ in range(place.number()):
        place.text()
        name, kind = place.text(), place.number()
        if kind == 0:
            found.append(name)
            place.number()
        elif kind == 3:
            place.at += 2
        else:  # a table has a type before its limits
            place.at += kind == 1
            limits = place.number()
            place.number()
            if limits & 1:
                place.number()
    return found


def _symbols(place: _Wasm, end: int, imported: list[str], undefined: list[str], defined: list[str]) -> None:
    """Read the table of symbols out of a "linking" section."""
    place.number()  # its version
    while place.at < end:
        part, size = place.content[place.at], 0
        place.at += 1
        size = place.number()
        following = place.at + size
        if part == 8:
            for _ in range(place.number()):
                kind, flags = place.number(), place.number()
                lacks, named = bool(flags & 0x10), bool(flags & 0x40)
                if kind in (0, 2):  # functions, globals
                    index = place.number()
                    name = place.text() if not lacks or named else (imported[index] if kind == 0 else "")
                elif kind == 1:
                    name = place.text()
                    if not lacks:
                        place.number(), place.number(), place.number()
                else:
                    place.number()
                    continue
                if kind == 2 or flags & 2:  # the stack's pointer, which every linker makes; local names
                    continue
                (undefined if lacks else defined).append(name)
        place.at = following

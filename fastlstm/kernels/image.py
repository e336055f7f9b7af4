"""From object code to an image: machine code and its constants as one block of memory that runs at any address.

LLVM emits relocatable ELF. A kernel's object has code, read-only constants, and references between them. Here they are
laid out one after another and every reference is resolved, as a linker would. The result refers to nothing outside of
itself and is never written to, so it is loaded by copying or mapping it to an address that is a multiple of `ALIGNMENT`
(AArch64 code addresses its constants by page).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fastlstm.errors import FastLSTMError
from fastlstm.program.layout import LINE

__all__ = ["ALIGNMENT", "Image", "image_of"]

ALIGNMENT = 4096

X86_64, AARCH64 = 62, 183  # ELF's numbers of architectures
PROGBITS, SYMTAB, RELA, NOBITS = 1, 2, 4, 8
WRITE, ALLOC = 1, 2


class Image(NamedTuple):
    """Position-independent machine code.

    Attributes
    ----------
    code : bytes
        Instructions and constants; they may lie at any multiple of `ALIGNMENT`.
    entry : int
        Offset of the function in bytes.
    """

    code: bytes
    entry: int


class _Section(NamedTuple):
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int


class _Symbol(NamedTuple):
    name: str
    section: int
    value: int


def image_of(code: bytes, symbol: str) -> Image:
    """Return the image of relocatable object code that defines the function `symbol`.

    Raises
    ------
    FastLSTMError
        If the code is for an unknown architecture, calls a function that it does not define, or has writable data.
    """
    if code[:6] != b"\x7fELF\x02\x01":
        raise FastLSTMError(f"The object code of {symbol} is not 64-bit ELF, which is all that can be loaded.")
    (architecture,) = struct.unpack_from("<H", code, 18)
    if architecture not in _RELOCATE:
        raise FastLSTMError(
            f"The object code of {symbol} is for ELF's architecture {architecture}, not {[*_RELOCATE]}."
        )
    sections = list(_sections(code))
    at, size = _places(sections, symbol)
    image = bytearray(size)
    for number, start in at.items():
        section = sections[number]
        image[start : start + section.size] = code[section.offset : section.offset + section.size]
    symbols = _symbols(code, sections)
    for section in sections:
        if section.kind == RELA and section.info in at:
            _resolve(code, section, symbols, at, image, _RELOCATE[architecture])
    (entry,) = (at[s.section] + s.value for s in symbols if s.name == symbol and s.section in at)
    return Image(bytes(image), entry)


def _sections(code: bytes) -> Iterator[_Section]:
    (table,) = struct.unpack_from("<Q", code, 40)
    size, count = struct.unpack_from("<HH", code, 58)
    for i in range(count):
        _, kind, flags, _, offset, length, link, info, alignment, _ = struct.unpack_from(
            "<IIQQQQIIQQ", code, table + i * size
        )
        yield _Section(kind, flags, offset, length, link, info, alignment)


def _places(sections: list[_Section], symbol: str) -> tuple[dict[int, int], int]:
    """Return the offset in the image of each section that goes into it, and the image's size."""
    at: dict[int, int] = {}
    size = 0
    for number, section in enumerate(sections):
        if not section.flags & ALLOC or not section.size:
            continue
        if section.flags & WRITE or section.kind == NOBITS:
            raise FastLSTMError(f"The object code of {symbol} has data that is written to; kernels have none.")
        if section.kind != PROGBITS:
            continue  # unwind tables, which nothing uses here
        start = -(-size // LINE) * LINE  # no constant requires more
        at[number], size = start, start + section.size
    return at, size


def _symbols(code: bytes, sections: list[_Section]) -> list[_Symbol]:
    (table,) = (section for section in sections if section.kind == SYMTAB)
    names = sections[table.link].offset
    found = []
    for offset in range(table.offset, table.offset + table.size, 24):
        name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", code, offset)
        end = code.index(0, names + name)
        found.append(_Symbol(code[names + name : end].decode(), section, value))
    return found


def _resolve(
    code: bytes,
    table: _Section,
    symbols: list[_Symbol],
    at: dict[int, int],
    image: bytearray,
    relocate: Callable[[bytearray, int, int, int], None],
) -> None:
    """Resolve the references in one section."""
    for offset in range(table.offset, table.offset + table.size, 24):
        where, info, addend = struct.unpack_from("<QQq", code, offset)
        symbol = symbols[info >> 32]
        if symbol.section not in at:
            raise FastLSTMError(f"The kernel calls {symbol.name or 'something'}, which it does not hold; none may.")
        relocate(image, info & 0xFFFFFFFF, at[table.info] + where, at[symbol.section] + symbol.value + addend)


def _x86_64(image: bytearray, kind: int, place: int, target: int) -> None:
    if kind not in (2, 4):  # R_X86_64_PC32, R_X86_64_PLT32
        raise FastLSTMError(f"The object code has a reference of kind {kind}, which no kernel has had so far.")
    struct.pack_into("<i", image, place, target - place)


def _aarch64(image: bytearray, kind: int, place: int, target: int) -> None:
    if kind == 261:  # R_AARCH64_PREL32
        struct.pack_into("<i", image, place, target - place)
        return
    (word,) = struct.unpack_from("<I", image, place)
    if kind in (282, 283):  # R_AARCH64_JUMP26, CALL26
        word |= (target - place >> 2) & 0x3FFFFFF
    elif kind == 275:  # R_AARCH64_ADR_PREL_PG_HI21
        pages = (target >> 12) - (place >> 12)
        word |= (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
    elif kind in _LOW_BITS:
        word |= (target & 0xFFF) >> _LOW_BITS[kind] << 10
    else:
        raise FastLSTMError(f"The object code has a reference of kind {kind}, which no kernel has had so far.")
    struct.pack_into("<I", image, place, word)


_LOW_BITS = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
"""R_AARCH64_ADD_ABS_LO12_NC and LDST8, 16, 32, 64, 128_ABS_LO12_NC: log2 of the unit of the offset."""


_RELOCATE = {X86_64: _x86_64, AARCH64: _aarch64}

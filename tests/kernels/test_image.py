"""Images: object code laid out so that it runs at any address and refers to nothing outside of itself."""

from __future__ import annotations

import ctypes
import struct

import llvmlite.binding as llvm
import pytest

from fastlstm.errors import FastLSTMError
from fastlstm.kernels import loader
from fastlstm.kernels.emit import target_machine
from fastlstm.kernels.image import ALIGNMENT, Image, image_of
from fastlstm.target import LEVELS, TARGETS, Target, machine

TABLE = """
@table = internal constant [4 x i64] [i64 3, i64 5, i64 7, i64 11], align 32
@scale = internal constant [2 x double] [double 2.0, double 10.0], align 16
define internal i64 @inner(i64 %i) noinline {
  %at = getelementptr [4 x i64], ptr @table, i64 0, i64 %i
  %r = load i64, ptr %at
  ret i64 %r
}
define i64 @outer(i64 %a, i64 %b, i64 %c) {
  %x = call i64 @inner(i64 %a)
  %at = getelementptr [2 x double], ptr @scale, i64 0, i64 %b
  %s = load double, ptr %at
  %f = sitofp i64 %x to double
  %p = fmul double %f, %s
  %r = fptosi double %p to i64
  ret i64 %r
}
"""


def emitted(text: str, target: Target) -> bytes:
    compiler = target_machine(target)
    module = llvm.parse_assembly(
        f'target datalayout = "{compiler.target_data}"\ntarget triple = "{target.triple}"\n{text}'
    )
    return bytes(compiler.emit_object(module))


def test_code_runs_at_any_page_and_finds_its_constants() -> None:
    image = image_of(emitted(TABLE, machine.detect()), "outer")
    for shift in (0, 3):
        start = loader.place(bytes(shift * ALIGNMENT) + image.code)
        function = ctypes.CFUNCTYPE(*[ctypes.c_int64] * 4)(start + shift * ALIGNMENT + image.entry)
        assert [function(i, j, 0) for i in range(4) for j in (0, 1)] == [6, 30, 10, 50, 14, 70, 22, 110]


def test_memory_with_code_is_not_writable() -> None:
    start = loader.place(image_of(emitted(TABLE, machine.detect()), "outer").code)
    with open("/proc/self/maps", encoding="utf-8") as file:
        (line,) = [line for line in file if int(line.split("-")[0], 16) == start]
    assert line.split()[1] == "r-xp"


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 & 1 else value


def test_references_of_aarch64_code_reach_what_they_mean() -> None:
    image = image_of(emitted(TABLE, LEVELS["aarch64"]), "outer")
    words = [word for (word,) in struct.iter_unpack("<I", image.code[: len(image.code) // 4 * 4])]
    reached = []
    for i, word in enumerate(words):
        if word & 0xFC000000 == 0x94000000:  # bl: to the function that stands first
            reached.append("call" if 4 * (i + signed(word & 0x3FFFFFF, 26)) == 0 else "wrong")
        if word & 0x9F000000 == 0x90000000:  # adrp, and the add of the lower bits into the same register
            pages = signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
            (add,) = [w for w in words[i : i + 4] if w & 0xFFC00000 == 0x91000000 and w >> 5 & 31 == word & 31]
            at = (4 * i >> 12) + pages << 12 | add >> 10 & 0xFFF
            reached.append(image.code[at : at + 8])
    assert sorted(map(repr, reached)) == sorted(map(repr, ["call", struct.pack("<q", 3), struct.pack("<d", 2.0)]))


@pytest.mark.parametrize("level", ["x86-64-v3", "aarch64"])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "declare i64 @puts(i64)\ndefine i64 @f() {\n %r = call i64 @puts(i64 1)\n ret i64 %r\n}",
            "calls puts, which it",
        ),
        ("@v = global i64 1\ndefine i64 @f() {\n %r = load i64, ptr @v\n ret i64 %r\n}", "data that is written to"),
        ("@v = global i64 0\ndefine i64 @f() {\n %r = load i64, ptr @v\n ret i64 %r\n}", "data that is written to"),
    ],
)
def test_code_that_needs_more_than_itself_is_refused(text: str, sentence: str, level: str) -> None:
    with pytest.raises(FastLSTMError, match=sentence):
        image_of(emitted(text, LEVELS[level]), "f")


def test_object_code_that_cannot_be_loaded_is_refused() -> None:
    text = "define i64 @f() {\n ret i64 1\n}"
    assert isinstance(image_of(emitted(text, LEVELS["aarch64"]), "f"), Image)
    with pytest.raises(FastLSTMError, match="64-bit ELF"):
        image_of(emitted(text, TARGETS["cortex-m4"]), "f")
    with pytest.raises(FastLSTMError, match="architecture 243"):
        image_of(emitted(text, TARGETS["riscv64"]), "f")

"""Square roots and floors for processors without instructions for them, in LLVM assembly.

LLVM would call the C library: a Cortex-M4 has no square root of doubles, and before ARMv8 no instruction rounds a float
down. These functions give the same bits, and the exported object needs no library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastlstm.export.objects import read_object
from fastlstm.target import Target

__all__ = ["without_library"]

_ASKED = re.compile(r"@llvm\.((?:floor|sqrt)\.(?:v\d+f32|f64))\(")


def without_library(parts: Sequence[str], target: Target, machine: Any) -> list[str]:
    """Return LLVM assembly without calls of the C library's square root and floor, and the functions used instead."""
    asked = sorted({name for part in parts for name in _ASKED.findall(part)})
    missing = {name for name in asked if _calls_library(name, target, machine)}
    if not missing:
        return list(parts)
    own = [
        _ASKED.sub(lambda found: f"@fl_{found[1]}(" if found[1] in missing else found.group(), part) for part in parts
    ]
    definitions = [_floor(name) if name.startswith("floor") else _square_root(name) for name in sorted(missing)]
    if any(name.startswith("sqrt") for name in missing):
        definitions.append(_SQUARE_ROOT)
    return [*own, "\n".join(definitions)]


def _type(name: str) -> str:
    kind = name.split(".")[1]
    return "double" if kind == "f64" else f"<{kind[1:-3]} x float>"


def _calls_library(name: str, target: Target, machine: Any) -> bool:
    """Whether the target's code for an operation calls a library function."""
    import llvmlite.binding as llvm

    from fastlstm.kernels.emit import for_target

    kind = _type(name)
    text = f"""declare {kind} @llvm.{name}({kind})
define void @f(ptr %at) nounwind {{
  %x = load {kind}, ptr %at, align 4
  %y = call {kind} @llvm.{name}({kind} %x)
  store {kind} %y, ptr %at, align 4
  ret void
}}"""
    module = llvm.parse_assembly(for_target(text, target, machine))
    found = read_object(machine.emit_object(module)).undefined
    return any(name.startswith(("sqrt", "floor")) for name in found)


def _floor(name: str) -> str:
    """Return floor(x), which is x itself from 2^23 on, where all floats are integers."""
    kind, suffix = _type(name), name.split(".")[1]
    lanes = kind[1:].split()[0]
    whole, truth = f"<{lanes} x i32>", f"<{lanes} x i1>"
    bound, one = (f"<{', '.join([f'float {value}'] * int(lanes))}>" for value in ("8388608.0", "1.0"))
    return f"""declare {kind} @llvm.fabs.{suffix}({kind})
declare {kind} @llvm.copysign.{suffix}({kind}, {kind})
define {kind} @fl_{name}({kind} %x) nounwind {{
  %size = call {kind} @llvm.fabs.{suffix}({kind} %x)
  %small = fcmp olt {kind} %size, {bound}
  %held = select {truth} %small, {kind} %x, {kind} zeroinitializer
  %number = fptosi {kind} %held to {whole}
  %cut = sitofp {whole} %number to {kind}
  %above = fcmp ogt {kind} %cut, %held
  %less = select {truth} %above, {kind} {one}, {kind} zeroinitializer
  %down = fsub {kind} %cut, %less
  %signed = call {kind} @llvm.copysign.{suffix}({kind} %down, {kind} %x)
  %r = select {truth} %small, {kind} %signed, {kind} %x
  ret {kind} %r
}}"""


def _square_root(name: str) -> str:
    """Return the square root computed in double precision: rounded again, it is still the nearest float."""
    kind = _type(name)
    if kind == "double":
        body = "  %r = call double @fl.root(double %x)\n  ret double %r"
        return f"define double @fl_{name}(double %x) nounwind {{\n{body}\n}}"
    lines, last = [], "poison"
    for i in range(int(kind[1:].split()[0])):
        lines.append(
            f"  %x{i} = extractelement {kind} %x, i32 {i}\n  %d{i} = fpext float %x{i} to double\n"
            f"  %s{i} = call double @fl.root(double %d{i})\n  %f{i} = fptrunc double %s{i} to float\n"
            f"  %r{i} = insertelement {kind} {last}, float %f{i}, i32 {i}"
        )
        last = f"%r{i}"
    body = "\n".join(lines)
    return f"define {kind} @fl_{name}({kind} %x) nounwind {{\n{body}\n  ret {kind} {last}\n}}"


# x = m * 2^e with e even and m below 2^54. The 54 bits of floor(sqrt(m * 2^54)) are computed one by one; the last one
# decides the rounding. There are no ties: the root would be odd, and so its square, but m * 2^54 is even.
_SQUARE_ROOT = f"""declare i64 @llvm.ctlz.i64(i64, i1)
define double @fl.root(double %x) nounwind {{
entry:
  %positive = fcmp ogt double %x, 0.0
  %bits = bitcast double %x to i64
  %infinite = icmp eq i64 %bits, {0x7FF << 52}
  %number = xor i1 %infinite, true
  %goes = and i1 %positive, %number
  br i1 %goes, label %begin, label %other
other:
  %below = fcmp olt double %x, 0.0
  %self = select i1 %below, double 0x7FF8000000000000, double %x
  ret double %self
begin:
  %exponent = lshr i64 %bits, 52
  %fraction = and i64 %bits, {(1 << 52) - 1}
  %denormal = icmp eq i64 %exponent, 0
  %zeros = call i64 @llvm.ctlz.i64(i64 %fraction, i1 false)
  %by = sub i64 %zeros, 11
  %shift = select i1 %denormal, i64 %by, i64 0
  %left = shl i64 %fraction, %shift
  %normal = or i64 %left, {1 << 52}
  %least = sub i64 1, %shift
  %known = select i1 %denormal, i64 %least, i64 %exponent
  %even = and i64 %known, 1
  %odd = xor i64 %even, 1
  %m = shl i64 %normal, %odd
  %e = sub i64 %known, %odd
  %top = shl i64 %m, 10
  br label %bit
bit:
  %i = phi i64 [ 0, %begin ], [ %next, %bit ]
  %digits = phi i64 [ %top, %begin ], [ %rest, %bit ]
  %over = phi i64 [ 0, %begin ], [ %remainder, %bit ]
  %root = phi i64 [ 0, %begin ], [ %longer, %bit ]
  %two = lshr i64 %digits, 62
  %rest = shl i64 %digits, 2
  %room = shl i64 %over, 2
  %brought = or i64 %room, %two
  %four = shl i64 %root, 2
  %trial = or i64 %four, 1
  %fits = icmp uge i64 %brought, %trial
  %taken = select i1 %fits, i64 %trial, i64 0
  %remainder = sub i64 %brought, %taken
  %doubled = shl i64 %root, 1
  %digit = zext i1 %fits to i64
  %longer = or i64 %doubled, %digit
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, 54
  br i1 %more, label %bit, label %done
done:
  %half = add i64 %longer, 1
  %rounded = lshr i64 %half, 1
  %shown = sub i64 %e, 1023
  %halved = ashr i64 %shown, 1
  %biased = add i64 %halved, 1022
  %placed = shl i64 %biased, 52
  %r = add i64 %placed, %rounded
  %y = bitcast i64 %r to double
  ret double %y
}}"""

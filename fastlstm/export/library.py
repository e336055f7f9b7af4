"""A static library for x86-64: code for several levels, and functions that pick the one for the processor.

``N_init`` queries the processor and stores the level in the state, where every other function looks it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastlstm.export.interface import Interface, Port
from fastlstm.export.struct import LEVEL
from fastlstm.export.worker import Work, make_here
from fastlstm.target import LEVELS

__all__ = ["LIBRARY_LEVELS", "NARROW_LEVELS", "dispatcher", "level_prefix"]

LIBRARY_LEVELS = ("x86-64-v3", "x86-64-v4")
"""Levels in a library, the lowest first."""

NARROW_LEVELS = (*LIBRARY_LEVELS, "x86-64-v4-vnni")
"""Levels in a library of a model with narrow weights, which VNNI multiplies in half the instructions."""

# What a level requires (`fastlstm.target.machine.NEEDS`): bits of ecx in CPUID leaf 1, of ebx in leaf 7, and the
# registers that the system saves (XCR0). The upper half of what `CPUID` returns for leaf 7 is ecx, where VNNI is.
_V3 = (1 << 12 | 1 << 22 | 1 << 27 | 1 << 28 | 1 << 29, 1 << 3 | 1 << 5 | 1 << 8, 0x06)
_V4 = (_V3[0], _V3[1] | 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31, 0xE6)
_NEEDS = {"x86-64-v3": _V3, "x86-64-v4": _V4, "x86-64-v4-vnni": (_V4[0], _V4[1] | 1 << 32 + 11, _V4[2])}

# LLVM has no intrinsic for these instructions, and llvmlite can parse assembly for its own processor only.
CPUID = bytes.fromhex("53 89f8 31c9 0fa2 48c1e120 89d8 4809c8 5b c3")
"""push rbx; mov eax, edi; xor ecx, ecx; cpuid; shl rcx, 32; mov eax, ebx; or rax, rcx; pop rbx; ret"""
XGETBV = bytes.fromhex("31c9 0f01d0 c3")
"""xor ecx, ecx; xgetbv; ret"""


def level_prefix(interface: Interface, level: str) -> str:
    """Return the prefix of a level's functions."""
    return f"{interface.name}_{level.removeprefix('x86-64-').replace('-', '_')}"


def dispatcher(interface: Interface, levels: Sequence[str]) -> bytes:
    """Return the object whose functions dispatch to those of a level."""
    text = [
        _machine_code("fl.cpuid", "i32 %leaf", CPUID),
        _machine_code("fl.xgetbv", "", XGETBV),
        _level(levels),
    ]
    made = []
    for name, returns, parameters in _signatures(interface):
        kinds = ", ".join(kind for kind, _ in parameters)
        text += [f"declare {returns} @{level_prefix(interface, level)}_{name}({kinds})" for level in levels]
        text.append(_choosing(interface, name, returns, parameters, levels))
        made.append(f"{interface.name}_{name}")
    for name, returns in (("model_hash", "ptr"), ("same_bits", "i32")):
        first = f"{level_prefix(interface, levels[0])}_{name}"
        text.append(f"declare {returns} @{first}()")
        call = f"  %r = tail call {returns} @{first}()\n  ret {returns} %r"
        text.append(f"define {returns} @{interface.name}_{name}() #0 {{\n{call}\n}}")
        made.append(f"{interface.name}_{name}")
    text.append('attributes #0 = { nounwind "no-builtins" }')
    text.append('attributes #1 = { nounwind noinline "no-builtins" }')
    plain = replace(LEVELS["x86-64-v2"], name="x86-64", cpu="x86-64")
    return make_here(Work(plain, ["\n".join(text)], made, ("fl.cpuid", "fl.xgetbv")))


def _machine_code(name: str, parameter: str, code: bytes) -> str:
    """Return a function that consists of the given machine code, placed before a body that is never reached.

    The body hides from LLVM what becomes of the parameter, so LLVM has to pass it and call the function.
    """
    content = "".join(f"\\{byte:02X}" for byte in code)
    kept = f"  store volatile {parameter}, ptr %at\n" if parameter else ""
    body = f"  %at = alloca i64\n{kept}  %r = load volatile i64, ptr %at\n  ret i64 %r\n"
    return f'define i64 @{name}({parameter}) #1 prologue [{len(code)} x i8] c"{content}" {{\n{body}}}'


def _level(levels: Sequence[str]) -> str:
    """Return the function that tells the processor's level, counted from 1; 0 if it has none."""
    lines = [
        "define i32 @fl.level() #0 {",
        "  %one = call i64 @fl.cpuid(i32 1)",
        "  %features = lshr i64 %one, 32",
        f"  %saves = and i64 %features, {1 << 27}",
        "  %asks = icmp ne i64 %saves, 0",
        "  br i1 %asks, label %more, label %none",
        "none:",
        "  ret i32 0",
        "more:",
        "  %seven = call i64 @fl.cpuid(i32 7)",
        "  %system = call i64 @fl.xgetbv()",
    ]
    found = "0"
    for number, level in enumerate(levels, 1):
        flags = []
        for i, (value, needed) in enumerate(zip(("%features", "%seven", "%system"), _NEEDS[level], strict=True)):
            at = f"%l{number}.{i}"
            lines += [f"  {at}.has = and i64 {value}, {needed}", f"  {at} = icmp eq i64 {at}.has, {needed}"]
            flags.append(at)
        lines += [
            f"  %l{number}.some = and i1 {flags[0]}, {flags[1]}",
            f"  %l{number}.all = and i1 %l{number}.some, {flags[2]}",
            f"  %l{number} = select i1 %l{number}.all, i32 {number}, i32 {found}",
        ]
        found = f"%l{number}"
    return "\n".join([*lines, f"  ret i32 {found}", "}"])


def _signatures(interface: Interface) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return name, type and parameters of the functions that take a state."""

    def given(ports: Sequence[Port]) -> list[tuple[str, str]]:
        return [("ptr", port.parameter) for port in ports]

    state, every = [("ptr", "s")], given(interface.ports)
    if not interface.streams:
        return [("init", "void", state), ("call", "void", [*state, *every])]
    return [
        ("init", "void", state),
        ("step", "i64", [*state, *every]),
        ("run", "i64", [*state, *every, ("i64", "n")]),
        ("finish", "i64", [*state, *given(interface.outputs)]),
        ("get_state", "void", [*state, ("ptr", "flat")]),
        ("set_state", "void", [*state, ("ptr", "flat")]),
    ]


def _choosing(
    interface: Interface, name: str, returns: str, parameters: list[tuple[str, str]], levels: Sequence[str]
) -> str:
    """Return the function that calls the level's."""
    head = f"define {returns} @{interface.name}_{name}({', '.join(f'{k} %{n}' for k, n in parameters)}) #0 {{"
    at = f"  %at = getelementptr i8, ptr %s, i64 {LEVEL}"
    lines = [head, at, "  %level = call i32 @fl.level()" if name == "init" else "  %level = load i32, ptr %at, align 4"]
    cases = " ".join(f"i32 {number}, label %l{number}" for number in range(1, len(levels) + 1))
    lines += [f"  switch i32 %level, label %none [ {cases} ]", "none:"]
    if name == "init":
        lines.append("  store i32 0, ptr %at, align 4")
    lines.append("  ret void" if returns == "void" else "  ret i64 0")
    for number, level in enumerate(levels, 1):
        given = ", ".join(f"{kind} %{n}" for kind, n in parameters)
        call = f"tail call {returns} @{level_prefix(interface, level)}_{name}({given})"
        lines.append(f"l{number}:")
        lines.append(f"  {call}" if returns == "void" else f"  %r{number} = {call}")
        if name == "init":
            lines.append(f"  store i32 {number}, ptr %at, align 4")
        lines.append("  ret void" if returns == "void" else f"  ret {returns} %r{number}")
    return "\n".join([*lines, "}"])

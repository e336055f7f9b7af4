"""The size of the state struct in the header, which depends on the family of processors it is compiled for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastlstm.export.module import Module

__all__ = ["size_macros", "sizes_of"]

_FAMILIES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "x86-64": (("x86_64",), "defined(__x86_64__) || defined(_M_X64)"),
    "ARM, 64 bits": (("aarch64", "arm64"), "defined(__aarch64__) || defined(_M_ARM64)"),
    "Cortex-M": (("thumb",), "defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'"),
    "RISC-V, 32 bits": (("riscv32",), "defined(__riscv) && __riscv_xlen == 32"),
    "WebAssembly": (("wasm32",), "defined(__wasm__)"),
}
"""Families of processors with much or little memory: how their triples begin, and how a preprocessor tells them."""


def sizes_of(modules: Sequence[Module]) -> tuple[int, int]:
    """Return the size and alignment of a struct that serves all modules."""
    align = max(module.state_align for module in modules)
    size = max(module.state_bytes for module in modules)
    return -(-size // align) * align, align


def size_macros(name: str, modules: Sequence[Module]) -> list[str]:
    """Return the lines that define the size and alignment of the struct.

    A microcontroller should not reserve the memory that a block of steps takes on a large processor. A family that is
    not among the targets, or not known to the compiler, gets the size that serves all.
    """
    found = []
    for starts, condition in _FAMILIES.values():
        own = [module for module in modules if module.target.triple.startswith(starts)]
        if own and sizes_of(own) != sizes_of(modules):
            found.append((condition, sizes_of(own)))
    lines = []
    for i, (condition, sizes) in enumerate(found):
        lines += [f"#{'elif' if i else 'if'} {condition}", *_defined(name, sizes)]
    return (
        [*lines, "#else", *_defined(name, sizes_of(modules)), "#endif"] if found else _defined(name, sizes_of(modules))
    )


def _defined(name: str, sizes: tuple[int, int]) -> list[str]:
    return [f"#define {name}_STATE_BYTES {sizes[0]}", f"#define {name}_STATE_ALIGN {sizes[1]}"]

"""A model's object file for one target."""

from __future__ import annotations

from dataclasses import dataclass

from fastlstm.export.functions import Functions
from fastlstm.export.interface import Interface
from fastlstm.export.lowering import Lowering
from fastlstm.export.source import Source
from fastlstm.export.worker import Work, make
from fastlstm.target import Target

__all__ = ["Module", "compiled"]


@dataclass(frozen=True)
class Module:
    """Object code and its properties.

    Attributes
    ----------
    target : Target
    code : bytes
    prefix : str
        Prefix of its functions' names.
    exported : tuple of str
    state_bytes, state_align : int
        Of the state struct.
    weight_bytes : int
        Size of the constant data.
    weights : bytes
        The constant data if it is a separate file, else empty.
    stack_bytes : int
        The largest stack frame of a function plus that of the functions it calls.
    """

    target: Target
    code: bytes
    prefix: str
    exported: tuple[str, ...]
    state_bytes: int
    state_align: int
    weight_bytes: int
    weights: bytes
    stack_bytes: int


def compiled(source: Source, interface: Interface, target: Target, prefix: str) -> Module:
    """Return the object file; its functions' names begin with `prefix`.

    Raises
    ------
    UnsupportedError
        If something in it cannot be exported.
    FastLSTMError
        If LLVM cannot make code for the target.
    """
    lowering = Lowering(source, interface, target)
    functions = Functions(lowering, prefix)
    exported = functions.write()
    lowering.main.append(f"attributes #0 = {{ {_attributes(target)} }}")
    lowering.main.append(f"attributes #1 = {{ noinline {_attributes(target)} }}")
    kernels = [one.name for one in lowering.shared.values()]
    work = Work(target, ["\n".join(lowering.main), *lowering.parts], exported, [*functions.shared, *kernels])
    made = make(work)
    # An exported function calls a shared one, which calls a kernel of its own.
    stack = sum(max([0, *(made.stack[name] for name in names)]) for names in (exported, functions.shared, kernels))
    return Module(
        target, made.code, prefix, tuple(exported), lowering.struct.size, lowering.struct.align, len(lowering.weights),
        bytes(lowering.weights) if interface.apart else b"", stack,
    )  # fmt: skip


def _attributes(target: Target) -> str:
    """Return the attributes of every function: without "no-builtins" LLVM could turn loops into memset and memcpy."""
    windows = " uwtable" if "windows" in target.triple else ""
    return f'nounwind "no-builtins" "no-stack-arg-probe" "warn-stack-size"="0"{windows}'

"""A process that makes object code: LLVM modules in, an object and LLVM's remarks out.

It is a separate process because LLVM aborts its process when a target cannot do something, and reports the size of a
function's stack frame on standard error only.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastlstm.errors import FastLSTMError, InputError
from fastlstm.target import Target

__all__ = ["Made", "Work", "make", "make_here", "put"]

UNKNOWN = re.compile(r"'\+?([^'\n]+)' is not a recognized (processor|feature) for this target")
FRAME = re.compile(r"stack frame size \((\d+)\) exceeds limit \(0\) in function '([^']+)'")


class Work(NamedTuple):
    """A module to compile.

    Attributes
    ----------
    target : Target
    parts : sequence of str
        LLVM assembly; all functions but `exported` become internal.
    exported : sequence of str
    kept : sequence of str
        Internal functions that must not be inlined.
    """

    target: Target
    parts: Sequence[str]
    exported: Sequence[str]
    kept: Sequence[str] = ()


class Made(NamedTuple):
    """An object, and the stack frame of each of its functions in bytes."""

    code: bytes
    stack: dict[str, int]


def make(work: Work) -> Made:
    """Return the object code of a module.

    Raises
    ------
    InputError
        If LLVM does not know the processor or a feature, which it would otherwise ignore with a warning.
    FastLSTMError
        If LLVM cannot make it.
    """
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastlstm.export.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    out, told = process.communicate(json.dumps(_request(work)).encode())
    text = told.decode(errors="replace")
    if process.returncode:
        if os.environ.get("FASTLSTM_TRACEBACK"):
            sys.stderr.write(text)
        reason = next((line for line in reversed(text.splitlines()) if line.strip()), f"status {process.returncode}")
        raise FastLSTMError(f"LLVM could not make code for {work.target.name}: {reason.strip()}")
    if unknown := UNKNOWN.search(text):
        name, kind = unknown.groups()
        raise InputError(
            f"LLVM knows no {kind} '{name}' of {work.target.triple}: see its documentation for their names."
        )
    stack = {name: int(size) for size, name in FRAME.findall(text)}
    return Made(base64.b64decode(out), {name: stack.get(name, 0) for name in (*work.exported, *work.kept)})


def make_here(work: Work) -> bytes:
    """Return the object code of one of our own modules, which is safe to compile in this process."""
    return _compiled(_request(work))


def _request(work: Work) -> dict[str, Any]:
    target = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(work.target).items()}
    return {"target": target, "parts": list(work.parts), "exported": list(work.exported), "kept": list(work.kept)}


def _compiled(request: dict[str, Any]) -> bytes:
    """Return the object code."""
    import llvmlite.binding as llvm

    from fastlstm.export.arithmetic import without_library
    from fastlstm.kernels.emit import for_target, optimise, target_machine
    from fastlstm.kernels.primitives import target_primitives

    data: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in request["target"].items()}
    target, exported = Target(**data), set(request["exported"])
    machine = target_machine(target)
    parts = without_library(request["parts"], target, machine)
    module, *others = (llvm.parse_assembly(for_target(text, target, machine)) for text in parts)
    for other in others:
        module.link_in(other)
    needed = [f.name for f in module.functions if f.is_declaration]
    module.link_in(llvm.parse_assembly(for_target(target_primitives(target, needed), target, machine)))
    for function in module.functions:
        if not function.is_declaration and function.name not in exported.union(request["kept"]):
            function.add_function_attribute("alwaysinline")
    module.verify()
    optimise(module, machine, exported)
    code: bytes = machine.emit_object(module)
    return code


def put(content: bytes) -> None:
    """Write all of it to standard output.

    With PYTHONUNBUFFERED set, `sys.stdout.buffer` makes a single system call, which a signal (SIGSTOP, then SIGCONT)
    may cut short.
    """
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        out.write(content)


def _main() -> int:
    put(base64.b64encode(_compiled(json.loads(sys.stdin.buffer.read()))))
    return 0


if __name__ == "__main__":
    sys.exit(_main())

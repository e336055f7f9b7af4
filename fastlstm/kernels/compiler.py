"""Compiling kernels: one calling convention, one set of options, one cache on disk.

A kernel is a C function ``int64(int64, int64, int64)``, used as ``(args, frame, unused)`` by the program that
`fastlstm.kernels.drive` runs and as a Python built-in by `fastlstm.native`. It is written as a factory: a
function in a module of this package whose parameters are compile-time constants (lanes, tile shapes,
activations) and which returns the function that Numba compiles. `address` finds a variant by name, in a folder
of the project's own whose name holds everything machine code depends on: the kernels' sources, the processor
its features and L1 cache, the versions of Python, Numba and llvmlite. Only a variant that is not there yet imports
Numba; loading one that is there takes about a millisecond.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Hashable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastlstm import machine
from fastlstm.errors import FastLSTMError
from fastlstm.forking import undisturbed

__all__ = ["address", "cache_folder", "loaded", "stored"]

C_FUNCTIONS = ("memcpy", "memmove", "memset", "sqrt", "log")  # LLVM makes calls of the first three out of loops
SYSTEM_FUNCTIONS = (
    "pthread_mutex_lock",
    "pthread_mutex_unlock",
    "pthread_cond_broadcast",
    "pthread_cond_wait",
)
LINUX_FUNCTIONS = ("sched_getcpu", "sched_getaffinity", "sched_setaffinity")

_addresses: dict[tuple[str, tuple[Hashable, ...]], int] = {}
_engines: list[Any] = []  # an LLVM engine owns its machine code, so each is kept alive
_compiling_seconds = 0.0


def address(name: str, *params: Hashable) -> int:
    """Return the address of kernel `name` (``"module.factory"``) compiled for these constants.

    Raises
    ------
    FastLSTMError
        If Numba cannot compile it; the message holds Numba's reason.
    """
    key = (name, params)
    found = _addresses.get(key)
    if found is None:
        with undisturbed:
            found = _addresses.get(key)
            if found is None:
                found = _addresses[key] = _load(name, params)
    return found


def loaded() -> list[tuple[str, tuple[Hashable, ...]]]:
    """Return the names and constants of the kernels this process has loaded."""
    return sorted(_addresses, key=repr)


def cache_folder() -> Path:
    """Return the folder of compiled kernels; the environment variable ``FASTLSTM_CACHE_DIR`` moves it."""
    chosen = os.environ.get("FASTLSTM_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local")))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fastlstm"


@cache
def _fingerprint() -> str:
    """Return a hash of all that machine code depends on besides a kernel's own constants."""
    target = machine.detect()
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in [*sorted(here.glob("*.py")), here.parent / "simd.py", here.parent / "layout.py"]:
        digest.update(source.read_bytes())
    versions = (version("numba"), version("llvmlite"), sys.version_info[:2], sys.platform)
    digest.update(repr((target.cpu, sorted(target.features), target.l1_bytes, target.l2_bytes, versions)).encode())
    return digest.hexdigest()[:20]


def stored(name: str, params: tuple[Hashable, ...]) -> Path:
    """Return where the object code of a kernel is kept."""
    key = hashlib.sha256(repr((name, params)).encode()).hexdigest()[:16]
    return cache_folder() / _fingerprint() / f"{name}-{key}.o"


def _load(name: str, params: tuple[Hashable, ...]) -> int:
    key = hashlib.sha256(repr((name, params)).encode()).hexdigest()[:16]
    symbol = f"fastlstm_{name.replace('.', '_')}_{key}"
    path = stored(name, params)
    found = _link(_stored(path), symbol)
    if not found:
        code = _compile(name, params, symbol)
        found = _link(code, symbol)
        _keep(path, code)
    return found


def _stored(path: Path) -> bytes:
    """Return the object code kept at `path`, empty if there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else b""


def _compile(name: str, params: tuple[Hashable, ...], symbol: str) -> bytes:
    """Return the object code of one variant, exported as `symbol`."""
    import llvmlite.binding as llvm
    import numba

    from fastlstm.kernels.pipeline import kernel_module

    _announce()
    started = time.monotonic()
    module, factory = name.split(".")
    function = getattr(importlib.import_module(f"fastlstm.kernels.{module}"), factory)(*params)
    try:
        text, target = kernel_module(function, symbol)
    except numba.core.errors.NumbaError as error:
        raise FastLSTMError(f"Numba could not compile the kernel {name}{params}: {error}") from error
    code: bytes = target.emit_object(llvm.parse_assembly(text))
    global _compiling_seconds
    _compiling_seconds += time.monotonic() - started
    return code


def _announce() -> None:
    """Say once, on stderr, that compiling is what takes the time."""
    global _compiling_seconds
    if _compiling_seconds >= 1.0 and not os.environ.get("FASTLSTM_QUIET"):
        print(  # noqa: T201
            f"fastlstm: compiling kernels for this machine, once; they are kept in {cache_folder()}",
            file=sys.stderr,
            flush=True,
        )
        _compiling_seconds = float("-inf")


def _link(code: bytes, symbol: str) -> int:
    """Return the address of `symbol` in object code, 0 if the code is damaged or does not hold it."""
    import llvmlite.binding as llvm

    if not code:
        return 0
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    _name_system_functions()
    empty = llvm.parse_assembly("")
    target = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(empty, target)
    try:
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        found = int(engine.get_function_address(symbol))
    except RuntimeError:
        return 0
    if found:
        _engines.append(engine)
    return found


@cache
def _name_system_functions() -> None:
    """Tell LLVM where the functions are that kernels call: it does not look through the process by itself."""
    import llvmlite.binding as llvm

    system = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    names = C_FUNCTIONS + (SYSTEM_FUNCTIONS if os.name == "posix" else ())
    for name in names + (LINUX_FUNCTIONS if sys.platform == "linux" else ()):
        llvm.add_symbol(name, ctypes.cast(getattr(system, name), ctypes.c_void_p).value)


def _keep(path: Path, code: bytes) -> None:
    """Store object code, written aside and renamed; a folder that cannot be written, or is full, costs a recompile."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(aside, path)
        finally:
            Path(aside).unlink(missing_ok=True)

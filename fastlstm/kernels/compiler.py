"""Compiling kernels: one calling convention, one set of options, one cache on disk.

A kernel is a C function ``int64(int64, int64, int64)``, used as ``(args, frame, unused)`` by the program that
`fastlstm.kernels.drive` runs and as a Python built-in by `fastlstm.native`. It is written as a factory: a
function in a module of this package whose parameters are compile-time constants (lanes, tile shapes,
activations) and which returns the function that Numba compiles. `compile_kernel` makes a variant's object code for any
target. `address` finds a variant in this process, in a folder of the project's own whose name holds everything machine
code depends on: the kernels' sources, the target's code, the versions of Python, Numba and llvmlite. Only a variant
that is not there yet imports Numba; loading one that is there takes about a millisecond.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Hashable
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fastlstm.errors import FastLSTMError
from fastlstm.kernels.system import C_FUNCTIONS, LINUX_FUNCTIONS, SYSTEM_FUNCTIONS
from fastlstm.target import Target

__all__ = ["Kernel", "address", "cache_folder", "compile_kernel", "loaded", "stored", "template_of"]


class Kernel(NamedTuple):
    """A variant of a kernel: ``"module.factory"``, and the constants that the factory takes."""

    name: str
    constants: tuple[Hashable, ...] = ()

    @property
    def key(self) -> str:
        """A short name of the variant, for files."""
        return hashlib.sha256(repr((self.name, self.constants)).encode()).hexdigest()[:16]

    @property
    def symbol(self) -> str:
        """The name of its function in object code."""
        return f"fastlstm_{self.name.replace('.', '_')}_{self.key}"


_lock = threading.RLock()
_addresses: dict[tuple[Kernel, tuple[object, ...]], int] = {}
_engines: list[Any] = []  # an LLVM engine owns its machine code, so each is kept alive
_compiling_seconds = 0.0


def compile_kernel(kernel: Kernel, target: Target) -> bytes:
    """Return the object code of a kernel, which exports `kernel.symbol`; it depends on nothing but the arguments.

    Raises
    ------
    FastLSTMError
        If Numba cannot compile it; the message holds Numba's reason.
    """
    from fastlstm.kernels.emit import emit

    return emit(template_of(kernel), kernel.symbol, target)


@lru_cache(maxsize=256)
def template_of(kernel: Kernel) -> str:
    """Return a kernel in LLVM's language, the same for all targets."""
    import numba

    from fastlstm.kernels.pipeline import template

    module, factory = kernel.name.split(".")
    function = getattr(importlib.import_module(f"fastlstm.kernels.{module}"), factory)(*kernel.constants)
    try:
        return template(function, kernel.symbol)
    except numba.core.errors.NumbaError as error:
        raise FastLSTMError(f"Numba could not compile the kernel {kernel.name}{kernel.constants}: {error}") from error


def address(kernel: Kernel, target: Target) -> int:
    """Return where a kernel stands in this process, compiled for `target`.

    Raises
    ------
    FastLSTMError
        If Numba cannot compile it; the message holds Numba's reason.
    """
    key = (kernel, target.code)
    found = _addresses.get(key)
    if found is None:
        with _lock:
            found = _addresses.get(key)
            if found is None:
                found = _addresses[key] = _load(kernel, target)
    return found


def loaded() -> list[Kernel]:
    """Return the kernels this process has loaded."""
    return sorted({kernel for kernel, _ in _addresses}, key=repr)


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
def _fingerprint(code: tuple[object, ...]) -> str:
    """Return a hash of all that machine code depends on besides a kernel's own constants."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    shared = ("arguments", "layout", "limits", "simd", "target")
    for source in [*sorted(here.glob("*.py")), *(here.parent / f"{name}.py" for name in shared)]:
        digest.update(source.read_bytes())
    versions = (version("numba"), version("llvmlite"), sys.version_info[:2])
    digest.update(repr((code, versions)).encode())
    return digest.hexdigest()[:20]


def stored(kernel: Kernel, target: Target) -> Path:
    """Return where the object code of a kernel is kept."""
    return cache_folder() / _fingerprint(target.code) / f"{kernel.name}-{kernel.key}.o"


def _load(kernel: Kernel, target: Target) -> int:
    path = stored(kernel, target)
    found = _link(_stored(path), kernel.symbol)
    if not found:
        code = _compile(kernel, target)
        found = _link(code, kernel.symbol)
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


def _compile(kernel: Kernel, target: Target) -> bytes:
    """Return the object code of one variant, and say that this is what takes the time."""
    _announce()
    started = time.monotonic()
    code = compile_kernel(kernel, target)
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
    """Store object code, written aside and renamed; a folder that cannot be written costs a recompile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as aside:
            aside.write(hashlib.sha256(code).digest() + code)
        os.replace(aside.name, path)
    except OSError:
        return

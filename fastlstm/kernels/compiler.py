"""Compiling and finding kernels: one calling convention, one set of options.

A kernel is a C function ``int64(int64, int64, int64)``, used as ``(args, frame, unused)`` by the program that
`fastlstm.kernels.drive` runs and as a Python built-in by `fastlstm.runtime.native`. It is written as a factory: a
function in a module of this package whose parameters are compile-time constants (lanes, tile shapes,
activations) and which returns the function that Numba compiles. `compile_kernel` makes a variant's object code for any
target.

`load` finds a variant in the packs that came with the package, in the cache, or compiles it.
Nothing but compiling imports Numba or llvmlite.
"""

from __future__ import annotations

import ctypes
import importlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from fastlstm.errors import DependencyError, FastLSTMError, FileFormatError
from fastlstm.forking import undisturbed
from fastlstm.kernels import cache, helpers, loader
from fastlstm.kernels.image import Image, image_of
from fastlstm.kernels.kernel import Kernel, known, listings
from fastlstm.kernels.packfile import Pack, pack_bytes, read_pack
from fastlstm.kernels.progress import Progress, say
from fastlstm.target import LEVELS, Target

__all__ = [
    "Kernel",
    "ahead",
    "compile_kernel",
    "found_image",
    "keep_image",
    "kept_image",
    "kernel_image",
    "listing",
    "load",
    "loaded",
    "made_with",
    "packed",
    "prepare",
    "stored",
    "template_of",
]

PACKS = Path(__file__).parent.parent / "packs"
"""The folder of the packs that come with the package: a file per level, made by `fastlstm.prebuild`."""

SLOW = (
    "small", "small_gru", "convolution", "contraction", "linear", "rnn", "gru", "projected", "normalised", "recurrent",
)  # fmt: skip
"""Modules whose kernels take longest to compile, slowest last; the first result does not wait for "entry"."""


_packs: dict[tuple[object, ...], tuple[Pack, int] | None] = {}  # and their addresses in memory
_progress = Progress()
_nothing = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(lambda *_: 0)
_not_run = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t)(lambda *_: None)


def operation(kernel: Kernel) -> str:
    """Return what a kernel computes, in terms of the model."""
    module, factory = kernel.name.split(".")
    named = [constant for constant in kernel.constants if isinstance(constant, str)]
    layers = {"lstm": "LSTM layers", "gru": "GRU layers", "reset_before": "GRU layers", "rnn": "RNN layers"}
    modules = {"linear": "dense layers and input projections", "contraction": "matrix products",
               "convolution": "convolutions"}  # fmt: skip
    what = layers.get(factory) or modules.get(module) or (named[0] if named else factory)
    return f"{what} (kernel {kernel.name}{kernel.constants})"


def kernel_image(kernel: Kernel, target: Target) -> Image:
    """Return a kernel compiled for `target`, ready to be loaded anywhere; see `compile_kernel`."""
    return image_of(compile_kernel(kernel, target), kernel.symbol)


def compile_kernel(kernel: Kernel, target: Target) -> bytes:
    """Return the object code of a kernel, which exports `kernel.symbol`; it depends on nothing but the arguments.

    Raises
    ------
    FastLSTMError
        If Numba cannot compile it; the message gives Numba's reason.
    """
    template = template_of(kernel)
    from fastlstm.kernels.emit import emit

    return emit(template, kernel.symbol, target)


@lru_cache(maxsize=256)
def template_of(kernel: Kernel) -> str:
    """Return a kernel as LLVM assembly, which is the same for all targets."""
    try:
        import numba

        from fastlstm.kernels.pipeline import template
    except ImportError as error:
        raise DependencyError(
            f"The code of {operation(kernel)} is not among what was compiled beforehand, and Numba, which compiles it, "
            f"cannot be imported ({error}). `fastlstm warmup --folder` compiles it on another machine; "
            "or use Numba here. Install it with: pip install numba"
        ) from error

    module, factory = kernel.name.split(".")
    function = getattr(importlib.import_module(f"fastlstm.kernels.{module}"), factory)(*kernel.constants)
    try:
        return template(function, kernel.symbol)
    except numba.core.errors.NumbaError as error:
        raise FastLSTMError(f"Numba could not compile the kernel {kernel.name}{kernel.constants}: {error}") from error


def load(kernel: Kernel, target: Target) -> int:
    """Return the address of a kernel, loading it if this process does not have it yet.

    Raises
    ------
    FastLSTMError
        If Numba cannot compile it, or is needed and not installed; or if the system runs no code from memory.
    """
    if listings:
        listings[-1].add(kernel)
        stands_in = _not_run if kernel.name in ("entry.call", "gather.call") else _nothing
        return ctypes.cast(stands_in, ctypes.c_void_p).value or 0
    key = (kernel, target.code)
    with undisturbed:
        found = known.get(key)
        if found is None:
            found = known[key] = _load(kernel, target)
    return found


def ahead(kernels: Iterable[Kernel], target: Target) -> list[Kernel]:
    """Let idle cores prepare kernels that will be needed soon. Returns at once, with those that are not ready."""
    missing = [] if listings else _missing(kernels, target)
    if missing:
        helpers.ask(missing, target, _keep)
    return missing


def prepare(kernels: Iterable[Kernel], target: Target) -> None:
    """Load kernels; those that have to be compiled are compiled in parallel by this core and idle ones.

    Raises as `load` does.
    """
    missing = [] if listings else _missing(kernels, target)
    if not missing:
        return
    with _progress.of(missing):
        if len(missing) > 1:
            helpers.ask(missing[1:], target, _keep)
        for kernel in missing:
            if not helpers.begun(kernel, target):
                load(kernel, target)
        for kernel in missing:
            load(kernel, target)


def _missing(kernels: Iterable[Kernel], target: Target) -> list[Kernel]:
    """Return the kernels that have to be compiled, those that take longest first."""
    unknown = [kernel for kernel in dict.fromkeys(kernels) if (kernel, target.code) not in known]
    if not unknown:
        return []
    with undisturbed:
        found = _opened(target)
    packed = {} if found is None else found[0].header["kernels"]
    places = [(kernel, stored(kernel, target)) for kernel in unknown if kernel.key not in packed]
    missing = [kernel for kernel, path in places if path is None or not path.exists()]
    return sorted(missing, key=_rank, reverse=True)


def _rank(kernel: Kernel) -> int:
    module = kernel.name.split(".")[0]
    if module == "entry":
        return -2
    return SLOW.index(module) if module in SLOW else -1


@contextmanager
def listing() -> Iterator[set[Kernel]]:
    """Record which kernels are asked for and compile none: models that run meanwhile compute nothing.

    It is for processes that do nothing else, because models and streams keep the addresses they were given. With
    `fastlstm.target.machine.supposing` it tells what a model needs on another machine.
    """
    listings.append(set())
    try:
        yield listings[-1]
    finally:
        listings.pop()


def loaded() -> list[Kernel]:
    """Return the kernels this process has loaded."""
    return sorted({kernel for kernel, _ in known}, key=repr)


def packed(target: Target) -> int:
    """Return how many kernels for `target` come with the package."""
    with undisturbed:
        found = _opened(target)
    return 0 if found is None else len(found[0].header["kernels"])


def stored(kernel: Kernel, target: Target) -> Path | None:
    """Return the path of a kernel in the cache, None if there is no cache."""
    return cache.place_of(target, f"{kernel.name}-{kernel.key}")


def kept_image(kernel: Kernel, target: Target) -> Image | None:
    """Return a kernel from the cache, None if there is none that can be run."""
    path = stored(kernel, target)
    return None if path is None else _cached(kernel, target, path)


def found_image(kernel: Kernel, target: Target) -> Image | None:
    """Return a kernel's image from the pack or the cache, None if it is in neither."""
    with undisturbed:
        pack = _opened(target)
    packed = None if pack is None else pack[0].find(kernel.key)
    path = stored(kernel, target)
    return packed[1] if packed is not None else None if path is None else _cached(kernel, target, path)


def keep_image(kernel: Kernel, target: Target, image: Image) -> None:
    """Write a kernel into the cache.

    Raises
    ------
    OSError
        If that cannot be done.
    """
    path = stored(kernel, target)
    if path is None:
        raise OSError("this user has no home folder")
    cache.keep(path, pack_bytes(target, cache.sources(), {kernel.key: (kernel.name, image)}, made_with()))


def made_with() -> dict[str, str]:
    """Return the versions of the packages that compile kernels."""
    from importlib.metadata import version  # imports an e-mail parser, which loading code need not wait for

    return {package: version(package) for package in ("numba", "llvmlite")}


def _load(kernel: Kernel, target: Target) -> int:
    found = _prebuilt(kernel, target)
    if found:
        return found
    path = stored(kernel, target)
    image = helpers.ready(kernel, target) or (None if path is None else _cached(kernel, target, path))
    if image is None:
        with _progress.at(kernel):
            image = helpers.take(kernel, target) or _compiled(kernel, target)
    try:
        return loader.place(image.code) + image.entry
    except OSError as error:
        raise FastLSTMError(f"The system runs no code that was loaded at run time: {error}.") from error


def _prebuilt(kernel: Kernel, target: Target) -> int:
    """Return the address of a kernel in the pack for `target`, 0 if there is none."""
    found = _opened(target)
    if found is None:
        return 0
    pack, start = found
    try:
        place = pack.find(kernel.key)
    except FileFormatError as error:
        warnings.warn(f"The pack for {target.name} is not used: {error}", RuntimeWarning, stacklevel=2)
        _packs[target.code] = None
        return 0
    return 0 if place is None else start + place[0] + place[1].entry


def _opened(target: Target) -> tuple[Pack, int] | None:
    """Return the pack for `target` and its address in memory."""
    if target.code not in _packs:
        _packs[target.code] = _pack(target)
    return _packs[target.code]


def _pack(target: Target) -> tuple[Pack, int] | None:
    """Open the pack that comes with the package for `target`; it is trusted like the modules beside it."""
    name = next((level.name for level in LEVELS.values() if level.code == target.code), "")
    path = PACKS / f"{name}.pack"
    if not name or not path.exists():
        return None
    try:
        start, content = loader.map_file(path)
        return read_pack(content, target, cache.sources()), start
    except (OSError, ValueError, FileFormatError) as error:
        warnings.warn(f"{path} is not used: {error}", RuntimeWarning, stacklevel=2)
        return None


def _cached(kernel: Kernel, target: Target, path: Path) -> Image | None:
    """Return a kernel from the cache, None if it is absent, damaged or not trusted."""
    try:
        reason = cache.mistrust(path)
        content = memoryview(path.read_bytes())
    except OSError:
        return None
    if reason:
        warnings.warn(f"Compiled code in the cache is not run: {reason}.", RuntimeWarning, stacklevel=2)
        return None
    try:
        found = read_pack(content, target, cache.sources()).find(kernel.key)
    except FileFormatError:
        return None  # it is compiled and stored again
    return None if found is None else found[1]


def _compiled(kernel: Kernel, target: Target) -> Image:
    image = kernel_image(kernel, target)
    _keep(kernel, target, image)
    return image


def _keep(kernel: Kernel, target: Target, image: Image) -> None:
    """Store an image. If that is impossible, every process has to compile it again, and a warning says so once."""
    try:
        keep_image(kernel, target, image)
    except OSError as error:
        _say_once(
            f"compiled kernels cannot be kept ({error}): every process will compile them anew. "
            "FASTLSTM_CACHE_DIR names a folder that can be written to."
        )


@lru_cache
def _say_once(text: str) -> None:
    say(text)

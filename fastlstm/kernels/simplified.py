"""Templates of kernels with everything inlined: one function each, which exported models specialise.

They are the same for every target and kept on disk beside compiled kernels, because making them takes Numba long.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastlstm.errors import DependencyError
from fastlstm.kernels import cache
from fastlstm.kernels.compiler import Kernel, made_with, template_of
from fastlstm.target import LEVELS

__all__ = ["simplified"]

ANY = LEVELS["x86-64-v3"]
"""Templates do not depend on the target; LLVM's sizes of types and the cache need one anyway."""

_NAME = re.compile(r'%(?:"[^"]*"|[-\w.$]+)|^(?:"[^"]*"|[-\w.$]+)(?=:)', re.M)
"""A value or the start of a block. After 63 inlined calls, LLVM gives a value the name of a type."""


@lru_cache(maxsize=256)
def simplified(kernel: Kernel) -> str:
    """Return a kernel as one function in LLVM assembly.

    It calls the primitives of its frame (`fastlstm.kernels.primitives`), most of them with numbers as arguments, and
    none of its own helpers.
    """
    place = _place(kernel)
    found = None if place is None else _kept(place)
    if found is None:
        found = _simplify(template_of(kernel), kernel.symbol)
        if place is not None:
            _keep(place, found)
    return found


def _place(kernel: Kernel) -> Path | None:
    """Return the path of a template in the cache, None if there is no cache."""
    versions = "-".join(f"{name}{version}" for name, version in sorted(made_with().items()))
    return cache.place_of(ANY, f"{kernel.name}-{kernel.key}-{versions}-template1")


def _kept(place: Path) -> str | None:
    """Return a template from the cache, None if it is absent, damaged or not trusted."""
    try:
        if cache.mistrust(place):
            return None
        return zlib.decompress(place.read_bytes()).decode()
    except (OSError, zlib.error, UnicodeDecodeError):
        return None  # it is made and stored again


def _keep(place: Path, text: str) -> None:
    try:
        cache.keep(place, zlib.compress(text.encode()))
    except OSError:
        return  # it will take as long the next time


def _simplify(text: str, symbol: str) -> str:
    try:
        import llvmlite.binding as llvm

        from fastlstm.kernels.emit import for_target, target_machine
    except ImportError as error:
        raise DependencyError(f"Exporting needs llvmlite, which cannot be imported ({error}).") from error
    machine = target_machine(ANY)
    module: Any = llvm.parse_assembly(for_target(text, ANY, machine))
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(2))
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.add_aggressive_dce_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, builder)
    plain = re.sub(r"^(target .*|source_filename .*|; .*)\n", "", str(module), flags=re.M)  # what depends on the target
    return _NAME.sub(lambda found: found.group().replace(".i64", ".n64").replace(".i32", ".n32"), plain)

"""What this machine is: the level of its processor, its caches and cores.

Only here is the machine asked. What is found is a `fastlstm.target.Target`, which everything else is given.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from fastlstm.errors import InputError
from fastlstm.target import LEVELS, Target
from fastlstm.target.quota import processor_quota

__all__ = ["cores", "detect", "lacks", "level_of", "processor_name", "supposing"]

NEEDS = {
    "x86-64-v2": {"ssse3", "sse4_1", "sse4_2", "popcnt"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
    "x86-64-v3-vnni": {"avx_vnni"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v4-vnni": {"avx512_vnni"},
    "aarch64": {"asimd"},
    "aarch64-dotprod": {"asimddp"},
}
"""What each level needs beyond the one it builds on, by the names of ``/proc/cpuinfo``."""

BUILDS_ON = {
    "x86-64-v3": "x86-64-v2",
    "x86-64-v3-vnni": "x86-64-v3",
    "x86-64-v4": "x86-64-v3",
    "x86-64-v4-vnni": "x86-64-v4",
    "aarch64-dotprod": "aarch64",
}

FLAGS = {"sse4.1": "sse4_1", "sse4.2": "sse4_2", "bmi": "bmi1", "avxvnni": "avx_vnni", "avx512vnni": "avx512_vnni",
         "neon": "asimd", "dotprod": "asimddp"}  # fmt: skip
"""Names of ``/proc/cpuinfo`` where LLVM has others."""

HWCAP = 16  # AT_HWCAP of Linux's <elf.h>
ARM_CAPABILITIES = {"fp": 0, "asimd": 1, "asimddp": 20}
"""Bits of AArch64's HWCAP."""


def cores() -> int:
    """Return the number of processors this process may use; of a container, those that its quota keeps busy."""
    try:
        visible = len(os.sched_getaffinity(0))
    except AttributeError:
        visible = os.cpu_count() or 1
    quota = processor_quota()
    return visible if quota is None else max(1, min(visible, int(quota)))


def processor_name() -> str:
    """Return what the processor calls itself, or the system it, where either says so; "" if none does."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            named = (line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
            return next(named, "") or platform.processor()
    except OSError:
        return platform.processor()


def detect() -> Target:
    """Return the target of this machine, read once a process, or the one that is supposed (see `supposing`).

    The environment variable ``FASTLSTM_TARGET`` names another level that this machine can run, for example
    ``x86-64-v3`` on a processor with AVX-512. ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` narrow the target as they
    narrow Numba's code.

    Raises
    ------
    InputError
        If ``FASTLSTM_TARGET`` names no level, or one that this processor does not have.
    """
    return _supposed[-1] if _supposed else _detected()


@contextmanager
def supposing(target: Target) -> Iterator[None]:
    """Let the whole process plan for another machine: see `fastlstm.kernels.compiler.listing`."""
    _supposed.append(target)
    try:
        yield
    finally:
        _supposed.pop()


_supposed: list[Target] = []


@cache
def _detected() -> Target:
    flags = _flags()
    wanted, cpu = os.environ.get("FASTLSTM_TARGET"), os.environ.get("NUMBA_CPU_NAME")
    if wanted:
        found = _wanted(wanted, flags)
    elif cpu and cpu != "host":
        found = _narrowed(cpu, os.environ.get("NUMBA_CPU_FEATURES", ""))
    else:
        found = level_of(flags)
    sizes = [_cache_bytes(level) for level in (1, 2, 3)]
    return replace(
        found,
        triple=_triple(found),
        l1_bytes=sizes[0] or found.l1_bytes,
        l2_bytes=sizes[1] or found.l2_bytes,
        l3_bytes=sizes[2] or found.l3_bytes,
    )


def level_of(flags: frozenset[str]) -> Target:
    """Return the most demanding level for a processor with these flags of ``/proc/cpuinfo``.

    Raises
    ------
    InputError
        If it has none of them: no processor of the last 15 years.
    """
    found = [level for name, level in LEVELS.items() if _missing(name, flags) == set()]
    if not found:
        raise InputError(
            "This processor has neither SSE4.2 (x86-64-v2) nor Advanced SIMD (AArch64); fastlstm needs one of the two."
        )
    return max(found, key=lambda level: (level.lanes, level.byte_products in ("signed", "unsigned")))


def lacks(level: str) -> set[str]:
    """Return what this machine's processor lacks of a level, by the names of ``/proc/cpuinfo``."""
    return _missing(level, _flags())


def _missing(name: str, flags: frozenset[str]) -> set[str]:
    needed: set[str] = set()
    level: str | None = name
    while level is not None:
        needed |= NEEDS[level]
        level = BUILDS_ON.get(level)
    return needed - flags


def _wanted(name: str, flags: frozenset[str]) -> Target:
    if name not in LEVELS:
        raise InputError(f"FASTLSTM_TARGET is '{name}'; expected one of {', '.join(LEVELS)}.")
    missing = _missing(name, flags)
    if missing:
        raise InputError(
            f"FASTLSTM_TARGET is '{name}', but this processor lacks {', '.join(sorted(missing))}; unset it, or name "
            f"a level that it has, such as {level_of(flags).name}."
        )
    return LEVELS[name]


def _narrowed(cpu: str, text: str) -> Target:
    """Return the target for LLVM's name of a processor and a list of its features."""
    parts = tuple(sorted(part for part in text.split(",") if part))
    has = {part[1:] for part in parts if part.startswith("+")}
    if platform.machine().lower() in ("arm64", "aarch64"):
        level = LEVELS["aarch64-dotprod" if "dotprod" in has else "aarch64"]
    else:
        wide, half = {"avx512f", "avx512vl"} <= has, "avx" in has
        vnni = "avx512vnni" in has if wide else "avxvnni" in has
        level = LEVELS["x86-64-v4" if wide else "x86-64-v3" if half else "x86-64-v2"]
        pairs = ("avx512bw" if wide else "avx2") in has or not half
        products = "unsigned" if vnni else "magnitudes" if "avx2" in has and not wide else ""
        level = replace(level, fma="fma" in has, pairs=pairs, byte_products=products)
    return replace(level, name=cpu, cpu=cpu, features=parts)


def _flags() -> frozenset[str]:
    """Return the processor's features by the names of ``/proc/cpuinfo``."""
    if platform.system() == "Linux" and platform.machine().lower() == "aarch64":
        import ctypes

        system = ctypes.CDLL(None)
        system.getauxval.argtypes, system.getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
        return _arm_flags(system.getauxval(HWCAP))
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.split())
    except OSError:
        pass
    import llvmlite.binding as llvm  # other systems: it asks the processor itself

    features = {name for name, on in llvm.get_host_cpu_features().items() if on}
    return frozenset(FLAGS.get(name, name) for name in features)


def _arm_flags(capabilities: int) -> frozenset[str]:
    """Return what Linux tells every AArch64 process of its processor, by the names of ``/proc/cpuinfo``.

    That file itself may be another processor's: emulators of single programs show the host's.
    """
    return frozenset(name for name, bit in ARM_CAPABILITIES.items() if capabilities >> bit & 1)


def _triple(target: Target) -> str:
    """Return the triple of this process; only Linux is known without asking LLVM."""
    if platform.system() == "Linux":
        return target.triple
    import llvmlite.binding as llvm

    return str(llvm.get_process_triple())


def _cache_bytes(level: int) -> int:
    """Return the size of core 0's data cache at `level`, 0 where the system does not say (Linux only)."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "level").read_text().strip() != str(level):
                continue
            if (index / "type").read_text().strip() == "Instruction":
                continue
            size = (index / "size").read_text().strip()
        except OSError:
            continue
        scale = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
        return int(size.rstrip("KM")) * scale
    return 0

"""What this machine can do: instruction set, vector width, caches and cores.

The code generator's target is read the way Numba reads it, so ``NUMBA_CPU_NAME`` and
``NUMBA_CPU_FEATURES`` narrow the kernels as they narrow Numba's code.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastlstm.forking import undisturbed

__all__ = ["Machine", "cores", "detect"]


@dataclass(frozen=True)
class Machine:
    """The target of code generation and planning.

    Attributes
    ----------
    cpu : str
        LLVM's name of the processor.
    features : frozenset of str
        LLVM's names of the instruction-set features in use.
    lanes : int
        float32 values in one vector register: 16, 8 or 4.
    registers : int
        Vector registers: 32 or 16.
    fma : bool
        Whether multiply-add is one instruction with one rounding.
    l1_bytes, l2_bytes, l3_bytes : int
        Data cache sizes; L1 and L2 of one core. A guess where the system does not say.
    cores : int
        Processors that this process may use.
    """

    cpu: str
    features: frozenset[str]
    lanes: int
    registers: int
    fma: bool
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    cores: int

    @property
    def max_sums(self) -> int:
        """Accumulators of a tile: what is left of the registers beside the operands."""
        return 24 if self.registers >= 32 else 12

    def together(self, eight: bool) -> int:
        """Return how many neighbouring integers one instruction multiplies and adds, for each of `lanes` sums.

        Parameters
        ----------
        eight : bool
            Whether both factors have 8 bits; else 16.
        """
        if eight and self.byte_products:
            return 4
        return 2 if self.pairwise else 1

    @property
    def byte_products(self) -> bool:
        """Whether an instruction adds four products of 8 bits to each of `lanes` sums."""
        if self.arm:
            return "dotprod" in self.features
        return "avx512vnni" in self.features if self.lanes == 16 else self.lanes == 8 and "avxvnni" in self.features

    @property
    def unsigned_bytes(self) -> bool:
        """Whether that instruction takes one factor without a sign."""
        return not self.arm

    @property
    def pairwise(self) -> bool:
        """Whether an instruction multiplies pairs of 16 bits and adds each pair, in vectors of `lanes` sums."""
        if self.arm:
            return False
        return self.lanes == 4 or ("avx512bw" if self.lanes == 16 else "avx2") in self.features

    @property
    def arm(self) -> bool:
        """Whether this is a 64-bit ARM processor."""
        return platform.machine().lower() in ("arm64", "aarch64")

    @property
    def isa(self) -> str:
        """A short name of the vector instruction set."""
        if self.lanes == 16:
            return "AVX-512"
        if self.lanes == 8:
            return "AVX2" if self.fma else "AVX"
        return "NEON" if self.arm else "SSE"


def cores() -> int:
    """Return the number of processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


@cache
def detect() -> Machine:
    """Return the machine that kernels are compiled for (read once a process)."""
    with undisturbed:
        import llvmlite.binding as llvm

    cpu = os.environ.get("NUMBA_CPU_NAME") or ""
    if cpu and cpu != "host":
        text = os.environ.get("NUMBA_CPU_FEATURES", "")
        features = frozenset(f[1:] for f in text.split(",") if f.startswith("+"))
    else:
        cpu = llvm.get_host_cpu_name()
        features = frozenset(name for name, on in llvm.get_host_cpu_features().items() if on)
        narrowed = os.environ.get("NUMBA_CPU_FEATURES")
        if narrowed:
            features = frozenset(f[1:] for f in narrowed.split(",") if f.startswith("+"))
    arm = llvm.get_process_triple().split("-")[0] in ("aarch64", "arm64")
    wide = "avx512f" in features and "avx512vl" in features
    lanes = 16 if wide else 8 if "avx" in features else 4
    return Machine(
        cpu=cpu,
        features=features,
        lanes=lanes,
        registers=32 if wide or arm else 16,
        fma=arm or "fma" in features,
        l1_bytes=_cache_bytes(1) or 32 << 10,
        l2_bytes=_cache_bytes(2) or 512 << 10,
        l3_bytes=_cache_bytes(3) or 8 << 20,
        cores=cores(),
    )


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

"""Targets: what machine code is made for, as values.

Nothing that makes kernels or plans asks the machine it runs on: it is given a `Target`. `machine.detect` makes the one
of this machine, the rows of `LEVELS` are others; any number of them live in one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["FLOAT32", "LEVELS", "TARGETS", "Target", "WeightFormat"]


class WeightFormat(NamedTuple):
    """How a kernel reads weights: float32, or integers with a float32 scale for each row.

    Attributes
    ----------
    bits : int
        Of a weight: 32 (float32), 16 or 8.
    pairs : int
        Values of k that one instruction multiplies and adds where the other factor has 16 bits: 8, 2 or 1.
    fours : int
        The same where both factors have 8 bits: 16, 4, 2 or 1.
    unsigned : bool
        Whether the instruction for four takes one factor without a sign.
    magnitudes : bool
        Whether four are multiplied in steps, of which the first takes one factor's magnitudes.
    """

    bits: int = 32
    pairs: int = 1
    fours: int = 1
    unsigned: bool = False
    magnitudes: bool = False

    def together(self, recurrent: bool) -> int:
        """Return how many values of k an instruction multiplies; `recurrent` weights meet values of their own width."""
        return self.fours if recurrent and self.bits == 8 else self.pairs


FLOAT32 = WeightFormat()


@dataclass(frozen=True)
class Target:
    """A processor, as code generation and planning see it. Equal targets compare equal.

    Attributes
    ----------
    name : str
        What people call it, such as "x86-64-v3".
    triple : str
        LLVM's name of architecture and system; it decides the data layout.
    cpu : str
        LLVM's name of the processor.
    features : tuple of str
        LLVM's names of instruction-set features beyond those of `cpu`, each with its sign.
    lanes : int
        float32 values in one vector register.
    registers : int
        Vector registers.
    fma : bool
        Whether multiply-add is one instruction with one rounding.
    max_sums : int
        Accumulators of a tile: what is left of the registers beside the operands.
    pairs : bool
        Whether an instruction multiplies pairs of 16-bit integers and adds each pair, for `lanes` sums.
    byte_products : str
        Whether an instruction adds four products of bytes to each of `lanes` sums: "signed", "unsigned" (one factor
        without a sign), "magnitudes" (some instructions do, one of which takes magnitudes) or "" (none does).
    dot_bytes : int
        Bytes of the vectors whose products one instruction adds to a single sum; 0 if none does.
    l1_bytes, l2_bytes, l3_bytes : int
        Data cache sizes; L1 and L2 of one core.
    abi : str
        LLVM's name of the calling convention where the triple does not decide it.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    lanes: int = 4
    registers: int = 16
    fma: bool = True
    max_sums: int = 12
    pairs: bool = False
    byte_products: str = ""
    dot_bytes: int = 0
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    l3_bytes: int = 8 << 20
    abi: str = ""

    @property
    def architecture(self) -> str:
        """The first part of the triple: "x86_64", "aarch64" and so on."""
        return self.triple.split("-")[0]

    @property
    def code(self) -> tuple[object, ...]:
        """What machine code depends on: all but names for people and the sizes of caches."""
        return (self.triple, self.cpu, self.features, self.fma, self.abi)

    @property
    def slack(self) -> int:
        """Floats behind a buffer's end that loads of whole vectors may touch."""
        return 4 * max(self.lanes, 4)

    @property
    def cut_bytes(self) -> int:
        """Panels of more bytes are cut into slices, where several rows pass over them."""
        return min(self.l2_bytes // 8, 4 * self.l1_bytes)

    @property
    def slice_bytes(self) -> int:
        """Bytes of a panel's slice: it stays in the L1 cache."""
        return self.l1_bytes // 2

    @property
    def isa(self) -> str:
        """A short name of the vector instruction set, for people."""
        if self.architecture == "x86_64":
            return {16: "AVX-512", 8: "AVX2" if self.fma else "AVX"}.get(self.lanes, "SSE")
        return "NEON" if self.architecture in ("aarch64", "arm64") else self.name

    def weights(self, bits: int) -> WeightFormat:
        """Return how kernels for this target read weights of so many bits."""
        if bits == 32:
            return FLOAT32
        if self.dot_bytes:
            return WeightFormat(bits, self.dot_bytes // 2, self.dot_bytes if bits == 8 else self.dot_bytes // 2)
        pairs = 2 if self.pairs else 1
        if bits == 16 or not self.byte_products:
            return WeightFormat(bits, pairs, pairs)
        return WeightFormat(bits, pairs, 4, self.byte_products == "unsigned", self.byte_products == "magnitudes")


def _levels() -> dict[str, Target]:
    linux = "x86_64-unknown-linux-gnu"
    v2 = Target("x86-64-v2", linux, "x86-64-v2", lanes=4, registers=16, fma=False, max_sums=12, pairs=True)
    v3 = replace(v2, name="x86-64-v3", cpu="x86-64-v3", lanes=8, fma=True, byte_products="magnitudes")
    v4 = replace(v3, name="x86-64-v4", cpu="x86-64-v4", lanes=16, registers=32, max_sums=24, byte_products="")
    arm = Target("aarch64", "aarch64-unknown-linux-gnu", "generic", lanes=4, registers=32, fma=True, max_sums=24)
    # Without it, LLVM replaces some of VNNI's instructions for pairs by a multiplication and an addition: that shortens
    # a single chain, but in kernels 16 run side by side. A step of 128 units, int16, took 11 % more time.
    paired = "+fast-dpwssd"
    rows = (
        v2,
        v3,
        replace(v3, name="x86-64-v3-vnni", features=("+avxvnni", paired), byte_products="unsigned"),
        v4,
        replace(v4, name="x86-64-v4-vnni", features=("+avx512vnni", paired), byte_products="unsigned"),
        arm,
        replace(arm, name="aarch64-dotprod", features=("+dotprod",), byte_products="signed"),
    )
    return {row.name: row for row in rows}


LEVELS: Mapping[str, Target] = MappingProxyType(_levels())
"""Kinds of processors that the engine runs on, each kind's least demanding one before its others."""


def _others() -> dict[str, Target]:
    windows = replace(LEVELS["x86-64-v3"], name="x86-64-v3-windows", triple="x86_64-w64-windows-gnu")
    scalar = Target("", "", "", lanes=1, registers=32, max_sums=24, l1_bytes=1 << 20)
    risc = "+m,+a,+f,+d,+c"
    arm7 = "armv7-unknown-linux-gnueabihf"
    small = "thumb{}-unknown-none-eabi{}"
    # A Cortex-M has 32 scalar registers for floats. Tiles of 4 sums made a third of the code of tiles of 24.
    m4 = replace(
        scalar,
        name="cortex-m4",
        triple=small.format("v7em", "hf"),
        cpu="cortex-m4",
        max_sums=4,
        pairs=True,
        byte_products="signed",
    )
    m0 = replace(
        scalar, name="cortex-m0plus", triple=small.format("v6m", ""), cpu="cortex-m0plus", fma=False, max_sums=4
    )
    wasm = replace(scalar, name="wasm32", triple="wasm32-unknown-unknown-wasm", cpu="generic", fma=False)
    rows = (
        windows,
        replace(scalar, name="riscv64", triple="riscv64-unknown-linux-gnu", cpu="generic-rv64",
                features=tuple(risc.split(",")), abi="lp64d"),
        replace(scalar, name="riscv64-v", triple="riscv64-unknown-linux-gnu", cpu="generic-rv64", lanes=4,
                features=(*risc.split(","), "+v", "+zvl128b"), abi="lp64d"),
        replace(scalar, name="riscv32", triple="riscv32-unknown-none-elf", cpu="generic-rv32", max_sums=4,
                features=("+m", "+a", "+f", "+c"), abi="ilp32f"),
        Target("armv7-vfpv4", arm7, "cortex-a7", ("+neon", "+vfp4"), fma=True),
        Target("armv7-vfpv3", arm7, "cortex-a9", ("+neon", "+vfp3"), fma=False),
        m4,
        replace(m4, name="cortex-m7", cpu="cortex-m7"),
        replace(m4, name="cortex-m33", triple=small.format("v8m.main", "hf"), cpu="cortex-m33"),
        replace(m4, name="cortex-m55", triple=small.format("v8.1m.main", "hf"), cpu="cortex-m55", lanes=4, registers=8,
                max_sums=6, dot_bytes=16),
        replace(m0, name="cortex-m3", triple=small.format("v7m", ""), cpu="cortex-m3"),
        m0,
        wasm,
        replace(wasm, name="wasm32-simd", features=("+simd128",), lanes=4, registers=16, max_sums=12),
    )  # fmt: skip
    return {row.name: row for row in rows}


TARGETS: Mapping[str, Target] = MappingProxyType({**LEVELS, **_others()})
"""Every kind of processor that kernels are made for by name."""

"""How to run a target's programs on this machine: with which compiler and, if needed, emulator."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fastlstm.target import LEVELS
from fastlstm.target.machine import lacks

__all__ = ["HOST_COMPILERS", "NODE", "ROUTES", "TESTED", "Board", "Found", "Route", "find", "first"]


@dataclass(frozen=True)
class Board:
    """A Cortex-M board that QEMU emulates, and where its memory lies.

    Attributes
    ----------
    machine : str
        QEMU's name of the board.
    vectors : int
        Address of the vector table after a reset.
    rom, rom_size, ram, ram_size : int
        The board's large memories, in bytes; all memory is equally fast in the emulator.
    """

    machine: str
    vectors: int
    rom: int
    rom_size: int
    ram: int
    ram_size: int


@dataclass(frozen=True)
class Route:
    """One way to run programs of a target.

    Attributes
    ----------
    compilers : tuple of str
        The first that is found compiles and links.
    flags : tuple of str
        For the compiler.
    emulators : tuple of str
        The first that is found runs the program; empty if the machine itself does.
    options : tuple of str
        For the emulator.
    packages : str
        The Debian packages that contain both.
    level : str
        The level that this machine's processor needs if nothing emulates it.
    board : Board, optional
        For programs that run without an operating system.
    """

    compilers: tuple[str, ...]
    flags: tuple[str, ...] = ()
    emulators: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    packages: str = ""
    level: str = ""
    board: Board | None = None


@dataclass(frozen=True)
class Found:
    """A route whose tools are installed.

    Attributes
    ----------
    route : Route
    compiler, emulator : str
        Paths; no emulator if the machine itself runs the program.
    """

    route: Route
    compiler: str
    emulator: str = ""

    @property
    def symbols(self) -> str:
        """The path of the compiler's `nm`, or ""."""
        name = self.compiler.rpartition("/")[2]
        prefix = name[: -len("gcc")] if name.endswith("-gcc") else ""
        return shutil.which(f"{prefix}nm") or ""

    def __str__(self) -> str:
        names = [path.rpartition("/")[2] for path in (self.compiler, self.emulator) if path]
        return " and ".join(names) + (f" -M {self.route.board.machine}" if self.route.board else "")


HOST_COMPILERS = ("cc", "gcc", "clang")
"""Compilers for this machine."""

_NATIVE = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_386 = Board("mps2-an386", 0, 0x21000000, 16 << 20, 0x20000000, 4 << 20)
_385 = replace(_386, machine="mps2-an385")
_500 = Board("mps2-an500", 0, 0x60000000, 16 << 20, 0x20000000, 4 << 20)
_505 = Board("mps2-an505", 0x10000000, 0x80000000, 16 << 20, 0x38000000, 2 << 20)
_547 = Board("mps3-an547", 0, 0x60000000, 256 << 20, 0x21000000, 4 << 20)


def _x86_64(level: str) -> tuple[Route, ...]:
    """Return how a level's code runs: on this processor or, except for AVX-512 and VNNI, in QEMU."""
    native = Route(HOST_COMPILERS, packages="gcc", level=level)
    emulated = Route(("x86_64-linux-gnu-gcc",), ("-static",), ("qemu-x86_64", "qemu-x86_64-static"), ("-cpu", "max"),
                     "gcc-x86-64-linux-gnu qemu-user")  # fmt: skip
    return (native,) if level.startswith("x86-64-v4") or level.endswith("vnni") else (native, emulated)


def _aarch64(level: str, cpu: str) -> tuple[Route, ...]:
    emulated = Route(("aarch64-linux-gnu-gcc",), ("-static",), ("qemu-aarch64", "qemu-aarch64-static"), ("-cpu", cpu),
                     "gcc-aarch64-linux-gnu qemu-user")  # fmt: skip
    return Route(HOST_COMPILERS, packages="gcc", level=level), emulated


def _armv7(cpu: str) -> tuple[Route, ...]:
    return (Route(("arm-linux-gnueabihf-gcc",), ("-static",), ("qemu-arm", "qemu-arm-static"), ("-cpu", cpu),
                  "gcc-arm-linux-gnueabihf qemu-user"),)  # fmt: skip


def _riscv64(cpu: str) -> tuple[Route, ...]:
    return (Route(("riscv64-linux-gnu-gcc",), ("-static",), ("qemu-riscv64", "qemu-riscv64-static"), ("-cpu", cpu),
                  "gcc-riscv64-linux-gnu qemu-user"),)  # fmt: skip


def _cortex_m(board: Board, *flags: str) -> tuple[Route, ...]:
    return (Route(("arm-none-eabi-gcc",), ("-mthumb", *flags), ("qemu-system-arm",), packages="gcc-arm-none-eabi "
                  "libnewlib-arm-none-eabi qemu-system-arm", board=board),)  # fmt: skip


ROUTES: Mapping[str, tuple[Route, ...]] = MappingProxyType(
    {
        **{level: _x86_64(level) for level in LEVELS if level.startswith("x86-64")},
        "x86-64-v3-windows": (
            Route(("x86_64-w64-mingw32-gcc",), ("-static",), ("wine64", "wine"), packages="gcc-mingw-w64-x86-64 wine64",
                  level="x86-64-v3"),
        ),
        "aarch64": _aarch64("aarch64", "cortex-a53"),
        "aarch64-dotprod": _aarch64("aarch64-dotprod", "neoverse-n1"),
        "armv7-vfpv4": _armv7("cortex-a7"),
        "armv7-vfpv3": _armv7("cortex-a9"),
        "riscv64": _riscv64("rv64"),
        "riscv64-v": _riscv64("rv64,v=true,vlen=128,vext_spec=v1.0"),
        "cortex-m0plus": _cortex_m(_385, "-mcpu=cortex-m0plus"),
        "cortex-m3": _cortex_m(_385, "-mcpu=cortex-m3"),
        "cortex-m4": _cortex_m(_386, "-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
        "cortex-m7": _cortex_m(_500, "-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"),
        "cortex-m33": _cortex_m(_505, "-mcpu=cortex-m33", "-mfloat-abi=hard"),
        "cortex-m55": _cortex_m(_547, "-mcpu=cortex-m55", "-mfloat-abi=hard"),
    }
)  # fmt: skip
"""How each target's programs are run, best way first. No M0+ board has enough memory: an M3 runs its code."""


NODE = ("node", "nodejs")
"""What runs WebAssembly."""

TESTED: Mapping[str, str] = MappingProxyType(
    {
        "x86-64-v2": "natively",
        "x86-64-v3": "natively",
        "x86-64-v3-vnni": "natively, where the processor has AVX-VNNI",
        "x86-64-v4": "natively, where the processor has AVX-512",
        "x86-64-v4-vnni": "natively, where the processor has AVX-512 and VNNI",
        **{name: "qemu-user" for name in ROUTES if name.startswith(("aarch64", "armv7", "riscv64"))},
        **{name: "qemu-system-arm" for name in ROUTES if name.startswith("cortex")},
        "x86-64-v3-windows": "wine",
        "wasm32": "node and Chromium",
        "wasm32-simd": "node and Chromium",
    }
)
"""How `make test-targets` runs the code of each target; code for targets not listed is built and not run."""


def find(target: str) -> Found | str:
    """Return the first route to `target` whose tools are installed, or a sentence saying what is missing."""
    reasons = list(_missing(target))
    found = next((each for each in reasons if isinstance(each, Found)), None)
    return found or (str(reasons[0]) if reasons else f"nothing is known that runs programs for {target}")


def _missing(target: str) -> Iterator[Found | str]:
    """Yield for each route its tools, or why it cannot be used."""
    for route in ROUTES.get(target, ()):
        lacking = _lacking(route)
        compiler, emulator = first(route.compilers), first(route.emulators)
        if lacking:
            yield f"this machine lacks {lacking}"
        elif not compiler or (route.emulators and not emulator):
            wanted = [
                " or ".join(n) for n, f in ((route.compilers, compiler), (route.emulators, emulator)) if n and not f
            ]
            yield f"{' and '.join(wanted)} not found (Debian: apt-get install {route.packages})"
        else:
            yield Found(route, compiler, emulator)


def _lacking(route: Route) -> str:
    """Return in words what this machine lacks for the route's level, or ""."""
    if not route.level:
        return ""
    if platform.system() != "Linux":
        return "Linux, for which the object is made"
    architecture = "x86_64" if route.level.startswith("x86") else "aarch64"
    if _NATIVE.get(platform.machine().lower()) != architecture:
        return f"the instructions of {architecture}"
    return ", ".join(sorted(lacks(route.level)))


def first(names: tuple[str, ...]) -> str:
    """Return the path of the first command that is found, or ""."""
    return next(filter(None, map(shutil.which, names)), "")

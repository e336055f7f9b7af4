"""Building C programs for a target and running them along a route."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastlstm.export.routes import Found

__all__ = ["BuildError", "Outcome", "build", "call", "run"]

CORTEX_M = Path(__file__).parent / "cortex_m"
SECONDS = 300  # after which a program is stopped; test programs take one or two


class BuildError(Exception):
    """Compiling or linking failed; the message quotes the tool. Never leaves this package."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its exit status (None if it was stopped) and its output."""

    status: int | None
    output: str

    @property
    def failure(self) -> str:
        """What to report if the program failed, else ""."""
        if self.status is None:
            return f"was stopped after {SECONDS} seconds"
        last = self.output.strip().splitlines()[-1:]
        return "" if self.status == 0 else ": ".join([f"ended with the status {self.status}", *last])


def build(
    found: Found, sources: Sequence[Path], program: Path, *, flags: Sequence[str] = (), libraries: Sequence[str] = ()
) -> None:
    """Compile and link C files and objects; `libraries` come in addition to the C library, as "m" does.

    Raises
    ------
    BuildError
        If compiling or linking fails.
    """
    board, bare = found.route.board, list[str]()
    if board is not None:
        places = {"VECTORS": board.vectors, "ROM": board.rom, "ROM_SIZE": board.rom_size,
                  "RAM": board.ram, "RAM_SIZE": board.ram_size}  # fmt: skip
        symbols = ",".join(f"--defsym={name}={value:#x}" for name, value in places.items())
        bare = [
            "-nostartfiles",
            str(CORTEX_M / "start.c"),
            "-T",
            str(CORTEX_M / "cortex_m.ld"),
            f"-Wl,-z,noexecstack,{symbols}",
        ]
    command = [found.compiler, "-O2", *found.route.flags, *flags, *map(str, sources), *bare]
    command += [*(f"-l{name}" for name in libraries), "-o", str(program)]
    outcome = call(command, cwd=program.parent)
    if outcome.status != 0:
        errors = [line for line in outcome.output.splitlines() if "error" in line.lower() or "overflowed" in line]
        raise BuildError((errors or [outcome.failure])[0].strip())


def run(found: Found, program: Path, *, plugin: str = "") -> Outcome:
    """Run a program; `plugin` is the value of QEMU's option of this name."""
    command, environment = [found.emulator, *found.route.options] if found.emulator else [], dict(os.environ)
    if plugin:
        command += ["-plugin", plugin]
    if found.route.board is not None:
        command += ["-M", found.route.board.machine, "-nographic", "-monitor", "none", "-serial", "none"]
        command += ["-semihosting-config", "enable=on,target=native", "-kernel"]
    if "wine" in found.emulator:
        environment = _for_wine(environment, program.parent)
    return call([*command, str(program)], cwd=program.parent, environment=environment)


def call(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run a command to completion; its error stream is part of the output."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, timeout=SECONDS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(None, "")
    return Outcome(done.returncode, done.stdout)


def _for_wine(environment: dict[str, str], scratch: Path) -> dict[str, str]:
    """Return the environment for wine, whose folder of 700 MB goes into `scratch` instead of the user's home."""
    environment.setdefault("WINEDEBUG", "-all")
    environment.setdefault("WINEDLLOVERRIDES", "mscoree=,mshtml=,winemenubuilder.exe=")
    if not (Path.home() / ".wine").exists():
        environment.setdefault("WINEPREFIX", str(scratch / "wine"))
    return environment

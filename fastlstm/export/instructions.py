"""Instructions per step, counted by a QEMU plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fastlstm.export.programs import BuildError, build, call, run
from fastlstm.export.routes import HOST_COMPILERS, Found, first

__all__ = ["Counter"]

PLUGIN = Path(__file__).parent / "count_instructions.c"
VERSIONS = range(1, 8)  # of QEMU's plugin interface: each emulator accepts a range of them, up to its own
STEPS = (4, 20)
"""Steps of two programs: the difference of their counts leaves out start-up and initial state."""


class Counter:
    """Counts instructions with plugins that it builds in `scratch`."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._plugins: dict[str, Path | None] = {}

    @cached_property
    def _compiler(self) -> str:
        return first(HOST_COMPILERS)

    def per_step(
        self,
        found: Found,
        folder: Path,
        manifest: Mapping[str, Any],
        sources: Sequence[Path],
        flags: Sequence[str],
        libraries: Sequence[str] = (),
    ) -> float | None:
        """Return the instructions of a step (or call) of the model, its caller's included; None if unknown."""
        if not self._compiler or "qemu" not in found.emulator:
            return None
        source, counts = self._scratch / "count.c", list[int]()
        source.write_text(calls(manifest), encoding="utf-8")
        for steps in STEPS:
            program = self._scratch / f"count{steps}"
            try:
                steps_of = [f"-DSTEPS={steps}", f"-I{folder}", *flags]
                build(found, [source, *sources], program, flags=steps_of, libraries=libraries)
            except BuildError:
                return None
            count = self._count(found, program)
            if count is None:
                return None
            counts.append(count)
        return (counts[1] - counts[0]) / (STEPS[1] - STEPS[0])

    def _count(self, found: Found, program: Path) -> int | None:
        """Return how many instructions a program executes, or None if the emulator cannot load the plugin."""
        if found.emulator in self._plugins:
            plugin = self._plugins[found.emulator]
            return self._try(found, program, plugin) if plugin else None
        for version in VERSIONS:
            plugin = self._built(version)
            count = self._try(found, program, plugin) if plugin else None
            if count is not None:
                self._plugins[found.emulator] = plugin
                return count
        self._plugins[found.emulator] = None
        return None

    def _built(self, version: int) -> Path | None:
        plugin = self._scratch / f"count_instructions_{version}.so"
        if not plugin.exists():
            command = [
                self._compiler,
                "-shared",
                "-fPIC",
                "-O2",
                f"-DVERSION={version}",
                str(PLUGIN),
                "-o",
                str(plugin),
            ]
            if call(command, cwd=self._scratch).status != 0:
                return None
        return plugin

    def _try(self, found: Found, program: Path, plugin: Path) -> int | None:
        written = self._scratch / "instructions"
        written.unlink(missing_ok=True)
        outcome = run(found, program, plugin=f"file={plugin},out={written}")
        return int(written.read_text()) if outcome.status == 0 and written.exists() else None


def calls(manifest: Mapping[str, Any]) -> str:
    """Return a program that makes STEPS steps (or calls) of the model and nothing else."""
    name, ports = manifest["name"], [*manifest["inputs"], *manifest["outputs"]]
    arrays = [f"static {port['type']} {port['parameter']}[{max(port['elements'], 1)}];" for port in ports]
    fill = [
        f"    for (long i = 0; i < {port['elements']}; i++) {port['parameter']}[i] = (float)(i % 7) / 4 - 0.75f;"
        for port in manifest["inputs"]
        if port["type"] == "float"
    ]
    parameters = ", ".join(["&state", *(["FASTLSTM_WEIGHTS"] if manifest["weights_apart"] else [])])
    arguments = ", ".join([parameters, *(port["parameter"] for port in ports)])
    function = f"{name}_step" if manifest["streams"] else f"{name}_call"
    return "\n".join(
        [f'#include "{name}.h"', f"static {name}_state state;", *arrays, "int main(void)", "{", *fill,
         f"    {name}_init({parameters});",
         f"    for (long i = 0; i < STEPS; i++) {function}({arguments});", "    return 0;", "}", ""]
    )  # fmt: skip

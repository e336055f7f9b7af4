"""Replaying an export: its test program is built for each of its targets and run, natively or in an emulator.

The test program holds golden samples of the Python engine. A target without a compiler or emulator is reported, and
counts neither as a success nor as a failure.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastlstm.errors import FileFormatError
from fastlstm.export.instructions import Counter
from fastlstm.export.manifest import FORMAT
from fastlstm.export.programs import BuildError, build, call, run
from fastlstm.export.routes import NODE, TESTED, Found, find, first

__all__ = ["TESTED", "Replay", "read_manifest", "replay_export"]


@dataclass(frozen=True)
class Replay:
    """The result for one target.

    Attributes
    ----------
    target : str
    how : str
        The tools that built and ran it, "" if it did not run.
    agrees : bool or None
        Whether the outputs match those of the Python engine, as closely as the target promises; None if it did not run.
    words : str
        What the test program printed, or why it did not run.
    undefined : tuple of str
        Undefined symbols of the object, as `nm` lists them.
    instructions : float or None
        Per step (or call), if an emulator counted them.
    """

    target: str
    how: str = ""
    agrees: bool | None = None
    words: str = ""
    undefined: tuple[str, ...] = ()
    instructions: float | None = None

    def as_data(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.agrees is None:
            return f"{self.target}: not run: {self.words}"
        more = [f"{self.instructions:,.0f} instructions a step"] if self.instructions else []
        more += [f"needs {', '.join(self.undefined)}"] if self.undefined else []
        return "; ".join([f"{self.target} ({self.how}): {self.words}", *more])


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an export, after comparing its files with their hashes.

    Raises
    ------
    FileFormatError
        If the folder holds no export, several, one of a newer version, or files that were changed.
    """
    found = [data for path in sorted(folder.glob("*.json")) if (data := _read(path)).get("format") == FORMAT]
    if len(found) != 1:
        raise FileFormatError(f"'{folder}' holds {len(found) or 'no'} manifests of an export; expected one NAME.json.")
    (manifest,) = found
    if manifest["version"] > VERSION:
        raise FileFormatError(f"'{folder}' was exported by a newer fastlstm (version {manifest['version']}): update.")
    for name, digest in manifest["files"].items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            what = "is not what was exported" if path.is_file() else "is missing"
            raise FileFormatError(f"'{path}' {what}: export the model again.")
    return manifest


VERSION = 1


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def replay_export(
    folder: Path, *, targets: Sequence[str] = (), report: Callable[[Replay], object] = lambda _: None
) -> list[Replay]:
    """Build and run the test program of an export for its targets.

    Parameters
    ----------
    folder : Path
    targets : sequence of str
        Which of the export's targets to run; all if empty.
    report : callable
        Called with each result as it comes in.

    Raises
    ------
    FileFormatError
        If the folder holds no export, or files that were changed.
    """
    folder = folder.absolute()
    manifest, results = read_manifest(folder), list[Replay]()
    with tempfile.TemporaryDirectory(prefix="fastlstm-", ignore_cleanup_errors=True) as scratch:
        bench = _Bench(folder, manifest, Path(scratch))
        for target in targets or manifest["targets"]:
            results.append(bench.replay(target))
            report(results[-1])
    return results


class _Bench:
    """What the targets of one export share: its folder, its manifest, and a folder to build in."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], scratch: Path) -> None:
        self._folder, self._manifest, self._scratch = folder, manifest, scratch
        self._name = str(manifest["name"])
        self._counter = Counter(scratch)

    def replay(self, target: str) -> Replay:
        """Return the result for one target."""
        if self._manifest["targets"][target]["format"] == "wasm":
            return self._in_node(target)
        found = find(target)
        if isinstance(found, str):
            return Replay(target, words=found)
        return self._built_and_run(target, found)

    def _built_and_run(self, target: str, found: Found) -> Replay:
        row, program = self._manifest["targets"][target], self._scratch / "program.exe"
        sources, flags = [self._folder / row["file"]], list[str]()
        if self._manifest["weights_apart"]:
            sources.append(self._weights(target))
            flags = ["-DFASTLSTM_WEIGHTS=fastlstm_weights", "-include", str(self._scratch / "weights.h")]
        test = self._folder / f"{self._name}_test.c"
        try:
            build(found, [test, *sources], program, flags=[f"-I{self._folder}", *flags])
        except BuildError as error:
            if "overflowed" in str(error):
                return Replay(target, words="the model is too large for the board that is emulated")
            return Replay(target, str(found), False, f"was not built: {error}")
        outcome, undefined = run(found, program), self._undefined(found, sources[0])
        words = outcome.failure or _last_line(outcome.output)
        strangers = [name for name in undefined if name not in row["undefined"]]
        if strangers:
            words = f"{words}; symbols that the manifest does not name: {', '.join(strangers)}"
        agrees = outcome.status == 0 and not strangers and _promise(row) in outcome.output
        count = self._counter.per_step(found, self._folder, self._manifest, sources, flags) if agrees else None
        return Replay(target, str(found), agrees, words, tuple(undefined), count)

    def _undefined(self, found: Found, file: Path) -> list[str]:
        """Return the undefined symbols of an object, none where there is no `nm`."""
        if not found.symbols:
            return []
        listed = call([found.symbols, "-u", str(file)], cwd=self._scratch).output
        return sorted(
            {words[-1] for line in listed.splitlines() if (words := line.split()) and words[0].upper() == "U"}
        )

    def _weights(self, target: str) -> Path:
        """Return an assembly file that includes the weights verbatim, aligned as the header requires.

        Its suffix is .s: a file .S is preprocessed, and would include the C header as well.
        """
        source, weights = self._scratch / "weights.s", self._folder / f"{self._name}-{target}.bin"
        (self._scratch / "weights.h").write_text("extern const unsigned char fastlstm_weights[];\n", encoding="utf-8")
        source.write_text(
            f"    .section .rodata\n    .balign {self._manifest['state_align']}\n    .global fastlstm_weights\n"
            f'fastlstm_weights:\n    .incbin "{weights}"\n',
            encoding="utf-8",
        )
        return source

    def _in_node(self, target: str) -> Replay:
        """Return the result for a WebAssembly module, which has a test of its own."""
        node, test = first(NODE), self._folder / f"{self._name}_test.mjs"
        if not test.exists():
            return Replay(target, words="the export holds no linked module")
        if not node:
            return Replay(target, words="node not found (Debian: apt-get install nodejs)")
        outcome = call([node, str(test), target], cwd=self._folder)
        agrees = outcome.status == 0 and _promise(self._manifest["targets"][target]) in outcome.output
        return Replay(target, "node", agrees, outcome.failure or _last_line(outcome.output))


def _last_line(output: str) -> str:
    """Return the test program's own line, which follows anything the emulator printed."""
    return "".join(output.strip().splitlines()[-1:])


def _promise(row: Mapping[str, Any]) -> str:
    """Return what the test program prints if the target keeps its promise."""
    return "same bits: ok" if row["bits"] == "same" else ": ok"

"""Run tests on every Python that is found, with the oldest and the newest NumPy and Numba: ``make test-matrix``.

Pythons are looked for on the path and where pyenv and uv keep theirs; those that are missing are named. Each cell of
the matrix is an environment of its own, whose Numba compiles all kernels that the tests need.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from chosen import QUICK, REQUIREMENTS, ROOT, TESTS, command

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.13t", "3.14t")
FIRST = {"3.13": {"numpy": "2.1.0"}, "3.14": {"numpy": "2.3.3", "numba": "0.63.0"}}
"""The first releases that have wheels for a Python, where those that `pyproject.toml` allows have none."""

PLACES = (Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a cell; return 1 if one fails."""
    parser = argparse.ArgumentParser("make test-matrix", description="Run tests on every Python that is found.")
    parser.add_argument("--wheel", type=Path, required=True, help="of fastlstm")
    parser.add_argument("--python", nargs="*", default=VERSIONS, metavar="VERSION", help="some of them")
    parser.add_argument("--whole", action="store_true", help="more tests: minutes for each cell")
    arguments = parser.parse_args(argv)
    found = interpreters()
    lines = []
    for version in arguments.python:
        if version not in found:
            lines.append(f"Python {version}: not found")
            continue
        for which, packages in (("oldest", oldest(version)), ("newest", dict.fromkeys(("numpy", "numba"), ""))):
            with tempfile.TemporaryDirectory() as scratch:
                line = cell(found[version], packages, arguments.wheel, Path(scratch), arguments.whole)
            lines.append(f"Python {version}, {which}: {line}")
            print(lines[-1], flush=True)
    print("\n".join(["", *lines]))
    return int(any("FAILED" in line for line in lines))


def interpreters() -> dict[str, Path]:
    """Return the Pythons that are found, by version; "t" is for those without a global lock."""
    candidates = [Path(path) for version in VERSIONS if (path := shutil.which(f"python{version}"))]
    candidates += [path for place in PLACES for path in sorted(place.glob("*/bin/python3"))]
    tell = "import sys; print('%d.%d' % sys.version_info[:2] + 't' * ('t' in sys.abiflags))"
    found: dict[str, Path] = {}
    for path in candidates:
        done = subprocess.run([path, "-c", tell], capture_output=True, text=True, check=False)
        if done.returncode == 0:  # pyenv has scripts for versions that are not there
            found.setdefault(done.stdout.strip(), path)
    return found


def oldest(version: str) -> Mapping[str, str]:
    """Return the oldest NumPy and Numba for a Python that `pyproject.toml` allows and that have wheels."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    allowed = {name: re.search(rf'"{name}>=([\d.]+)"', text) for name in ("numpy", "numba")}
    bounds = {name: match[1] for name, match in allowed.items() if match}
    return {**bounds, **FIRST.get(version.rstrip("t"), {})}


def cell(python: Path, packages: Mapping[str, str], wheel: Path, scratch: Path, whole: bool) -> str:
    """Return what came of the tests in an environment of their own."""
    subprocess.run([python, "-m", "venv", scratch / "venv"], check=True)
    inside = scratch / "venv" / "bin" / "python"
    wanted = [f"{name}~={version}.0" if version.count(".") == 1 else f"{name}=={version}" for name, version in
              packages.items() if version]  # fmt: skip
    install = [inside, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    done = subprocess.run([*install, str(wheel), *wanted, *REQUIREMENTS], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"FAILED to install: {done.stderr.strip().splitlines()[-1]}"
    versions = (
        "from importlib.metadata import version as v; print(*(f'{n} {v(n)}' for n in ('numpy', 'numba')), sep=', ')"
    )
    told = subprocess.run([inside, "-c", versions], capture_output=True, text=True, check=True).stdout.strip()
    environment = {**os.environ, "FASTLSTM_CACHE_DIR": str(scratch / "kernels")}
    tests = command(inside, TESTS if whole else QUICK, os.cpu_count() or 1)
    done = subprocess.run(tests, env=environment, cwd=scratch, check=False)
    return f"{told}: {'FAILED' if done.returncode else 'passed'}"


if __name__ == "__main__":
    sys.exit(main())

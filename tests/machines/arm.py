"""Run tests on AArch64 under QEMU, with and without the dot product: ``make test-arm``.

An AArch64 Python of Debian's packages runs NumPy, pytest and a wheel of fastlstm, without Numba. The kernels that it
asks for are compiled by this machine, and its cache keeps them. ``--quick`` runs the part that CI does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from chosen import QUICK, REQUIREMENTS, TESTS, command
from compiling import compiler
from emulated import PROCESSORS, TOOLS, install, interpreter, system

from fastlstm.target import LEVELS
from fastlstm.target.machine import cores


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tests; return 1 if one fails on one of the processors."""
    parser = argparse.ArgumentParser("make test-arm", description="Run tests on AArch64 under emulation.")
    parser.add_argument("--wheel", type=Path, required=True, help="of fastlstm")
    parser.add_argument("--folder", type=Path, required=True, help="where the AArch64 system is kept")
    parser.add_argument("--quick", action="store_true", help="the part that CI runs")
    parser.add_argument("words", nargs="*", help="tests in place of the usual ones, and what pytest takes")
    arguments = parser.parse_args(argv)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        parser.error(f"{', '.join(missing)} not found; on Debian: apt-get install qemu-user")
    root = system(arguments.folder.resolve())
    install(root, ["numpy", "safetensors", *REQUIREMENTS, str(arguments.wheel)])
    words = arguments.words or (QUICK if arguments.quick else TESTS)
    targets = [level for level in LEVELS.values() if level.architecture == "aarch64"]
    with tempfile.TemporaryDirectory() as scratch, compiler(Path(scratch) / "compiler", targets):
        started = {name: _started(root, processor, words, Path(scratch)) for name, processor in PROCESSORS.items()}
        for name, process in started.items():
            print(f"AArch64 {name}\n{process.communicate()[0]}", flush=True)
    failed = [name for name, process in started.items() if process.returncode]
    print(f"AArch64: {', '.join(failed)} FAILED" if failed else "AArch64: all passed")
    return int(bool(failed))


def _started(root: Path, processor: str, words: Sequence[str], scratch: Path) -> subprocess.Popen[str]:
    """Start tests on a processor; what they print comes through a pipe."""
    python = interpreter(root, processor)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FASTLSTM"))},
        "FASTLSTM_TEST_PYTHON": str(python),
        "FASTLSTM_TEST_COMPILER": str(scratch / "compiler"),
        "FASTLSTM_CACHE_DIR": str(root.parent / "kernels"),
        "FASTLSTM_HELPERS": "0",  # they would need Numba
    }
    tests = command(python, words, cores() // len(PROCESSORS))
    return subprocess.Popen(
        tests, env=environment, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


if __name__ == "__main__":
    sys.exit(main())

"""An AArch64 Python that runs here under QEMU: Debian's packages and the index's wheels, unpacked into a folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PROCESSORS", "TOOLS", "install", "interpreter", "system"]

TOOLS = ("qemu-aarch64", "apt-get", "dpkg-deb")
PROCESSORS = {"with dot product": "neoverse-n1", "without": "cortex-a72"}
"""QEMU's names of two processors; what the second one lacks ends the process."""

ARCHITECTURE = "arm64"
PACKAGES = ("python3", "libstdc++6")  # NumPy's wheel wants the second
NOT_NEEDED = ("dpkg", "tar", "debconf", "perl-base")  # for installing, which here is unpacking
GLIBC = (17, 24, 26, 27, 28, 31, 34)  # versions 2.x that wheels are built for
START = """#!/bin/sh
exec qemu-aarch64 -cpu {cpu} -L '{root}' '{python}' "$@"
"""


def system(folder: Path) -> Path:
    """Return the root of an AArch64 system with this Debian's Python, made where it is not there yet."""
    root = folder / "root"
    if root.exists():
        return root
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("lists/partial", "archives/partial", "unpacked"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()  # nothing is installed there, so all that Python needs is fetched
    _apt(folder, "update")
    _apt(folder, "install", "--yes", "--no-install-recommends", "--download-only", *PACKAGES)
    for package in sorted((folder / "archives").glob("*.deb")):
        if package.name.split("_")[0] not in NOT_NEEDED:
            subprocess.run(["dpkg-deb", "--extract", package, folder / "unpacked"], check=True)
    return (folder / "unpacked").rename(root)


def _apt(folder: Path, *words: str) -> None:
    options = {
        "APT::Architecture": ARCHITECTURE,
        "APT::Architectures": ARCHITECTURE,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State": folder,
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::Archives": folder / "archives",
    }
    chosen = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", "--quiet=2", *chosen, *words], check=True, stdout=subprocess.DEVNULL)


def _python(root: Path) -> Path:
    (found,) = (path for path in (root / "usr/bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name))
    return found


def install(root: Path, requirements: Sequence[str]) -> None:
    """Install wheels for the Python of a system, where it finds them whatever the environment says."""
    python = _python(root)
    library = root / "usr/lib" / python.name
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in GLIBC] + ["manylinux2014_aarch64"]
    subprocess.run(
        [
            sys.executable, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
            "--upgrade", "--target", library / "site-packages", "--implementation", "cp",
            "--python-version", python.name.removeprefix("python"), "--only-binary=:all:",
            *(word for name in platforms for word in ("--platform", name)), *requirements,
        ],
        check=True,
    )  # fmt: skip
    start = library / "sitecustomize.py"  # Debian's is a link to a file of /etc
    start.unlink(missing_ok=True)
    shutil.copyfile(Path(__file__).with_name("emulated_start.py"), start)


def interpreter(root: Path, processor: str) -> Path:
    """Return a script that starts the Python of a system on one of QEMU's processors."""
    path = root.parent / processor / "python3"
    path.parent.mkdir(exist_ok=True)
    path.write_text(START.format(cpu=processor, root=root, python=_python(root)), encoding="utf-8")
    path.chmod(0o755)
    return path

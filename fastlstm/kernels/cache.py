"""Where compiled kernels are kept, and which files may be run.

Code from a file runs with all privileges of the process. So nothing is run, or written, that somebody else could have
placed there: the file and the folders that fastlstm makes have to belong to this user or to root, and nobody else may
write to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import time
from functools import cache
from pathlib import Path

from fastlstm.target import Target

__all__ = ["cache_folder", "keep", "mistrust", "place_of", "sources"]

FINDING = (
    "addresses",
    "cache",
    "compiler",
    "helpers",
    "kernel",
    "loader",
    "packfile",
    "progress",
    "side_by_side",
    "simplified",
)  # modules that find code and have no effect on it
VECTORS = ("activations", "arithmetic", "elementwise")  # families of operators with vector functions
LEFT_OVER_SECONDS = 3600.0  # unfinished files older than this are removed


def cache_folder() -> Path | None:
    """Return the folder of compiled kernels, None if the user has no home folder.

    The environment variable ``FASTLSTM_CACHE_DIR`` moves it.
    """
    chosen = os.environ.get("FASTLSTM_CACHE_DIR")
    if chosen:
        return Path(chosen)
    try:
        if sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        elif os.name == "nt":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a name, as in containers
        return None
    return base / "fastlstm"


@cache
def sources() -> str:
    """Return a hash of everything that determines a kernel's code, besides its constants and its target."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    shared = ("program/layout.py", "target/__init__.py", "target/limits.py")
    folders = [*sorted(here.glob("*.py")), *sorted((here.parent / "program" / "arguments").glob("*.py"))]
    functions = [here.parent / "operators" / f"{name}.py" for name in VECTORS]
    for source in [*folders, *functions, *(here.parent / name for name in shared)]:
        if source.stem not in FINDING:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:20]


def place_of(target: Target, name: str) -> Path | None:
    """Return the file of a kernel in the cache, None if there is no cache."""
    folder = cache_folder()
    digest = hashlib.sha256(repr((sources(), target.code)).encode()).hexdigest()[:20]
    return None if folder is None else folder / digest / f"{name}.kernel"


def mistrust(path: Path) -> str:
    """Return why the code in a file must not be run, as the end of a sentence; empty if it may be."""
    if os.name != "posix":
        return ""
    for place in (path, path.parent, path.parent.parent):
        found = os.stat(place)
        if found.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user (number {found.st_uid})"
        shared = (
            stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        )  # like /tmp: nobody can replace others' files
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not shared:
            return f"{place} can be written by others; take that right away with: chmod go-w '{place}'"
    return ""


def keep(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file of the cache under a temporary name and rename it, so that nobody ever reads half a file.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind.
    """
    import tempfile  # imports a dozen modules that finding code does not need

    for folder in (path.parent.parent, path.parent):
        with contextlib.suppress(FileExistsError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o755)
            folder.chmod(0o755)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(aside, mode)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
    _remove_left_overs(path.parent)


def _remove_left_overs(folder: Path) -> None:
    """Remove the unfinished files of processes that were killed."""
    for file in folder.glob(".new-*"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > LEFT_OVER_SECONDS:
                file.unlink()

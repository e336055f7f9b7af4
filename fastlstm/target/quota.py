"""The processor time that a container or service may take: Linux's control groups limit it beside the affinity mask.

``docker run --cpus 2`` and a Kubernetes limit set a quota. The processors remain visible, and threads beyond the quota
only get all of them suspended, for tens of milliseconds at a time.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and scheduler/sched-bwc.rst (``cpu.cfs_quota_us``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

__all__ = ["processor_quota"]


@cache
def processor_quota(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how many processors' time this process may take, None if that is not limited or not known; read once.

    Parameters
    ----------
    groups : Path
        The file that names this process's control groups.
    mounted : Path
        Where their files are.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = [quota for line in lines for folder in _folders(line, mounted) if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def _folders(line: str, mounted: Path) -> Iterator[Path]:
    """Yield the folders of a group, named as ``number:controllers:path``, and of all groups around it."""
    _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
    if controllers and "cpu" not in controllers.split(","):
        return
    root = mounted / controllers if controllers else mounted
    inside = PurePosixPath(path.lstrip("/"))
    if ".." in inside.parts:
        inside = PurePosixPath()
    for part in (inside, *inside.parents):
        yield root / part


def _quota(folder: Path) -> float | None:
    """Return the quota of a group in version 2's form or version 1's, None if it has none."""
    try:
        if (both := folder / "cpu.max").exists():
            quota, period = both.read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 < int(period) else None
    except (OSError, ValueError):  # "max" is no limit
        return None

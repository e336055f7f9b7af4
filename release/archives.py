"""The files of a release: what is in them, and that the same sources give the same bytes."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

__all__ = ["build", "problems", "settled"]

MOST_WHEEL_BYTES = 12 << 20


def build(tree: Path, kind: str, out: Path, epoch: int) -> Path:
    """Build the "sdist" or the "wheel" of a tree of sources; return the one file, the same bytes every time."""
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "build", f"--{kind}", "--outdir", str(out), str(tree)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    (made,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    if kind == "sdist":
        made.write_bytes(settled(made.read_bytes(), epoch))
    return made


def settled(archive: bytes, epoch: int) -> bytes:
    """Return a ``.tar.gz`` without what differs from one machine and minute to the next."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as old,
        gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=epoch) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode, member.pax_headers = 0o755 if member.isdir() or member.mode & 0o100 else 0o644, {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


def problems(sdist: Path, wheel: Path, repository: str, packs: Mapping[str, bytes]) -> Iterator[str]:
    """Yield what a stranger who installs a release would stumble over, one sentence each."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (place,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        yield from _of_metadata(archive.read(place).decode(), repository)
        held = {Path(name).name for name in names if name.endswith(".pack")}
        if held != packs.keys():
            yield f"The wheel holds the packs {sorted(held)}; expected {sorted(packs)}."
        yield from (
            f"The pack {name} in the wheel is not the one that was made."
            for name, content in packs.items()
            if name in held and archive.read(f"fastlstm/packs/{name}") != content
        )
        yield from (f"The wheel holds {name}." for name in names if "__pycache__" in name or name.startswith("tests/"))
    if wheel.stat().st_size > MOST_WHEEL_BYTES:
        yield f"The wheel takes {wheel.stat().st_size:,} bytes; at most {MOST_WHEEL_BYTES:,} are meant to."
    with tarfile.open(sdist) as archive_:
        inside = archive_.getnames()
    yield from (f"The sdist holds {name}: packs are made, not kept." for name in inside if name.endswith(".pack"))
    yield from (
        f"The sdist lacks {name}."
        for name in ("README.md", "LICENSE", "pyproject.toml", "converters/onnx/load.py", "fastlstm/model.py")
        if not any(entry.endswith(f"/{name}") for entry in inside)
    )


def _of_metadata(text: str, repository: str) -> Iterator[str]:
    found: Message = HeaderParser().parsestr(text)
    urls = found.get_all("Project-URL") or []
    if not any(repository in url for url in urls):
        yield f"The metadata names no address of {repository}; it has {urls}."
    yield from (
        f"The metadata has no {field}."
        for field in ("Summary", "License-Expression", "Requires-Python", "Description-Content-Type")
        if not found.get(field)
    )
    page = str(found.get_payload())
    yield from (
        f"The page of the release links to '{link}', which leads nowhere outside the repository."
        for link in re.findall(r"\]\(([^)\s]+)\)", page)
        if not link.startswith(("https://", "#"))
    )

"""Build, check and try a release: ``python -m release --repository URL [--levels LEVEL ...]``.

In ``dist/``: the sdist, the wheel with compiled kernels, and ``notes.md``, the changelog's section of the version. The
sources are those of the last commit. Both files are built twice and have to be the same bytes; both are installed into
empty environments, where they run the demo.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from fastlstm.version import __version__
from release.archives import build, problems
from release.texts import changes, with_absolute_links, with_urls

ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Make a release; return 0 if a stranger can install it."""
    parser = argparse.ArgumentParser("python -m release", description="Build, check and try a release.")
    parser.add_argument("--repository", default=_origin(), metavar="URL", help="where it lives (default: git's origin)")
    parser.add_argument("--levels", nargs="*", default=[], metavar="LEVEL", help="packs to make (default: all)")
    parser.add_argument("--unfinished", action="store_true", help="for trying: take the notes of what is not released")
    arguments = parser.parse_args(argv)
    repository = arguments.repository.rstrip("/").removesuffix(".git")
    if not repository.startswith("https://"):
        parser.error("name the repository, as people open it in a browser: --repository https://…")
    notes = changes(
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), "Unreleased" if arguments.unfinished else __version__
    )
    if not notes:
        parser.error(
            f"CHANGELOG.md has no section '## {__version__}': what changed goes from Unreleased to there first"
        )
    dist = ROOT / "dist"
    for old in dist.glob("*"):
        if old.name != "kernels":  # what was compiled for packs, some minutes of all cores
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    epoch = int(_git("log", "-1", "--format=%ct"))
    packs = _packs(dist / "packs", arguments.levels)
    with tempfile.TemporaryDirectory() as scratch:
        made = [
            _built(Path(scratch) / place, dist if place == "first" else Path(scratch) / "again", repository, packs,
                   epoch)
            for place in ("first", "second")
        ]  # fmt: skip
        wrong = [
            f"{one.name} was not the same bytes when it was built again."
            for one, other in zip(*made, strict=True)
            if one.read_bytes() != other.read_bytes()
        ]
        sdist, wheel = made[0]
        wrong += problems(sdist, wheel, repository, packs)
        for file in () if wrong else made[0]:
            _try(file, Path(scratch) / f"try {file.suffix}")
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    if not wrong:
        (dist / "notes.md").write_text(notes, encoding="utf-8")
        for file in (sdist, wheel, dist / "notes.md"):
            print(f"{file.relative_to(ROOT)}  {file.stat().st_size:,} bytes")
    return 1 if wrong else 0


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _origin() -> str:
    remotes = _git("remote").split()
    return _git("remote", "get-url", "origin") if "origin" in remotes else ""


def _packs(folder: Path, levels: Sequence[str]) -> Mapping[str, bytes]:
    command = [sys.executable, "-m", "fastlstm.prebuild", "--out", str(folder), *levels]
    subprocess.run(command, cwd=ROOT, check=True)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.pack"))}


def _built(tree: Path, out: Path, repository: str, packs: Mapping[str, bytes], epoch: int) -> tuple[Path, Path]:
    """Return the sdist and the wheel of the last commit, with the addresses of the repository."""
    files = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(files)) as archive:
        archive.extractall(tree, filter="data")
    for name, change in (
        ("README.md", lambda text: with_absolute_links(text, repository, f"v{__version__}")),
        ("pyproject.toml", lambda text: with_urls(text, repository)),
    ):
        (tree / name).write_text(change((tree / name).read_text(encoding="utf-8")), encoding="utf-8")
    for path in tree.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # whatever the umask
    sdist = build(tree, "sdist", out, epoch)
    (tree / "fastlstm" / "packs").mkdir()
    for name, content in packs.items():
        (tree / "fastlstm" / "packs" / name).write_bytes(content)
        (tree / "fastlstm" / "packs" / name).chmod(0o644)
    return sdist, build(tree, "wheel", out, epoch)


def _try(file: Path, folder: Path) -> None:
    """Install a file into an empty environment and run the demo there."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-I", "-m", "pip", "install", "--quiet", f"fastlstm[demo] @ {file.as_uri()}"], check=True)
    subprocess.run([folder / "bin" / "fastlstm", "demo"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    print(f"{file.name}: installed, and ran the demo", flush=True)


if __name__ == "__main__":
    sys.exit(main())

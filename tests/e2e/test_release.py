"""What a release promises: files of older formats, the names of the API, links that lead somewhere from anywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.files import fileformat
from fastlstm.version import __version__

sys.path.append(str(Path(__file__).parents[2]))  # last: where fastlstm is installed as a wheel, that one is tested

from release.archives import problems, settled
from release.texts import changes, with_absolute_links, with_urls

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://example.org/somebody/fastlstm"
RULES = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_names_of_the_api_are_those_that_are_promised() -> None:
    rows = [line.split("|")[1] for line in RULES.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", "".join(rows))) == sorted(fastlstm.__all__)
    for name in fastlstm.__all__:
        assert getattr(fastlstm, name).__doc__, name


def test_the_version_is_written_the_same_in_both_places() -> None:
    assert f'\nversion = "{__version__}"\n' in PROJECT


def test_python_without_its_global_lock_is_refused_in_a_sentence() -> None:
    code = "import sys; sys._is_gil_enabled = lambda: False; import fastlstm"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("fastlstm.errors.DependencyError: fastlstm does not support Python")


@pytest.mark.parametrize("version", range(1, fileformat.FORMAT_VERSION + 1))
def test_files_of_every_format_are_read(version: int) -> None:
    path = Path(__file__).parent / "data" / f"format-{version}.fastlstm"
    assert f'"fastlstm.format":"{version}"'.encode() in path.read_bytes().replace(b": ", b":")
    (sample,) = fileformat.read(path).golden
    for name, value in fastlstm.load(path).run(sample.inputs).items():
        np.testing.assert_allclose(value, sample.outputs[name], atol=1e-6 if version == 1 else 1e-3)
    assert f"now {fileformat.FORMAT_VERSION}." in RULES


def test_notes_are_the_section_of_the_version() -> None:
    log = "# Changelog\n\n## Unreleased\n\n- b\n\n## 1.2.0 (2030-01-01)\n\n- a\n- c\n\n## 1.1.0\n"
    assert changes(log, "1.2.0") == "- a\n- c\n"
    assert changes(log, "Unreleased") == "- b\n"
    assert changes(log, "1.1.0") == changes(log, "1.3.0") == ""


def test_links_of_the_page_lead_into_the_repository() -> None:
    page = with_absolute_links("![a](x.svg) [b](docs/y.md#z) [c](https://d) [e](#f)", REPOSITORY, "v1")
    assert page == (f"![a]({REPOSITORY}/raw/v1/x.svg) [b]({REPOSITORY}/blob/v1/docs/y.md#z) [c](https://d) [e](#f)")
    whole = with_absolute_links((ROOT / "README.md").read_text(encoding="utf-8"), REPOSITORY, "v1")
    assert not re.search(r"\]\((?!https://|#)", whole)


def test_links_of_the_documents_lead_to_files() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_the_project_gets_the_addresses_of_its_repository() -> None:
    urls = with_urls(PROJECT, REPOSITORY).partition("[project.urls]")[2].partition("[project.scripts]")[0]
    assert f'Homepage = "{REPOSITORY}"\n' in urls
    assert f'Issues = "{REPOSITORY}/issues"\n' in urls
    with pytest.raises(ValueError, match="should have"):
        with_urls("[project]\n", REPOSITORY)


def wheel(path: Path, metadata: str, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fastlstm-1.dist-info/METADATA", metadata)
        for name in names:
            archive.writestr(name, "content")
    return path


def sdist(path: Path, *names: str, when: int = 0) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"fastlstm-1/{name}")
            member.mtime = when
            archive.addfile(member)
    return path


def test_what_a_stranger_would_stumble_over_is_told(tmp_path: Path) -> None:
    good = (
        f"Metadata-Version: 2.4\nSummary: s\nLicense-Expression: Apache-2.0\nRequires-Python: >=3.10\n"
        f"Description-Content-Type: text/markdown\nProject-URL: Homepage, {REPOSITORY}\n\n[a](https://b)\n"
    )
    files = ("README.md", "LICENSE", "pyproject.toml", "converters/onnx/load.py", "fastlstm/model.py")
    source = sdist(tmp_path / "a.tar.gz", *files)
    packs = {"x.pack": b"content"}
    fine = wheel(tmp_path / "a.whl", good, "fastlstm/packs/x.pack")
    assert list(problems(source, fine, REPOSITORY, packs)) == []
    bad = wheel(tmp_path / "b.whl", good.replace("https://b", "b.md").replace("Summary: s\n", ""), "tests/a.py")
    said = " ".join(problems(sdist(tmp_path / "b.tar.gz", *files[1:], "p.pack"), bad, REPOSITORY + "2", packs))
    for part in ("no Summary", "links to 'b.md'", "names no address", "expected ['x.pack']", "holds tests/a.py",
                 "lacks README.md", "p.pack: packs are made"):  # fmt: skip
        assert part in said
    assert "is not the one that was made" in " ".join(problems(source, fine, REPOSITORY, {"x.pack": b"other"}))


def test_an_sdist_does_not_say_when_it_was_made(tmp_path: Path) -> None:
    one, other = (sdist(tmp_path / f"{n}.tar.gz", *names, when=n) for n, names in ((1, "ab"), (2, "ba")))
    assert one.read_bytes() != other.read_bytes()
    assert settled(one.read_bytes(), 7) == settled(other.read_bytes(), 7)

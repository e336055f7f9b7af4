"""Packs and the cache: what is damaged, made for others or writable by others is never run; nothing fails for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from fastlstm.errors import FileFormatError
from fastlstm.kernels import cache, compiler
from fastlstm.kernels.compiler import Kernel, kernel_image, stored
from fastlstm.kernels.image import ALIGNMENT
from fastlstm.kernels.packfile import pack_bytes, read_pack
from fastlstm.target import LEVELS, machine

MOVE, LAST = Kernel("movement.move"), Kernel("movement.last")
HERE = machine.detect()
IMAGES = {kernel.key: (kernel.name, kernel_image(kernel, HERE)) for kernel in (MOVE, LAST)}
CONTENT = pack_bytes(HERE, cache.sources(), IMAGES, compiler.made_with())


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test an empty cache, no packs, and a compiler that has loaded nothing."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FASTLSTM_CACHE_DIR", str(folder))
    monkeypatch.setattr(compiler, "PACKS", tmp_path / "packs")
    monkeypatch.setattr(compiler, "known", {})
    monkeypatch.setattr(compiler, "_packs", {})
    compiler._say_once.cache_clear()
    (tmp_path / "packs").mkdir()
    return folder


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """Return the list of kernels that get compiled."""
    done: list[Kernel] = []
    real = compiler.kernel_image

    def noted(kernel: Kernel, target: object) -> object:
        done.append(kernel)
        return real(kernel, HERE)

    monkeypatch.setattr(compiler, "kernel_image", noted)
    return done


def again(kernel: Kernel = MOVE) -> int:
    """Find a kernel as a new process does."""
    compiler.known.clear()
    compiler._packs.clear()
    return compiler.load(kernel, HERE)


def test_a_pack_holds_what_was_put_into_it_at_pages() -> None:
    pack = read_pack(memoryview(CONTENT), HERE, cache.sources())
    for key, (_, image) in IMAGES.items():
        found = pack.find(key)
        assert found is not None
        at, same = found
        assert at % ALIGNMENT == 0
        assert same == image
        assert CONTENT[at : at + len(image.code)] == image.code
    assert pack.find("0" * 16) is None
    assert pack_bytes(HERE, cache.sources(), dict(reversed(IMAGES.items())), compiler.made_with()) == CONTENT


def changed(at: int) -> bytes:
    return CONTENT[:at] + bytes([CONTENT[at] ^ 1]) + CONTENT[at + 1 :]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no pack"),
        (b"PK" + CONTENT[2:], "no pack"),
        (CONTENT[:30], "no pack"),
        (CONTENT[:300], "checksum of its header"),
        (changed(100), "checksum of its header"),
        (CONTENT[:8] + b"\x07" + CONTENT[9:], "version 7 of the format; this fastlstm reads version 1"),
        (pack_bytes(LEVELS["aarch64"], cache.sources(), {}, {}), "for aarch64; this process"),
        (pack_bytes(replace(HERE, features=("+fma4",)), cache.sources(), {}, {}), "for x86-64|for aarch64"),
        (pack_bytes(HERE, "others", {}, {}), "sources of another version"),
    ],
)
def test_a_pack_that_is_damaged_or_for_others_is_refused_in_a_sentence(
    content: bytes, sentence: str, compiled: list[Kernel], tmp_path: Path
) -> None:
    with pytest.raises(FileFormatError, match=sentence):
        read_pack(memoryview(content), HERE, cache.sources())
    if HERE.code not in {level.code for level in LEVELS.values()}:
        return
    (tmp_path / "packs" / f"{HERE.name}.pack").write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"is not used: "):
        assert again()
    assert compiled == [MOVE]  # it was compiled in place of being run from there


def test_an_image_that_is_damaged_is_not_run(compiled: list[Kernel], tmp_path: Path) -> None:
    pack = read_pack(memoryview(CONTENT), HERE, cache.sources())
    at, image = pack.find(MOVE.key) or (0, None)
    assert image is not None
    for content in (changed(at + image.entry), CONTENT[: at + 3]):
        damaged = read_pack(memoryview(content), HERE, cache.sources())
        with pytest.raises(FileFormatError, match=r"movement\.move is damaged"):
            damaged.find(MOVE.key)
        (tmp_path / "packs" / f"{HERE.name}.pack").write_bytes(content)
        compiled.clear()
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        with pytest.warns(RuntimeWarning, match="damaged"):
            again()
        assert compiled == [MOVE]


def test_a_kernel_in_a_pack_is_not_compiled_and_what_is_not_there_is(compiled: list[Kernel], tmp_path: Path) -> None:
    (tmp_path / "packs" / f"{HERE.name}.pack").write_bytes(CONTENT)
    assert again() % ALIGNMENT == IMAGES[MOVE.key][1].entry
    again(LAST)
    assert compiled == []
    again(Kernel("rounds.advance"))
    assert compiled == [Kernel("rounds.advance")]


def test_a_kernel_is_compiled_once_and_kept(compiled: list[Kernel], empty: Path) -> None:
    again(), again()
    assert compiled == [MOVE]
    path = stored(MOVE, HERE)
    assert path is not None
    assert path.is_file()
    assert path.parent.parent == empty
    assert sorted(path.parent.iterdir()) == [path]  # nothing else is left behind


@pytest.mark.parametrize("damage", [b"", b"x", CONTENT[:-1000], pack_bytes(HERE, "others", IMAGES, {})])
def test_a_damaged_file_of_the_cache_is_compiled_and_written_anew(damage: bytes, compiled: list[Kernel]) -> None:
    again()
    path = stored(MOVE, HERE)
    assert path is not None
    good = path.read_bytes()
    path.write_bytes(damage)
    again()
    assert compiled == [MOVE, MOVE]
    assert path.read_bytes() == good


@pytest.mark.skipif(os.name != "posix", reason="rights as POSIX has them")
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_code_that_others_can_write_is_not_run(which: int, mode: int, compiled: list[Kernel]) -> None:
    again()
    path = stored(MOVE, HERE)
    assert path is not None
    place = [path, path.parent, path.parent.parent][which]
    place.chmod(place.stat().st_mode | mode)
    with pytest.warns(RuntimeWarning, match="can be written by others; take that right away with: chmod go-w"):
        again()
    assert compiled == [MOVE, MOVE]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_code_of_another_user_is_not_run(compiled: list[Kernel]) -> None:
    again()
    path = stored(MOVE, HERE)
    assert path is not None
    os.chown(path, 12345, -1)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        again()
    assert compiled == [MOVE, MOVE]


def test_the_folder_may_vanish_while_running(compiled: list[Kernel], empty: Path) -> None:
    again()
    shutil.rmtree(empty)
    again(LAST)
    assert compiled == [MOVE, LAST]
    assert (stored(LAST, HERE) or Path()).is_file()


def test_a_folder_that_cannot_be_written_costs_compiling_and_says_so_once(
    compiled: list[Kernel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("FASTLSTM_QUIET", raising=False)
    monkeypatch.setenv("FASTLSTM_CACHE_DIR", str(tmp_path / "file" / "cache"))
    again(), again()
    assert compiled == [MOVE, MOVE]
    assert capfd.readouterr().err.count("every process will compile them anew") == 1


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX has them")
def test_a_disk_without_room_costs_compiling_and_keeps_no_half_of_a_file(
    compiled: list[Kernel], empty: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import resource

    monkeypatch.delenv("FASTLSTM_QUIET", raising=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))  # no file may become larger
    try:
        again(), again()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert compiled == [MOVE, MOVE]
    assert not [path for path in empty.rglob("*") if path.is_file()]
    assert capfd.readouterr().err.count("every process will compile them anew") == 1
    again()
    assert (stored(MOVE, HERE) or Path()).is_file()


def test_a_user_without_a_home_is_no_error(
    compiled: list[Kernel], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("FASTLSTM_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA", "FASTLSTM_QUIET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(none))
    assert cache.cache_folder() is None
    assert again()
    assert "this user has no home folder" in capfd.readouterr().err


def test_files_that_nobody_finished_are_removed_in_time(empty: Path) -> None:
    again()
    folder = (stored(MOVE, HERE) or Path()).parent
    old, new = folder / ".new-old", folder / ".new-new"
    for file in (old, new):
        file.write_text("")
    os.utime(old, (0, 0))
    again(LAST)
    assert not old.exists()
    assert new.exists()


LOAD = (
    "from fastlstm.target import machine; from fastlstm.kernels import compiler\n"
    "print(compiler.load(compiler.Kernel('movement.move'), machine.detect()) > 0)"
)


def test_two_processes_may_begin_with_an_empty_cache(empty: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["True\n"] * 2
    assert [file.name for file in empty.glob("*/*")] == [f"movement.move-{MOVE.key}.kernel"]


def test_what_is_kept_loads_without_numba_and_what_is_missing_is_a_sentence() -> None:
    blocked = "import sys; sys.modules.update(numba=None, llvmlite=None)\n"
    again()
    done = subprocess.run([sys.executable, "-c", blocked + LOAD], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    missing = LOAD.replace("movement.move'", "gru.gru', (8, 12, (('Sigmoid', None, None), ('Tanh', None, None)))")
    done = subprocess.run([sys.executable, "-c", blocked + missing], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "DependencyError: The code of GRU layers (kernel gru.gru" in last
    assert last.endswith("Install it with: pip install numba")


def test_nothing_is_said_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again(), again()

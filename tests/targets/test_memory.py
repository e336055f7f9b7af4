"""What exported code touches: its own state, the caller's arrays, and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Compile = Callable[..., Path]
HERE = Path(__file__).parent
NATIVE = "amp-x86-64-v3.o"


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.quick
@pytest.mark.parametrize("standard", ["-xc -std=c99", "-xc -std=c11", "-xc++ -std=c++17"], ids=["C99", "C11", "C++17"])
def test_the_header_is_pedantic_c_and_cpp(everywhere: Path, tmp_path: Path, standard: str) -> None:
    source = tmp_path / "source.c"
    source.write_text('#include "amp.h"\namp_state state;\nvoid begin(void);\nvoid begin(void) { amp_init(&state); }\n')
    strict = ["-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{everywhere}", "-c", "-o", str(tmp_path / "source.o")]
    run("cc", *standard.split(), *strict, source)


@pytest.mark.quick
def test_the_test_program_is_clean_under_address_sanitizer(stream: Path, compile_c: Compile) -> None:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
    program = compile_c(*flags, stream / "amp_test.c", stream / NATIVE, f"-I{stream}")
    assert "same bits: ok" in run(program)


@pytest.mark.quick
def test_nothing_beside_the_state_and_the_arrays_is_touched(stream: Path, compile_c: Compile) -> None:
    assert "untouched" in run(compile_c(HERE / "guarded.c", stream / NATIVE, f"-I{stream}"))


def test_states_side_by_side_are_independent_of_other_threads(stream: Path, compile_c: Compile) -> None:
    flags = ["-g", "-pthread", f"-I{stream}"]
    checked = compile_c(*flags, "-fsanitize=thread", HERE / "threads.c", stream / NATIVE)
    assert "alike" in run("setarch", "--addr-no-randomize", checked)  # its shadow memory lies at fixed addresses
    program = compile_c("-g", "-pthread", HERE / "threads.c", stream / NATIVE, f"-I{stream}")
    assert "alike" in run(program)
    assert "alike" in run("valgrind", "--quiet", "--error-exitcode=1", "--tool=helgrind", program)
    assert "alike" in run("valgrind", "--quiet", "--error-exitcode=1", program)


@pytest.mark.quick
def test_the_library_chooses_its_level_by_the_processor(stream: Path, compile_c: Compile) -> None:
    program = compile_c(stream / "amp_test.c", stream / "libamp.a", f"-I{stream}")
    assert "same bits: ok" in run(program)

"""Every kernel around the recurrent layers compiles, and calls nothing that a warm start could not find."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from fastlstm.kernels import cache, compiler
from fastlstm.kernels.compiler import Kernel
from fastlstm.lowering.segments.rows import BINARY, UNARY
from fastlstm.target import machine

LANES = machine.detect().lanes
KERNELS = [
    *(("elementwise.unary", (LANES, name, *function.given({}))) for name, function in UNARY.items()),
    *(("elementwise.binary", (LANES, name)) for name in BINARY),
    ("elementwise.softmax", (LANES, False)),
    ("elementwise.softmax", (LANES, True)),
    ("elementwise.layer_norm", (LANES, 1e-5)),
    ("movement.move", ()),
    ("movement.last", ()),
    ("movement.embed", ()),
    ("arrays.copy", (LANES,)),
    ("arrays.fill", (LANES,)),
    ("arrays.pad", (LANES,)),
    ("arrays.logarithm", ()),
    *(
        ("arrays.unary", (LANES, name, None, None))
        for name in ("Sqrt", "Neg", "Abs", "Reciprocal", "Floor", "Round", "HardSwish")
    ),
    ("arrays.unary", (LANES, "Clip", 0.0, 6.0)),
    ("arrays.binary", (LANES, "PRelu")),
    ("contraction.pack", (LANES, 2)),
    ("contraction.matmul", (LANES, 1, machine.detect().max_sums)),
    ("convolution.by_position", (LANES, 2, machine.detect().max_sums)),
    ("convolution.by_channel", (LANES, 2, machine.detect().max_sums)),
    ("convolution.pairs", (LANES,)),
    *(("lines.softmax", (LANES, logarithm)) for logarithm in (False, True)),
    ("lines.layer_norm", (LANES, 1e-5)),
    *(("lines.reduce", (LANES, name)) for name in ("Sum", "Mean", "Max", "SumSquare")),
    *(("pooling.pool", (LANES, name)) for name in ("Max", "Mean")),
    ("nested.nested", ()),
    *((f"rounds.{name}", ()) for name in ("repeat", "advance", "verify")),
    ("rounds.move", (LANES,)),
    *((f"integers.{name}", ()) for name in ("elementwise", "where", "gather", "argmax")),
    *(("entry.call", (plain,)) for plain in (True, False)),
    ("team.lead", ()),
]


def test_a_cache_that_is_full_is_left_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", Full)
    with pytest.raises(OSError, match="No space"):
        cache.keep(tmp_path / "folder" / "m.kernel", b"code")
    monkeypatch.undo()
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize(("name", "constants"), KERNELS)
def test_kernels_compile_and_link(name: str, constants: tuple[object, ...]) -> None:
    assert compiler.load(Kernel(name, constants), machine.detect())

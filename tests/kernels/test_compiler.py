"""Every kernel around the recurrent layers compiles, and calls nothing that a warm start could not find."""

from __future__ import annotations

import pytest

from fastlstm import machine
from fastlstm.kernels import compiler
from fastlstm.plan import BINARY, UNARY

LANES = machine.detect().lanes
KERNELS = [
    *(
        ("elementwise.unary", (LANES, name, *[*(default for _, default in parameters), None, None][:2]))
        for name, parameters in UNARY.items()
    ),
    *(("elementwise.binary", (LANES, name)) for name in BINARY),
    ("elementwise.softmax", (LANES, False)),
    ("elementwise.softmax", (LANES, True)),
    ("elementwise.layer_norm", (LANES, 1e-5)),
    ("movement.move", ()),
    ("movement.last", ()),
    ("movement.embed", ()),
    ("entry.call", ()),
    ("team.lead", ()),
]


@pytest.mark.parametrize(("name", "constants"), KERNELS)
def test_kernels_compile_and_link(name: str, constants: tuple[object, ...]) -> None:
    assert compiler.address(name, *constants)

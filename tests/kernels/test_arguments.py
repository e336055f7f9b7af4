"""The arguments of kernels have names, which builders and kernels share."""

from __future__ import annotations

import ast
from importlib.resources import files

import pytest

from fastlstm.program.arguments import ARGUMENTS, positions, size_of
from fastlstm.program.arguments.arrays import Loops, Pool
from fastlstm.program.program import Instruction


def numbers(value: object) -> list[int]:
    return [n for item in value for n in numbers(item)] if isinstance(value, tuple) else [value]  # type: ignore[list-item]


def test_a_field_is_the_number_of_its_word() -> None:
    for kind in ARGUMENTS.values():
        assert numbers(positions(kind)) == list(range(size_of(kind))), kind
    assert positions(Pool).across.size == 9


def test_an_instruction_names_what_it_is_given() -> None:
    sizes = Loops(1, 1, 1, 2, 3)
    step = Instruction("arrays.copy", (8,), (7, 9, sizes, sizes, sizes))
    assert step.args.x_steps.e == 3  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        Instruction("arrays.copy", (8,), (7, 9))


def test_no_kernel_reads_an_argument_by_a_bare_number() -> None:
    for file in files("fastlstm.kernels").iterdir():
        if file.name.endswith(".py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "arg":
                    assert not isinstance(node.args[1], ast.Constant), f"{file.name}: {ast.unparse(node)}"

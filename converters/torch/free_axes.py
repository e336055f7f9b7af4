"""Axes of an exported program's inputs that the export fixed without need.

torch.export follows recurrent layers step by step and so fixes the time axis, and every other axis too where
nobody says otherwise. The operations themselves do not depend on it. Here each axis of an input becomes an
unknown, shapes are worked out again, and an axis stays open if no operation, weight or number asks for
the size that the example had. Numbers that turn out to be such a size follow the input from then on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fastlstm.converters.torch.aten.graph import CHECKS
from fastlstm.converters.torch.aten.shapes import RULES, CallShapes, Rule, UnknownShapeError
from fastlstm.converters.torch.program import Call, Program, SymInt, TensorMeta, short_name
from fastlstm.converters.torch.size_calls import SizeCalls
from fastlstm.converters.torch.sizes import Size, Sizes

__all__ = ["with_free_axes"]


def with_free_axes(program: Program) -> Program:
    """Return the program with every input axis open that can be.

    If nothing can be opened, or that cannot be told, the program is returned unchanged.
    """
    try:
        return _Opening(program).run()
    except UnknownShapeError:
        return program


class _Opening:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.z = Sizes()
        self.shapes: dict[str, list[Size]] = {}
        self.numbers: dict[str, Size] = {}
        self.literals: dict[int, dict[tuple[str, int], Size]] = {}
        self.leaves: list[Size] = []
        self.named: dict[str, Size] = {}

    def run(self) -> Program:
        for name in self.program.inputs:
            self.shapes[name] = [self._leaf(name, axis, d) for axis, d in enumerate(self._meta(name).shape)]
        for name, array in self.program.constants.items():
            self.shapes[name] = [self.z.fixed(size) for size in array.shape]
        for position, call in enumerate(self.program.calls):
            self._follow(position, call)
        self._refuse_numbers_that_look_like_sizes()
        self._refuse_loose_numbers()
        calls = self._rewritten()
        while calls is None:  # a size was needed before it is known, and is now fixed
            calls = self._rewritten()
        followed = any(size.is_open for found in self.literals.values() for size in found.values())
        closed = any(not size.is_open for size in self.named.values())
        if not followed and (closed or not any(leaf.is_open for leaf in self.leaves)):
            return self.program
        metas = {
            name: TensorMeta(meta.dtype, tuple(_dimension(size) for size in self.shapes[name]))
            for name, meta in self.program.metas.items()
            if name in self.shapes
        }
        return replace(self.program, calls=tuple(calls), metas=metas, notes=(*self.program.notes, self._note()))

    def _meta(self, name: str) -> TensorMeta:
        return self.program.meta(name)

    def _value(self, dimension: int | str) -> int:
        value = self.program.hints.get(dimension) if isinstance(dimension, str) else dimension
        if value is None:
            raise UnknownShapeError
        return value

    def _leaf(self, name: str, axis: int, dimension: int | str) -> Size:
        value = self._value(dimension)
        if isinstance(dimension, int):
            self.leaves.append(self.z.leaf(value, f"{name}_{axis}"))
            return self.leaves[-1]
        if dimension not in self.named:
            self.named[dimension] = self.z.leaf(value, dimension)
        return self.named[dimension]

    def _follow(self, position: int, call: Call) -> None:
        """Work out the shapes that a call gives; an operation that is not known fixes what it is given."""
        if call.target in CHECKS:
            return
        c = CallShapes(self.z, call, self.shapes, self.numbers)
        if call.target == "aten.sym_size.int":
            shape = c.shape("self", least=1)
            self.numbers[_only_output(call)] = shape[c.axis_of(len(shape))]
            return
        names = list(_names(call))
        if call.target.startswith("_operator.") or any(name and name not in self.program.metas for name in names):
            self._follow_number(position, call, names)
            return
        want = [[self._value(d) for d in self._meta(name).shape] if name else None for name in names]
        try:
            made = _rule(call.target)(self.z, c)
            made = made + [[]] * (len(names) - len(made))
            if len(made) != len(want):
                raise UnknownShapeError
            if any(w is not None and [s.value for s in m] != w for m, w in zip(made, want, strict=True)):
                raise UnknownShapeError
            self.literals[position] = c.literals
        except UnknownShapeError:
            if any(isinstance(d, str) for name in names if name for d in self._meta(name).shape):
                raise UnknownShapeError from None
            self.z.fix(*(size for shape in c.all_shapes() for size in shape), *c.all_sizes())
            made = [[self.z.fixed(size) for size in w or []] for w in want]
        self.shapes.update({name: shape for name, shape in zip(names, made, strict=True) if name})

    def _follow_number(self, position: int, call: Call, names: list[str]) -> None:
        operands = [self.numbers.get(a.name) if isinstance(a, SymInt) else a for a in call.arguments.values()]
        name = call.target.rpartition(".")[2]
        sizes = [self.z.literal(o) if isinstance(o, int) else o for o in operands if isinstance(o, (int, Size))]
        known = len(sizes) == len(operands) == 2 and len(names) == 1
        if call.target.startswith("_operator.") and name in ("mul", "add", "sub", "floordiv") and known:
            if name == "mul":
                self.literals[position] = {(key, -1): size for key, size in zip(call.arguments, sizes, strict=True)}
                self.numbers[names[0]] = self.z.product(sizes)
                return
            if name == "add" and isinstance(operands[0], int):
                operands, sizes = operands[::-1], sizes[::-1]
            if name == "add" and not isinstance(operands[1], int):
                self.numbers[names[0]] = self.z.sum(sizes)
                return
            if isinstance(operands[1], int) and (name != "floordiv" or operands[1] > 0):
                sign = {"add": 1, "sub": -1}.get(name)
                first = sizes[0]
                made = self.z.ratio(first, operands[1]) if sign is None else self.z.shift(first, sign * operands[1])
                self.numbers[names[0]] = made
                return
        if any(names):
            raise UnknownShapeError

    def _refuse_numbers_that_look_like_sizes(self) -> None:
        """``y.sum(1) / x.size(1)`` is stored with a number: an axis whose size is calculated with is not opened."""
        used = {
            abs(float(value))
            for call in self.program.calls
            for name, value in call.arguments.items()
            if name in ("other", "value", "exponent", "self", "alpha") and isinstance(value, (int, float))
        }
        for leaf in self.leaves:
            n = leaf.value
            suspects = (
                {n, n - 1, 1 / n, math.sqrt(n), 1 / math.sqrt(n), math.log(n), 1 / max(n - 1, 1)} if n > 1 else set()
            )
            if any(
                math.isclose(number, suspect) for number in used for suspect in suspects - {0.5, 1, 2} | {n} & suspects
            ):
                self.z.fix(leaf)

    def _refuse_loose_numbers(self) -> None:
        """``h.repeat(1, x.size(1), 1)`` is stored with a number that no other size has to be equal to."""
        found = (size.root for literals in self.literals.values() for size in literals.values())
        loose = {size.value for size in found if size.kind == "literal" and size.value > 1}
        for leaf in (*self.leaves, *self.named.values()):
            n = leaf.value
            if leaf.is_open and loose & {n, *(near for near in (n - 1, n + 1, n // 2, 2 * n) if near > 4)}:
                self.z.fix(leaf)

    def _rewritten(self) -> list[Call] | None:
        """Return the calls with sizes that follow the input read from it, None if one is needed before it is known."""
        holders: dict[int, tuple[str, int]] = {}
        calls: list[Call] = []

        def add(_size: Size, target: str, arguments: dict[str, object]) -> str:
            name = f"free_size_{len(calls)}"
            calls.append(Call(target, arguments, (name,)))
            return name

        sizes = SizeCalls(self.z, lambda size: holders.get(id(size)), add)
        for name in (*self.program.constants, *self.program.inputs):
            self._hold(name, holders)
        for position, call in enumerate(self.program.calls):
            arguments = dict(call.arguments)
            for (name, place), literal in self.literals.get(position, {}).items():
                if not literal.is_open:
                    continue
                number = sizes.number(literal)
                if number is None:
                    self.z.fix(literal)
                    return None
                arguments[name] = _put(arguments[name], place, number)
            calls.append(replace(call, arguments=arguments))
            for output in _names(call):
                self._hold(output, holders)
        return calls

    def _hold(self, name: str, holders: dict[int, tuple[str, int]]) -> None:
        for axis, size in enumerate(self.shapes.get(name, [])):
            holders.setdefault(id(size.root), (name, axis))

    def _note(self) -> str:
        shapes = ", ".join(
            f"{name} {[size.value for size in self.shapes[name]]}" for name in self.program.inputs if self.shapes[name]
        )
        return f"The program was exported with {shapes}; axes whose size nothing in it depends on are left open."


def _names(call: Call) -> Iterator[str]:
    for output in call.outputs:
        yield from output if isinstance(output, tuple) else (output,)


def _only_output(call: Call) -> str:
    names = list(_names(call))
    if len(names) != 1:
        raise UnknownShapeError
    return names[0]


def _rule(target: str) -> Rule:
    """Return the shape rule of an operation; its in-place form has the same one."""
    name = short_name(target)
    rule = RULES.get(name) or RULES.get(name.rstrip("_"))
    if rule is None:
        raise UnknownShapeError
    return rule


def _dimension(size: Size) -> int | str:
    return str(size) if size.is_open else size.value


def _put(argument: Any, place: int, number: SymInt | int) -> Any:
    if place < 0:
        return number
    return [*argument[:place], number, *argument[place + 1 :]]

"""Lowering of Numba's typed statements to LLVM assembly, no more of it than kernels need.

Numba lowers functions to be called from Python: results go through memory, every call returns a status for its caller
to check, every variable is zeroed, reference-counted and tracked for debuggers. A kernel's helpers raise nothing and
are inlined, so here they take and return values. Their modules stay text and are joined once (`joined`).
"""

from __future__ import annotations

import re
from typing import Any

from llvmlite import ir as llvm
from numba.core import callconv, ir, types
from numba.core.lowering import Lower

__all__ = ["Convention", "Library", "Lowering", "joined"]


class Convention(callconv.BaseCallConv):  # type: ignore[misc]
    """Arguments and results are values; nothing is raised."""

    def get_function_type(self, restype: Any, argtypes: Any) -> Any:
        kinds = [self.context.get_value_type(one) for one in (restype, *argtypes)]
        return llvm.FunctionType(kinds[0], kinds[1:])

    def decorate_function(self, fn: Any, args: Any, fe_argtypes: Any, noalias: bool = False) -> None:
        """Leave arguments unnamed."""

    def get_arguments(self, func: Any) -> Any:
        return func.args

    def decode_arguments(self, builder: Any, argtypes: Any, func: Any) -> Any:
        return func.args

    def call_function(self, builder: Any, callee: Any, resty: Any, argtys: Any, args: Any) -> Any:
        return None, builder.call(callee, args)

    def return_value(self, builder: Any, retval: Any) -> None:
        builder.ret(retval)

    def return_user_exc(self, builder: Any, *_: Any, **__: Any) -> None:
        """Lower what never happens: ``range`` with a step of zero."""
        builder.unreachable()

    return_status_propagate = return_user_exc

    def _make_call_helper(self, builder: Any) -> None:
        return None


class Library:
    """The lowered form of one function, and the libraries of the functions that it calls."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Library] = []

    def create_ir_module(self, name: str) -> Any:
        return llvm.Module(name)

    def add_linking_library(self, library: Library) -> None:
        self.calls.append(library)

    def add_ir_module(self, module: Any) -> None:
        functions = [one for one in module.globals.values() if isinstance(one, llvm.Function)]
        self.declared = {one.name: str(one) for one in functions if one.is_declaration}
        # Branches that Numba marks as unlikely are those that end in exceptions.
        texts = {one.name: str(one) for one in functions if not one.is_declaration}
        self.defined = {name: re.sub(r", !prof !\d+", "", text) for name, text in texts.items()}


def joined(library: Library) -> str:
    """Return a function with everything it calls as one module of LLVM assembly."""
    found: dict[int, Library] = {}
    waiting = [library]
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            waiting.extend(reversed(one.calls))
    defined: dict[str, str] = {}
    declared: dict[str, str] = {}
    for one in found.values():
        defined.update(one.defined)
        declared.update(one.declared)
    return "\n".join([*(text for name, text in declared.items() if name not in defined), *defined.values()])


class Lowering(Lower):  # type: ignore[misc]
    """Numba's lowering without debug information, reference counts and error messages."""

    def init(self) -> None:
        self._blk_local_varmap: dict[str, Any] = {}
        self._singly_assigned_vars = _within_a_block(self.blocks)

    def lower(self) -> None:
        self.lower_normal_function(self.fndesc)
        self.library.add_ir_module(self.module)

    def lower_block(self, block: Any) -> None:
        self._cur_ir_block = block
        for statement in block.body:
            self.loc = statement.loc
            self.lower_inst(statement)

    def lower_inst(self, inst: Any) -> None:
        if type(inst) is ir.Assign:
            name = inst.target.name
            self.storevar(self.lower_assign(self.typeof(name), inst), name)
        else:
            super().lower_inst(inst)

    def lower_binop(self, resty: Any, expr: Any, op: Any) -> Any:
        """Lower without looking for Numba's special forms for known operands."""
        signature = self.fndesc.calltypes[expr]
        given = [self._cast_var(one, kind) for one, kind in zip((expr.lhs, expr.rhs), signature.args, strict=True)]
        kind = self.context.typing_context.resolve_value_type(op)
        if expr.op == "inplace_binop":  # of which only the in-place form has been typed
            kind.get_call_type(self.context.typing_context, signature.args, {})
        operation = self.context.get_function(kind, signature)
        return self.context.cast(self.builder, operation(self.builder, given), signature.return_type, resty)

    def lower_call(self, resty: Any, expr: Any) -> Any:
        kind = self.typeof(expr.func.name)
        if not isinstance(kind, types.Dispatcher):
            return super().lower_call(resty, expr)
        written = kind.dispatcher.written(self.fndesc.calltypes[expr].args)
        given = [self._cast_var(one, kind) for one, kind in zip(expr.args, written.signature.args, strict=True)]
        self.library.add_linking_library(written.library)
        result = self.context.call_internal(self.builder, written.fndesc, written.signature, given)
        return self.context.cast(self.builder, result, written.signature.return_type, resty)

    def storevar(self, value: Any, name: str, argidx: Any = None) -> None:
        if name in self._singly_assigned_vars:
            self._blk_local_varmap[name] = value
        else:
            self.builder.store(value, self.getvar(name))

    def alloca(self, name: str, type: Any) -> Any:
        with self.builder.goto_entry_block():
            return self.builder.alloca(self.context.get_value_type(type))

    def incref(self, typ: Any, val: Any) -> None:
        """Count nothing."""

    def decref(self, typ: Any, val: Any) -> None:
        """Count nothing."""


def _within_a_block(blocks: Any) -> set[str]:
    """Return the variables that are assigned once, and then read only in the same block."""
    at: dict[str, int] = {}  # the block of each variable
    unfit: set[str] = set()
    for number, block in enumerate(blocks.values()):
        for statement in block.body:
            assigned = statement.target.name if type(statement) is ir.Assign else ""
            unfit.update(name for name in _read(statement) if at.get(name) != number)
            if assigned in at:
                unfit.add(assigned)
            elif assigned:
                at[assigned] = number
    return at.keys() - unfit


def _read(statement: Any) -> list[str]:
    """Return the names of the variables that a statement reads."""
    value = statement.value if type(statement) is ir.Assign else statement
    if type(value) is ir.Var:
        return [value.name]
    return [one.name for one in value.list_vars()] if isinstance(value, ir.Inst) else []

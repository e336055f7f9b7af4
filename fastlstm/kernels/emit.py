"""From a kernel's template to object code for a target.

Everything is inlined first and then optimised once, with the target's own cost model. (Optimising helpers before
inlining took a third longer and made objects 35 to 45 % larger; superword-level vectorisation found nothing that the
kernels' explicit vectors had left.)
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from fastlstm.errors import FastLSTMError
from fastlstm.kernels.primitives import frame_primitives, target_primitives
from fastlstm.target import Target

__all__ = ["assembly", "emit", "for_target", "optimise", "target_machine"]


@cache
def _initialised() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def target_machine(target: Target) -> Any:
    """Return LLVM's code generator for a target."""
    _initialised()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=",".join(target.features), opt=3, reloc="pic", codemodel="small", abiname=target.abi
    )


def emit(text: str, symbol: str, target: Target) -> bytes:
    """Return the object code of a template that exports `symbol`.

    Raises
    ------
    FastLSTMError
        If it calls a function: a kernel has to be self-contained.
    """
    machine = target_machine(target)
    code: bytes = machine.emit_object(_optimised(text, symbol, target, machine))
    return code


def assembly(text: str, symbol: str, target: Target) -> str:
    """Return the assembly listing of a template."""
    machine = target_machine(target)
    return str(machine.emit_assembly(_optimised(text, symbol, target, machine)))


def _optimised(text: str, symbol: str, target: Target, machine: Any) -> Any:
    module = llvm.parse_assembly(for_target(text, target, machine))
    names = [f.name for f in module.functions if f.is_declaration]
    for more in (frame_primitives(), target_primitives(target, names)):
        module.link_in(llvm.parse_assembly(for_target(more, target, machine)))
    optimise(module, machine, {symbol})
    unknown = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    if unknown:
        raise FastLSTMError(f"The kernel {symbol} calls {', '.join(sorted(unknown))}, which it does not hold.")
    return module


def for_target(text: str, target: Target, machine: Any) -> str:
    """Return LLVM assembly with the target's triple and data layout in place of its own."""
    text = re.sub(r"^target (triple|datalayout) = .*$", "", text, flags=re.M)
    return f'target datalayout = "{machine.target_data}"\ntarget triple = "{target.triple}"\n{text}'


def optimise(module: Any, machine: Any, exported: set[str]) -> None:
    """Inline everything into the `exported` functions and optimise them, in place."""
    for function in module.functions:
        if not function.is_declaration and function.name not in exported:
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    first = llvm.create_new_module_pass_manager()
    first.add_always_inliner_pass()
    first.add_global_dead_code_eliminate_pass()
    first.run(module, passes)
    passes.getModulePassManager().run(module, passes)

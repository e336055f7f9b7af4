"""From a kernel's template to the function of one instruction: its arguments and its frame become constants.

A template asks primitives for what it does not know (`fastlstm.kernels.frame`): calls such as ``fl_arg(args, 4)``. In
the text of the template every such call is replaced by what an instruction has there, a number, the address of
constant data, or a place in the state. What only a call knows stands in the function's parameters, those of `CONTEXT`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fastlstm.errors import FastLSTMError

__all__ = ["Answer", "context", "specialised"]

Answer = tuple[str, tuple[str, ...]]
"""An operand, and lines that come before its use; ``{new}`` in them stands for a name of its own."""

_CALL = re.compile(r"^  (%[-\w.$\"]+) = (?:tail )?call i(?:32|64) @fl_(\w+)\(([^)]*)\).*$")
_NAME = re.compile(r'%(?:"[^"]*"|[-\w.$]+)')
_DEFINITION = re.compile(r"^define i(?:32|64) @(\w+)\(i(?:32|64) %a, i(?:32|64) %b, i(?:32|64) %c\)([^{]*)\{$", re.M)
_WITH_FRAME = re.compile(r"%[abc]\b(?![-\w.$])")
_KNOWN = ("arg", "word", "origin", "time_stride", "row_stride", "active_rows", "complain")


def context(word: str, ports: Sequence[str]) -> tuple[str, ...]:
    """Return the parameters of every function that computes: the state, the running block, the ports."""
    names = ("self", "start", "steps", "total", "runs", *ports)
    return tuple(f"{word} %fl.{name}" for name in names)


def specialised(
    template: str,
    name: str,
    parameters: Sequence[str],
    answer: Callable[[str, int | None, str], Answer],
    bits: int = 64,
    attributes: str = "",
) -> str:
    """Return the function `name` that a template becomes.

    Parameters
    ----------
    template : str
        As `fastlstm.kernels.simplified` has it, in words of 64 bits or narrowed.
    name : str
    parameters : sequence of str
        They may grow while `answer` is called.
    answer : callable
        ``answer(primitive, number, operand)`` is what a call of a primitive gives; the number of the argument, word or
        slot is None where it is known only when the function runs, as `operand`.
    bits : int
        Of the template's words.
    attributes : str
        Of the function, beside the template's.
    """
    found = _DEFINITION.search(template)
    if found is None:
        raise FastLSTMError(f"The template of {name} does not hold its kernel.")
    word, count = f"i{bits}", 0
    known: dict[str, str] = {}

    def resolved(text: str) -> str:
        return _NAME.sub(lambda m: known.get(m.group(), m.group()), text) if known else text

    def substituted(lines: list[str], primitives: frozenset[str]) -> list[str]:
        nonlocal count
        out = []
        for line in lines:
            call = _CALL.match(line)
            if call is None or call[2] not in primitives:
                out.append(line)
                continue
            operand = resolved(call[3].split(",")[-1].strip().split(" ", 1)[1])
            value, before = answer(call[2], int(operand) if operand.lstrip("-").isdigit() else None, operand)
            names = [f"%fl.{name}.{count + i}" for i in range(len(before))]
            count += len(before)
            out += [f"  {_filled(text, names, i)}" for i, text in enumerate(before)]
            known[call[1]] = _filled(value, names, len(names))
        return out

    body = template[found.end() :].split("\n}\n", 1)
    lines = substituted(body[0].split("\n"), frozenset({"arg"}))
    # Slots are arguments: they are known now, wherever the calls stand.
    lines = substituted([resolved(line) for line in lines], frozenset(_KNOWN) - {"arg"})
    known |= {"%a": "0", "%b": "0", "%c": "0"}
    for line in lines:
        # Code for several workers passes its frame on; there is one, so it never runs.
        if _WITH_FRAME.search(line) and not line.lstrip().split(" = ")[-1].startswith(f"call {word} %"):
            raise FastLSTMError(f"The kernel of {name} reads its frame itself: {line.strip()}")
    text = resolved("\n".join(lines))
    rest = re.sub(
        rf"^declare i(?:32|64) @fl_(?:{'|'.join(_KNOWN)})\(.*\n", "", template[: found.start()] + body[1], flags=re.M
    )
    head = f"define {word} @{name}({', '.join(parameters)}){found[2]}{attributes}{{"
    return f"{rest}{head}{text}\n}}\n"


def _filled(text: str, names: Sequence[str], at: int) -> str:
    """Return a line with the names of the lines before it: ``{new}`` is its own, ``{0}``, ``{1}`` ... are theirs."""
    own = names[at] if at < len(names) else ""
    return re.sub(r"\{(\w+)\}", lambda m: own if m[1] == "new" else names[int(m[1])], text)

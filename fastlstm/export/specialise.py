"""From a kernel's template to the function of one instruction: its arguments and its frame become constants.

A template calls primitives for what it does not know (`fastlstm.kernels.frame`), such as ``fl_arg(args, 4)``. In its
text, every such call is replaced by the instruction's value: a number, the address of constant data, or an address in
the state. What only a call of the model knows is a parameter of the function (`context`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fastlstm.errors import FastLSTMError

__all__ = ["Answer", "context", "specialised"]

Answer = tuple[str, tuple[str, ...]]
"""An operand, and the lines that compute it first; ``{new}`` in them stands for a fresh name."""

_CALL = re.compile(r"^  (%[-\w.$\"]+) = (?:tail )?call i(?:32|64) @fl_(\w+)\(([^)]*)\).*$")
_NAME = re.compile(r'%(?:"[^"]*"|[-\w.$]+)')
_DEFINITION = re.compile(r"^define i(?:32|64) @(\w+)\(i(?:32|64) %a, i(?:32|64) %b, i(?:32|64) %c\)([^{]*)\{$", re.M)
_WITH_FRAME = re.compile(r"%[abc]\b(?![-\w.$])")
_KNOWN = ("arg", "word", "origin", "time_stride", "row_stride", "active_rows", "complain")


def context(word: str, ports: Sequence[str]) -> tuple[str, ...]:
    """Return the parameters of every internal function: the state, the running block, the ports."""
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
    """Return the function `name` made from a template.

    Parameters
    ----------
    template : str
        As `fastlstm.kernels.simplified` returns it, with 64-bit words or narrowed.
    name : str
    parameters : sequence of str
        They may grow while `answer` is called.
    answer : callable
        ``answer(primitive, number, operand)`` returns what a call of a primitive is replaced by; `number` is that of
        the argument, word or slot, or None if only `operand` tells it at run time.
    bits : int
        Width of the template's words.
    attributes : str
        Attributes of the function in addition to the template's.
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
    # Slots are arguments, so they are known now, wherever they are used.
    lines = substituted([resolved(line) for line in lines], frozenset(_KNOWN) - {"arg"})
    known |= {"%a": "0", "%b": "0", "%c": "0"}
    for line in lines:
        # Code for several workers passes its frame on; here there is one worker, so that code never runs.
        if _WITH_FRAME.search(line) and not line.lstrip().split(" = ")[-1].startswith(f"call {word} %"):
            raise FastLSTMError(f"The kernel of {name} reads its frame itself: {line.strip()}")
    text = resolved("\n".join(lines))
    rest = re.sub(
        rf"^declare i(?:32|64) @fl_(?:{'|'.join(_KNOWN)})\(.*\n", "", template[: found.start()] + body[1], flags=re.M
    )
    head = f"define {word} @{name}({', '.join(parameters)}){found[2]}{attributes}{{"
    return f"{rest}{head}{text}\n}}\n"


def _filled(text: str, names: Sequence[str], at: int) -> str:
    """Return a line with names filled in: ``{new}`` is its own, ``{0}``, ``{1}``, ... those of the lines before it."""
    own = names[at] if at < len(names) else ""
    return re.sub(r"\{(\w+)\}", lambda m: own if m[1] == "new" else names[int(m[1])], text)
